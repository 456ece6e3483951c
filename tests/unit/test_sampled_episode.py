"""Sampled episodes: what their rows hold, and how many characters each token has."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.agents.memory_trace import reading_of, trace_memories
from pipeline.agents.reader import TokenizedProblem
from pipeline.data.documents.synthetic import tiny_tokenizer
from pipeline.problems import Problem
from pipeline.rollout.answer import Memories
from pipeline.rollout.episodes import Completion, Conversation, Episode, GroupRecord, pack_group, scored_group
from pipeline.rollout.reading import MOST_DOCUMENT, MOST_SECTION
from pipeline.run import sampled_episode as module
from pipeline.run.config import load_training_config
from pipeline.run.sampled_episode import sampled_episode, samples_at, token_characters
from pipeline.text import encode_document
from tests.support.byte_tokenizer import byte_tokenizer

TOKENIZER = tiny_tokenizer()
CONFIG = load_training_config(["preset=tiny"])
BRIDGE, FACT = "Sam Rex .", "Rex Paris ."
PROBLEM = Problem(
    "p",
    "city pet Sam",
    ("Paris",),
    " ".join([BRIDGE, *["Adam Luna ."] * 6, FACT, *["Adam Luna ."] * 5]),
    metadata={"needed": [BRIDGE, FACT], "hops": 2},
)


def encoded(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def conversation(role: str, text: str, versions: list[int] | None = None) -> Conversation:
    tokens = encoded(text)
    versions = versions or [3] * len(tokens)
    return Conversation(role, [1, 2], Completion(tokens, [-0.5] * len(tokens), versions, "stop"))


def group():
    """Two episodes: the first reads three sections and answers, the second answers at once."""
    memories = [BRIDGE, f"{BRIDGE} {FACT}", FACT]
    written = Memories([encoded(memory) for memory in memories], chained=True)
    document = encode_document(TOKENIZER, PROBLEM.document)
    tokenized = TokenizedProblem([], document)
    (trace,) = trace_memories(PROBLEM, tokenized, TOKENIZER, CONFIG.agent, [written])
    reading = reading_of(tokenized, CONFIG.agent, written, trace)
    first = [conversation("memory", memory) for memory in memories]
    first[1] = conversation("memory", memories[1], [3, 3, 4, 4, 4, 5])
    episodes = [
        Episode([*first, conversation("answer", "Paris")], "Paris"),
        Episode([conversation("answer", "red")], "red", cut=True),
    ]
    return pack_group("p", episodes, (trace.counts, trace.counts), reading)


def record_of(packed) -> GroupRecord:
    advantages = np.array([0.1, 0.2, 0.3, 0.4, -1], np.float32)
    scored = scored_group(packed, np.array([1, 0], np.float32), np.zeros(2, np.float32), advantages)
    return GroupRecord.of(scored, group_id="g", generator="generator-0", generation_seconds=1.0)


def row(packed, learner=None) -> dict:
    return json.loads(json.dumps(sampled_episode(TOKENIZER, PROBLEM, record_of(packed), packed, learner or {})))


def test_a_row_has_the_problem_the_conversations_and_what_was_read_and_remembered():
    shown = row(group(), {0: np.array([-0.25, -1, -2], np.float32)})
    assert (shown["problem"], shown["task"], shown["answers"]) == ("city pet Sam", "qa", ["Paris"])
    assert (shown["answer"], shown["reward"], shown["cut"], shown["penalty"]) == ("Paris", 1, False, 0)
    assert shown["advantage"] == pytest.approx(0.25)
    assert [c["role"] for c in shown["conversations"]] == ["memory"] * 3 + ["answer"]
    first, second = shown["conversations"][:2]
    assert first["response"] == BRIDGE and first["advantage"] == pytest.approx(0.1)
    assert sum(first["tokens"]["characters"]) == len(BRIDGE)
    assert first["tokens"]["logprobs"] == [-0.5] * 3 and first["tokens"]["learner"] == [-0.25, -1, -2]
    assert first["tokens"]["versions"] == [[3, 3]]
    assert second["tokens"]["versions"] == [[3, 2], [4, 3], [5, 1]] and second["tokens"]["learner"] is None
    assert shown["document_tokens"] == 39 and len(shown["sections"]) == 3
    assert " ".join(shown["sections"]) == PROBLEM.document
    assert shown["memories"] == [BRIDGE, f"{BRIDGE} {FACT}", FACT]
    assert shown["facts"] == [{"text": BRIDGE, "section": 0}, {"text": FACT, "section": 1}]
    assert shown["held"] == [[0], [0, 1], [1]]


def test_of_a_group_whose_reading_is_unknown_the_rest_is_shown():
    shown = row(replace(group(), reading=None))
    assert "memories" not in shown and "facts" not in shown and len(shown["conversations"]) == 4


def test_numbers_of_tokens_are_bounded_and_texts_are_whole(monkeypatch):
    monkeypatch.setattr(module, "MOST_TOKENS", 10)  # the first two memories have nine
    shown = row(group())["conversations"]
    assert [c["tokens"] is None for c in shown] == [False, False, True, False]
    assert shown[2]["response"] == FACT


def test_a_log_prob_that_is_not_finite_is_none():
    shown = row(group(), {0: np.array([np.nan, -np.inf, -1], np.float32)})
    assert shown["conversations"][0]["tokens"]["learner"] == [None, None, -1]


def test_what_is_kept_of_a_document_is_bounded():
    def kept(tokens: int, size: int) -> list[int]:
        config, read = replace(CONFIG.agent, chunk_tokens=size), TokenizedProblem([], np.zeros(tokens, np.int32))
        (trace,) = trace_memories(problem, read, TOKENIZER, config, [memories])
        reading = reading_of(read, config, memories, trace)
        assert reading.document_tokens == tokens
        return [len(section) for section in reading.sections]

    problem, memories = replace(PROBLEM, metadata={}), Memories([encoded(FACT)], chained=True)
    assert kept(100, 40) == [40, 40, 20]
    assert kept(5 * 5000, 5000) == [MOST_SECTION] * 5
    assert kept(1000 * 100, 100) == [MOST_DOCUMENT // 1000] * 1000


def test_memories_that_are_not_chained_have_no_sections():
    memories = Memories([encoded(FACT)])
    tokenized = TokenizedProblem([], encode_document(TOKENIZER, PROBLEM.document))
    (trace,) = trace_memories(PROBLEM, tokenized, TOKENIZER, CONFIG.agent, [memories])
    reading = reading_of(tokenized, CONFIG.agent, memories, trace)
    assert reading.sections == () == reading.facts and len(reading.memories) == 1


@pytest.mark.parametrize("text", ["plain text", "", "ünïcödé 漢字 😀!", "a\u0301 \ufffd", "😀😀"])
@pytest.mark.parametrize("end", [None, -1, -2])
def test_the_characters_of_tokens_are_those_of_the_text(text, end):
    tokenizer = byte_tokenizer()  # a token for each byte, so that characters have several
    tokens = tokenizer.encode(text, add_special_tokens=False)[:end]
    decoded = tokenizer.decode(tokens)
    lengths = token_characters(tokenizer, tokens, decoded)
    assert len(lengths) == len(tokens) and sum(lengths) == len(decoded) and min(lengths, default=0) >= 0
    if text == "😀😀" and end is None:
        assert lengths == [0, 0, 0, 1] * 2


def test_steps_with_samples():
    train = replace(CONFIG.train, steps=25, episodes_every=10, episodes_shown=4)
    assert {step: n for step in range(1, 26) if (n := samples_at(train, step))} == {1: 4, 10: 4, 20: 4, 25: 4}
