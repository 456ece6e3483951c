"""A group's tokens, against the tree of prefixes of the same conversations written out."""

import numpy as np
import pytest

from pipeline.learning.flops import Computed
from pipeline.rollout.prefix_tree import PrefixTree, attended_pairs
from pipeline.run.workload import Workload

PAPER = [40, "problem", 20, "memory", 21, "chunk", 22]
SECTION_FIRST = [40, "problem", 20, "chunk", 21, "memory", 22]
ANSWERING = [33, "problem", 20, "memory", 25]


def workload(reading: list, chunks: int = 3, group_size: int = 4, distinct: int | None = None) -> Workload:
    return Workload(
        chunks=chunks,
        group_size=group_size,
        distinct=group_size if distinct is None else distinct,
        problem=18,
        chunk=100,
        memory=30,
        empty=2,
        answer=17,
        reading=reading,
        answering=ANSWERING,
    )


def conversations(w: Workload) -> list[tuple[list[int], list[int]]]:
    """Prompt and response of every conversation as tokens, all different but for what is the same text."""
    made: dict[object, list[int]] = {}
    used = iter(range(10**6))

    def text(name: object, tokens: int) -> list[int]:
        return made.setdefault(name, [next(used) for _ in range(tokens)])

    def prompt(kind: str, layout: list, turn: int, episode: int) -> list[int]:
        memory = text("empty", w.empty) if turn == 0 else text(("memory", turn - 1, episode % w.distinct), w.memory)
        slots = {"problem": text("problem", w.problem), "chunk": text(("chunk", turn), w.chunk), "memory": memory}
        parts = [slots[p] if isinstance(p, str) else text(("text", kind, i), p) for i, p in enumerate(layout)]
        return [token for part in parts for token in part]

    found = []
    for episode in range(w.group_size):
        for turn in range(w.chunks):
            written = text(("memory", turn, episode % w.distinct), w.memory)
            found.append((prompt("read", list(w.reading), turn, episode), written))
        written = text(("answer", episode % w.distinct), w.answer)
        found.append((prompt("answer", list(w.answering), w.chunks, episode), written))
    return found


@pytest.mark.parametrize("reading", [PAPER, SECTION_FIRST])
@pytest.mark.parametrize(
    ("chunks", "group_size", "distinct"), [(1, 2, 2), (3, 4, 4), (6, 16, 16), (3, 8, 2), (2, 4, 1)]
)
def test_the_tokens_are_those_of_the_tree_of_prefixes(reading, chunks, group_size, distinct):
    w = workload(reading, chunks, group_size, distinct)
    written = conversations(w)
    assert len(written) == w.conversations
    assert sum(len(prompt) for prompt, _ in written) == w.prompt_tokens
    assert sum(len(response) for _, response in written) == w.responses
    assert max(len(prompt) + len(response) for prompt, response in written) == w.longest or chunks == 1

    # The last token of a response goes through no model.
    tree = PrefixTree.of([np.array(prompt + response[:-1]) for prompt, response in written])
    group = w.learned()
    assert group.tokens == tree.tokens()
    assert group.pairs == attended_pairs(tree.lengths).sum() - attended_pairs(tree.shared).sum()
    assert group.predicted == w.responses

    prompts = PrefixTree.of([np.array(prompt) for prompt, _ in written])
    assert w.prompts().tokens == prompts.tokens()


def test_a_prefix_cache_shares_whole_blocks_only():
    """One chunk, two episodes: of 228 - 32 = 223 tokens that both read, 208 are whole blocks of 16; the rest is
    computed by each. Of the 71 tokens before the memory in the answer's prompt, 64 are."""
    w = workload(SECTION_FIRST, chunks=1, group_size=2)
    first = 40 + 18 + 20 + 100 + 21 + 2 + 22
    assert first == 223
    answering = 33 + 18 + 20 + 30 + 25
    assert w.prompts(block=16).tokens == 208 + 2 * (223 - 208) + 64 + 2 * (answering - 64)
    assert w.prompts(block=1).tokens == 223 + 71 + 2 * (answering - 71)


def test_the_first_token_of_a_response_is_the_prompts():
    """A group of one chunk with a memory and an answer of one token each decodes nothing."""
    w = Workload(1, 5, 5, 18, 100, 1, 2, 1, PAPER, ANSWERING)
    assert w.written() == Computed(predicted=10)
