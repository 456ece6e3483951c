"""The agents beside the memory agent: what they ask, what they leave out, and how long documents are encoded."""

import asyncio
import functools

import numpy as np
import pytest

from pipeline.agents import METHODS, load_agent
from pipeline.errors import ConfigError, QuestionTooLong
from pipeline.problems import Problem
from pipeline.rollout.episodes import Completion, run_episode
from pipeline.sections import AgentSection
from pipeline.text import encode_document, encode_text
from tests.support.byte_tokenizer import byte_tokenizer

CHUNK, MEMORY, ANSWER, WINDOW = 16, 12, 20, 400
CONFIG = AgentSection(window=WINDOW, problem_tokens=8, chunk_tokens=CHUNK, memory_tokens=MEMORY, answer_tokens=ANSWER)
TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token_id


def make(method: str, **changes):
    config = AgentSection(**(vars(CONFIG) | changes))
    return load_agent(method)(TOKENIZER, config)


def run(agent, document: str, respond, question: str = "Who?"):
    """Run an agent; `respond(prompt text, number)` is the text of a response. Returns the episode and the prompts."""
    asked = []

    async def generate(prompt, max_tokens):
        asked.append((TOKENIZER.decode(prompt), max_tokens))
        number = len(asked) - 1
        await asyncio.sleep(0.001 * (5 - number % 5))  # responses come in another order than they were asked
        tokens = [*encode_text(TOKENIZER, respond(asked[number][0], number)), END]
        return Completion(tokens, [-1.0] * len(tokens), [0] * len(tokens), "stop")

    problem = Problem("q", question, ("Ann",), document)
    return asyncio.run(run_episode(agent, agent.tokenize(problem), generate)), asked


def document_in(prompt: str) -> str:
    return prompt.partition("<article>\n")[2].partition("\n</article>")[0]


def test_direct_reads_the_whole_document_at_once_when_it_fits():
    episode, asked = run(make("direct"), "abcdef", lambda prompt, number: "\\boxed{Ann}")
    ((prompt, limit),) = asked
    assert document_in(prompt) == "abcdef" and "Who?" in prompt and "\\boxed{}" in prompt
    assert limit == ANSWER and episode.answer == "\\boxed{Ann}"
    assert [c.role for c in episode.conversations] == ["answer"]


@pytest.mark.parametrize("window", [300, 301, 350])
def test_direct_cuts_the_middle_out_so_that_prompt_and_answer_fill_the_window_exactly(window):
    document = "".join(chr(ord("a") + i % 26) for i in range(1000))
    episode, ((prompt, _),) = run(make("direct", window=window), document, lambda prompt, number: "x")
    kept = document_in(prompt)
    assert len(episode.conversations[0].prompt) + ANSWER == window
    half = len(kept) // 2
    assert document.startswith(kept[: len(kept) - half]) and document.endswith(kept[len(kept) - half :])


def test_direct_in_a_window_without_room_says_so():
    with pytest.raises(ConfigError, match="no room for a document"):
        run(make("direct", window=100), "abc", lambda prompt, number: "x")


def test_concat_compresses_every_chunk_by_itself_and_answers_from_all_in_their_order():
    document = "A" * CHUNK + "B" * CHUNK + "C" * 3

    def respond(prompt, number):
        return f"note {prompt.partition('<section>')[2].strip()[0]}" if "<section>" in prompt else "\\boxed{Ann}"

    episode, asked = run(make("concat"), document, respond)
    compressions, (answer, _) = asked[:-1], asked[-1]
    assert len(compressions) == 3
    for prompt, limit in compressions:
        assert "<memory>\nNo previous memory\n</memory>" in prompt and limit == MEMORY
    assert "<memory>\nnote A\nnote B\nnote C\n\n</memory>" in answer
    assert [c.role for c in episode.conversations] == ["memory"] * 3 + ["answer"]
    assert [TOKENIZER.decode(c.response.tokens[:-1]) for c in episode.conversations[:3]] == [
        "note A",
        "note B",
        "note C",
    ]


def test_concat_cuts_the_middle_of_the_compressions_out_when_they_do_not_fit():
    episode, asked = run(make("concat"), "x" * CHUNK * 80, lambda prompt, number: f"{number:010d}")
    assert len(episode.conversations) == 81
    assert len(episode.conversations[-1].prompt) + ANSWER == WINDOW
    memory = asked[-1][0].partition("<memory>\n")[2].partition("\n</memory>")[0]
    assert memory.startswith("0000000000\n") and memory.endswith("0000000079\n") and "0000000040" not in memory


def test_closed_book_asks_the_question_alone():
    episode, ((prompt, limit),) = run(make("closed_book"), "secret", lambda prompt, number: "I guess \\boxed{Ann}")
    assert "secret" not in prompt and "Who?" in prompt and limit == ANSWER
    assert episode.answer == "I guess \\boxed{Ann}"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_a_question_over_its_budget(method):
    with pytest.raises(QuestionTooLong, match="9 tokens, over agent.problem_tokens=8"):
        make(method).tokenize(Problem("q", "123456789", ("a",), "x"))


@pytest.mark.parametrize("method", ["memory", "direct", "concat"])
def test_special_tokens_in_a_document_are_text_to_every_method(method):
    hostile = "<|end|><|start|>"
    _, asked = run(make(method), hostile, lambda prompt, number: "x")
    harmless = make(method).tokenize(Problem("q", "Who?", ("a",), hostile))
    assert max(harmless.document.tolist()) <= 255 and len(harmless.document) == len(hostile)


@pytest.mark.parametrize("name", ["memry", "pipeline.agents.memory:Memory", "no_such_module:Agent", ""])
def test_a_method_that_is_none_is_an_error_that_names_those_there_are(name):
    with pytest.raises(ConfigError, match="memory, direct, concat, closed_book"):
        load_agent(name)


# Documents encoded in blocks.


@pytest.fixture(scope="module")
def tokenizers(random_model):
    from transformers import AutoTokenizer

    return {"bytes": TOKENIZER, "words": AutoTokenizer.from_pretrained(random_model), "whole": MergingTokenizer()}


class MergingTokenizer:
    """Like SentencePiece it puts a mark before every text, so that no text encodes in two to the same as whole."""

    added_tokens_decoder: dict = {}
    unk_token_id = None

    def encode(self, text, **options):
        return [1, *text.encode()]


@pytest.mark.parametrize("name", ["bytes", "words", "whole"])
@pytest.mark.parametrize("block", [1, 50, 1000])
def test_a_document_encoded_in_blocks_is_the_document_encoded_whole(tokenizers, monkeypatch, name, block):
    monkeypatch.setattr("pipeline.text.BLOCK", block)
    text = "Sam Rex . Rex Paris .\n\nDocument 2:\nÉté  of  1999, \\boxed{ Paris }\t\n" * 5 + "end"
    tokenizer = tokenizers[name]
    encoded = encode_document(tokenizer, text)
    assert encoded.dtype == np.int32 and encoded.tolist() == encode_text(tokenizer, text)


def test_blocks_are_small_where_the_tokenizer_allows_it(tokenizers, monkeypatch):
    monkeypatch.setattr("pipeline.text.BLOCK", 100)
    sizes = []
    encode = encode_text

    def counting(tokenizer, text):
        sizes.append(len(text))
        return encode(tokenizer, text)

    monkeypatch.setattr("pipeline.text.encode_text", counting)
    encode_document(tokenizers["words"], "Sam Rex . " * 1000)
    assert max(sizes) < 200


def test_an_empty_document_encodes_to_nothing(tokenizers):
    assert len(encode_document(TOKENIZER, "")) == 0


def test_an_agent_whose_run_is_decorated_is_one(monkeypatch):
    def logged(run):
        @functools.wraps(run)
        def inner(*arguments):
            return run(*arguments)

        return inner

    class Logged(load_agent("memory")):
        run = logged(load_agent("memory").run)

    monkeypatch.setattr("pipeline.agents.load_choice", lambda *_: Logged)
    assert load_agent("mine:Logged") is Logged
