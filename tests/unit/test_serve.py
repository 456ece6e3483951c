"""The arguments and the configuration of jobs.serve, and what a request asks."""

import socket
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import serve
from pipeline.serving.config import load_serve_config, model_name, serving_engine_config
from pipeline.serving.errors import RequestError
from pipeline.serving.keys import Keys
from pipeline.serving.messages import Message, asked, messages_of


@pytest.fixture(autouse=True)
def state(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "palimpsest" / "serve"


def test_keys_are_made_listed_and_removed(state, capsys):
    assert serve.main(["--new-key", "ann"]) == 0
    printed = capsys.readouterr()
    assert Keys(state).name_of(printed.out.strip()) == "ann" and "never again" in printed.err
    assert serve.main(["--new-key=ann"]) == 2 and "there is a key 'ann'" in capsys.readouterr().err
    assert serve.main(["--keys"]) == 0 and capsys.readouterr().out == "ann\n"
    assert serve.main(["--remove-key", "ann"]) == 0 and Keys(state).names() == []
    assert serve.main(["--remove-key", "ann"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--new-key"], "--new-key needs a name"),
        (["--keys", "--new-key", "a"], "two commands"),
        (["--nothing"], "unknown argument --nothing"),
        (["file.txt"], "unknown argument file.txt"),
        (["preset=serve_tiny", "serve.limits.readings=0"], "serve.limits.readings=0 must be above 0"),
        (["preset=serve_tiny", "serve.replicas.min=2"], "serve.replicas.min=2 is above"),
        (["preset=serve_tiny", "serve.replicas.tensor_parallel=2"], "num_gpus=0 must equal"),
        (["preset=serve_tiny", "serve.limits.readings=100"], "serve.limits.readings is above"),
        (["preset=serve_tiny", "serve.folder=here"], "serve.folder=here is relative"),
        (["preset=serve_tiny", "serve.name=a:b"], "must not contain"),
        (["preset=serve_tiny", "serve.port=0"], "serve.port=0 must be from 1"),
        (["preset=serve_tiny", "serve.prot=1"], "serve.port"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, capsys):
    assert serve.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_refused_before_anything_starts(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert serve.main(["preset=serve_tiny", f"serve.port={port}"]) == 2
    assert f"serve.port={port} cannot be listened on" in capsys.readouterr().err


def test_the_engine_is_configured_as_the_replicas(state):
    config = load_serve_config(["preset=serve_tiny", "serve.replicas.max_sequences=7"])
    assert model_name(config) == "tiny" and config.serve.folder == str(state)
    engine = serving_engine_config(config)
    assert engine.generator.max_sequences == 7 and engine.generator.enforce_eager
    assert engine.model.path.endswith("configs/models/tiny") and engine.agent.chunk_tokens == 18
    config.model.path = "runs/mine/checkpoints/3/hf"
    assert model_name(config) == "mine"


def of(*messages: tuple[str, str]):
    return messages_of([{"role": role, "content": text} for role, text in messages], "input")


def fits(text: str) -> bool:
    return len(text) <= 20


@pytest.mark.parametrize(
    ("messages", "question", "document"),
    [
        ([("user", "a long text of words\n\nmore\n\nWhich?")], "Which?", "a long text of words\n\nmore"),
        ([("user", "Which?\n\na long text of words, no question")], "Which?", "a long text of words, no question"),
        ([("user", "text"), ("assistant", "said"), ("user", "Which?")], "Which?", "text\n\nsaid"),
        ([("system", "Be short."), ("user", "text"), ("user", "Who?")], "Be short.\n\nWho?", "text"),
        ([("user", "Who?"), ("assistant", "text"), ("user", "Who?")], "Who?", "Who?\n\ntext"),
    ],
)  # fmt: skip
def test_the_question_and_the_document_of_messages(messages, question, document):
    found = asked(of(*messages), "", fits, has_documents=False)
    assert (found.question, found.text, found.files) == (question, document, ())


def test_a_message_of_many_paragraphs_takes_little_more_memory_than_itself():
    message = "ab\n\n" * 100_000 + "Which?"
    tracemalloc.start()
    try:
        found = asked([Message("user", message)], "", fits, has_documents=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.question == "Which?" and found.text == message.removesuffix("\n\nWhich?")
    assert peak < 3 * len(message)


def test_messages_without_a_question_or_a_document_are_refused():
    for messages, message in (
        ([("user", "Which?")], "there is no document"),
        ([("user", " ")], "there is no question"),
        ([("assistant", "text")], "there is no question"),
        ([("user", "a text that is too long to be a question")], "a paragraph of its own"),
        ([("system", "a long instruction"), ("user", "text"), ("user", "Which?")], "longer than agent.problem_tokens"),
    ):
        with pytest.raises(RequestError, match=message):
            asked(of(*messages), "", fits, has_documents=False)
    assert asked(of(("user", "Which?")), "", fits, has_documents=True).text is None


WORDS = st.sampled_from(["type", "role", "content", "text", "user", "message", "input_file", "file", "file_id", "a b"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=20,
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant"]), "content": ANYTHING})


@given(ANYTHING | st.lists(MESSAGE, max_size=4))
def test_whatever_is_sent_is_a_question_or_refused_in_words(sent):
    try:
        found = asked(messages_of(sent, "input"), "", fits, has_documents=False)
    except RequestError as error:
        assert error.status == 400 and error.message
    else:
        assert found.question and fits(found.question) and (found.files or found.text)
