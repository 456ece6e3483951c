"""The command: arguments, documents, the model that is chosen, what is printed, Ctrl-C. The model is scripted."""

import asyncio
import io
import json
import os
import signal
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from jobs import ask
from jobs.support.asked_model import AskedModel
from jobs.support.reading_view import ReadingView, for_terminal
from pipeline.asking import config as config_module
from pipeline.asking.config import load_ask_config, trained_agent
from pipeline.asking.documents import find_files, read_files, text_bytes
from pipeline.asking.parsing import ParseLimits
from pipeline.errors import ConfigError, UnreadableDocument
from tests.support.asking import ScriptedModel, reader
from tests.support.document_files import pdf

TEXT = "".join(f"{line:<59}\n" for line in ["The door is red.", "Fog fell.", "The cat is blue."])
MODEL = ["model=/a/model"]


@pytest.fixture
def model(monkeypatch, tmp_path):
    """A scripted model in place of every other, and a cache of the test's own."""
    scripted = ScriptedModel(reader().tokenizer)
    scripted.closed = 0

    async def close():
        scripted.closed += 1

    async def open_model(config, say):
        agent = reader(config.ask.method)
        return AskedModel(config, agent, SimpleNamespace(generate=scripted.generate, close=close), "scripted", ["s"])

    monkeypatch.setattr(ask, "open_model", open_model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return scripted


@pytest.fixture
def document(tmp_path) -> Path:
    path = tmp_path / "novel.txt"
    path.write_text(TEXT)
    return path


def test_the_answer_is_on_stdout_and_the_reading_on_stderr(model, document, capsys):
    assert ask.main([*MODEL, "Which?", str(document)]) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        "blue\n\nFound by text match in what was read:\n"
        f"  {document}, line 3: “The cat is blue.”\n"
    )  # fmt: skip
    first, second, third = printed.err.splitlines()
    assert first.startswith(f"section 1 of about 3  {document}, line 1") and "+4 -0 words" in first
    assert third.startswith("section 3 of 3") and "tokens/s" in third and "0 s left" in third
    assert "\x1b" not in printed.err and model.closed == 1


def test_the_same_question_is_answered_at_once_also_of_a_renamed_file(model, document, capsys):
    assert ask.main([*MODEL, "Which?", str(document)]) == 0
    first, asked = capsys.readouterr().out, len(model.asked)
    assert ask.main([*MODEL, "Which?", str(document)]) == 0
    printed = capsys.readouterr()
    assert printed.out == first and "answered before" in printed.err and len(model.asked) == asked
    document.rename(document.with_name("other.txt"))
    assert ask.main([*MODEL, "Which?", str(document.with_name("other.txt"))]) == 0
    printed = capsys.readouterr()
    assert "other.txt, line 3" in printed.out and printed.err.count("kept from an earlier reading") == 3
    assert len(model.asked) == asked
    for changed in (["Who?"], ["Which?", "ask.seed=1"], ["Which?", "agent.window=9000"]):
        assert ask.main([*MODEL, *changed, str(document.with_name("other.txt"))]) == 0
        assert len(model.asked) > asked
        asked = len(model.asked)


def test_nothing_is_kept_if_so_asked(model, document, tmp_path):
    for _ in range(2):
        assert ask.main([*MODEL, "Which?", "--no-keep", str(document)]) == 0
    assert len(model.asked) == 8 and not (tmp_path / "cache").exists()


def test_the_answer_as_json(model, document, capsys):
    assert ask.main([*MODEL, "--json", "--method=direct", "Which?", str(document)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["question"], printed["model"], printed["method"]) == ("Which?", "scripted", "direct")
    assert (printed["answer"], printed["text"], printed["is_whole"]) == ("blue", "It is \\boxed{blue}", True)
    place = {"file": str(document), "page": None, "line": 3}
    assert printed["sources"] == [
        {"section": 3, "place": place, "passage": "The cat is blue.", "words": ["blue"], "is_answer": True}
    ]


def test_ctrl_c_answers_from_the_present_memory_and_a_second_one_ends(model, document, capsys):
    def interrupt(number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)

    model.before = interrupt
    assert ask.main([*MODEL, "Which?", str(document)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("red\n") and "sections only; the same command resumes" in printed.out
    assert "answering from the present memory" in printed.err
    model.before = lambda number: None
    assert ask.main([*MODEL, "Which?", str(document)]) == 0
    assert capsys.readouterr().out.startswith("blue\n")

    async def interrupted_twice(prompt, max_tokens, sampling):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

    model.generate = interrupted_twice
    before = signal.getsignal(signal.SIGINT)
    assert ask.main([*MODEL, "Who?", str(document)]) == 130
    assert "interrupted; the same command resumes" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before and model.closed == 3


def test_text_on_the_standard_input(model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert ask.main([*MODEL, "Which?"]) == 0
    assert "standard input, line 3" in capsys.readouterr().out


def test_several_files_and_a_folder(model, tmp_path, capsys):
    folder = tmp_path / "docs"
    (folder / "inner").mkdir(parents=True)
    (folder / "b.md").write_text("The cat is blue.\n")
    (folder / "inner" / "a.txt").write_text("\n\nThe dog is old.\n")
    (folder / ".hidden").write_text("The fox is sly.\n")
    (folder / "junk.bin").write_bytes(b"\0\1\2")
    (folder / "link.txt").symlink_to("/etc/hostname")
    (tmp_path / "one.txt").write_text("The door is red.\n")
    assert ask.main([*MODEL, "Which?", str(tmp_path / "one.txt"), str(folder)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("old\n") and f"{folder}/inner/a.txt, line 3" in printed.out
    assert "left out: " in printed.err and "junk.bin" in printed.err and "sly" not in str(model.asked)
    files, _ = find_files([folder])
    assert [file.path.name for file in files] == ["b.md", "a.txt"]
    texts = [piece.text for piece in read_files(files, ParseLimits())]
    assert "".join(texts) == "The cat is blue.\n\n\n\n\nThe dog is old.\n"
    assert text_bytes(files, ParseLimits()) == len("".join(texts))


def test_the_sections_of_a_pdf_file_are_counted_before_its_end(model, tmp_path, capsys):
    path = tmp_path / "report.pdf"
    path.write_bytes(pdf([[f"The cat{page} is blue."] for page in range(1, 9)]))
    assert ask.main([*MODEL, "Which?", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("blue\n") and f"{path}, page " in printed.out
    shown = [line.split("  ")[0] for line in printed.err.splitlines()]
    assert shown[0].startswith("section 1 of about ") and shown[-1].removeprefix("section ").startswith(
        f"{len(shown)} of {len(shown)}"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "it is empty"), (b"\0\1\2", "it is not text"), (b" \n", "no text"), (b"a\xff\xfe", "neither UTF-8")],
)
def test_a_document_that_cannot_be_read_is_named(model, tmp_path, capsys, content, message):
    path = tmp_path / "a\x1b[2Jb.txt"
    path.write_bytes(content)
    assert ask.main([*MODEL, "Which?", str(path)]) == 2
    said = capsys.readouterr().err
    assert message in said and r"a\x1b[2Jb.txt" in said and "\x1b" not in said
    assert ask.main([*MODEL, "Which?", str(tmp_path / "missing.txt")]) == 2
    assert "missing.txt" in capsys.readouterr().err


def test_a_folder_without_documents_is_refused(tmp_path):
    with pytest.raises(UnreadableDocument, match="no file in this folder that can be read"):
        find_files([tmp_path])


def test_a_document_or_question_over_its_limit_is_refused(model, document, capsys):
    assert ask.main([*MODEL, "x" * 101, str(document)]) == 2
    assert "the question has 101 tokens, over agent.problem_tokens=100" in capsys.readouterr().err
    assert ask.main([*MODEL, "Which?", str(document), "agent.document_characters=50"]) == 2
    assert "50 characters" in capsys.readouterr().err
    assert model.asked == []


def test_escapes_in_a_document_do_not_reach_the_terminal(model, tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text("The cat is \x9b31mblue. The end is near\x1b]0;title\x07.\n")
    assert ask.main([*MODEL, "Which?", str(path)]) == 0
    printed = capsys.readouterr()
    assert not {"\x1b", "\x9b", "\x07"} & set(printed.out + printed.err)


def test_a_terminal_gets_text_only():
    assert (
        for_terminal("a\tb\nc\xa0d\u202eé\x1b[2J\x9b\ud800\u2028東\u200d")
        == "a\tb\nc dé\ufffd[2J\ufffd\ufffd\n東\u200d"
    )


def test_in_a_terminal_the_memory_is_shown_live(model, document, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = {}
    for no_color in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setenv("TERM", "xterm")
        screen = Terminal()
        monkeypatch.setattr(ask, "ReadingView", lambda screen=screen: ReadingView(screen))
        assert ask.main([*MODEL, "Which?", "--no-keep", str(document)]) == 0
        shown[no_color] = screen.getvalue()
    assert "section 3 of 3" in shown[""] and "\x1b[1;32m The cat is blue." in shown[""]  # added, in green
    assert "\x1b[1m The cat is blue." in shown["1"] and "32m" not in shown["1"]


# Arguments and the model


def test_arguments_are_settings_or_words():
    given = ["Is a=b?", "--method", "concat", "model=m", "agent.window=64", "--json", "--endpoint=u", "./x=y.txt"]
    settings, words, as_json = ask.split_arguments([*given, "--", "--z"])
    assert settings == ["ask.method=concat", "model.path=m", "agent.window=64", "ask.endpoint=u"]
    assert words == ["Is a=b?", "./x=y.txt", "--z"] and as_json


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a question and files"),
        ([" "], "give a question and files"),
        (["--colour", "Which?"], "unknown option --colour; there are --method"),
        (["Which?", "agent.windw=3"], "did you mean 'agent.window'"),
        ([*MODEL, "Which?", "--endpoint", "http://h/v1"], "not to both"),
        (["Which?", "--endpoint", "ftp://h"], "must be a URL such as"),
        (["Which?", "--endpoint", "http://me:secret@h/v1"], "holds credentials"),
        (["Which?", "--tokenizer", "t"], "--tokenizer needs --endpoint"),
        (["Which?", "--endpoint-model", "m"], "--endpoint-model needs --endpoint"),
        ([*MODEL, "Which?", "ask.top_p=0"], r"ask.top_p=0.0 must be above 0"),
        ([*MODEL, "Which?", "ask.folder=here"], "is relative"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, capsys, document):
    assert ask.main([*arguments, *([str(document)] if arguments else [])]) == 2
    said = capsys.readouterr().err
    assert said.startswith("configuration error:\n") and message in said and "secret" not in said


def test_an_option_without_its_value_is_refused():
    with pytest.raises(ConfigError, match="--method needs a value"):
        ask.split_arguments(["Which?", "--method"])


def test_without_a_model_the_ways_to_get_one_are_named(monkeypatch, tmp_path, document, capsys):
    monkeypatch.chdir(tmp_path)
    assert ask.main(["Which?", str(document)]) == 2
    said = capsys.readouterr().err
    assert all(way in said for way in ("make learn", "make smollm2", "--endpoint URL", "preset=ask_tiny"))


def checkpoint(run: Path, step: int, complete: bool = True) -> Path:
    folder = run / "checkpoints" / str(step)
    (folder / "hf").mkdir(parents=True)
    if complete:
        (folder / "manifest.json").write_text("{}")
    agent = {"chunk_tokens": 112, "prompt_template": "facts", "window": 328, "problem_tokens": 40}
    (run / "config.yaml").write_text(yaml.safe_dump({"agent": agent, "train": {"steps": 3}}))
    return folder / "hf"


def test_the_newest_complete_checkpoint_of_make_learn_is_asked_as_it_was_trained(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / config_module.LEARNED
    checkpoint(run, 5), checkpoint(run, 20), checkpoint(run, 25, complete=False)
    config = load_ask_config(["agent.window=500"])
    assert config.model.path == "runs/learn/rl/checkpoints/20/hf"
    agent = config.agent
    assert (agent.chunk_tokens, agent.prompt_template, agent.window) == (112, "facts", 500)
    assert load_ask_config(["preset=ask_tiny", f"model.path={config.model.path}"]).agent.prompt_template == "tiny"


def test_a_model_of_another_place_is_asked_with_the_defaults(tmp_path):
    (tmp_path / "config.yaml").write_text("agent: {window: 1}")
    assert trained_agent(str(tmp_path)) == trained_agent("/") == trained_agent("Qwen/Qwen2.5-7B-Instruct") == []
    path = checkpoint(tmp_path / "run", 1)
    (tmp_path / "run" / "config.yaml").write_text("fine_tuning: {steps: 1}")
    assert trained_agent(str(path)) == []
    for content in ("agent: [", "- 1", "agent: 7"):
        (tmp_path / "run" / "config.yaml").write_text(content)
        with pytest.raises(ConfigError, match=r"config\.yaml: the settings of the model's training cannot be read"):
            trained_agent(str(path))


def test_the_weights_of_a_model_are_identified(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = config_module.fingerprint(str(tmp_path))
    os.utime(tmp_path / "model.safetensors", (1, 1))
    assert config_module.fingerprint(str(tmp_path)) != first
    assert config_module.fingerprint("nobody/nothing") == ["nobody/nothing"]


def test_the_standard_inputs_copy_is_private_and_removed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"text")))
    with ask.documents(["-"], load_ask_config(["model.path=/a/model"])) as (files, _):
        assert stat.S_IMODE(files[0].path.stat().st_mode) == 0o600
    assert not files[0].path.exists()
