"""Prefix trees against what their definition says of every pair and every prefix."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rollout.episodes import scored_group
from pipeline.rollout.prefix_tree import LEAST_SHARED, PrefixTree, common_prefix
from tests.support.reading import PAPER, SECTION_FIRST, reading_group

tokens = st.sampled_from([0, 1, 256, 70_000])
few = st.sampled_from([0, 1])
sequences_of = st.one_of(
    *(st.lists(st.lists(token, max_size=12), min_size=1, max_size=9) for token in (tokens, few, st.just(7)))
).map(lambda lists: [np.array(tokens, np.int32) for tokens in lists])
least_shared = st.integers(1, 5)


def shared_by(a, b) -> int:
    """The number of first tokens that are equal, counted one by one."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def distinct_prefixes(sequences) -> int:
    """The nodes of the trie of some sequences."""
    return len({tuple(sequence[: n + 1]) for sequence in sequences for n in range(len(sequence))})


def in_tree(tree: PrefixTree, a: int, b: int) -> int:
    """What the conversations at two places share in the tree."""
    return int(tree.shared[a + 1 : b + 1].min())


def pairs(tree: PrefixTree):
    return [(a, b) for b in range(len(tree)) for a in range(b)]


@given(sequences_of, least_shared)
def test_every_conversation_is_in_the_tree_once(sequences, least):
    tree = PrefixTree.of(sequences, least)
    assert sorted(tree.order.tolist()) == list(range(len(sequences)))
    assert tree.lengths.tolist() == [len(sequences[c]) for c in tree.order]
    assert tree.shared[0] == 0


@given(sequences_of)
def test_all_that_is_shared_is_found(sequences):
    tree = PrefixTree.of(sequences, least_shared=1)
    for a, b in pairs(tree):
        assert in_tree(tree, a, b) == shared_by(sequences[tree.order[a]], sequences[tree.order[b]])
    assert tree.tokens() == distinct_prefixes(sequences)


@given(sequences_of, least_shared)
def test_what_is_shared_is_equal_and_no_split_saves_fewer_tokens_than_the_least(sequences, least):
    tree = PrefixTree.of(sequences, least)
    for a, b in pairs(tree):
        assert in_tree(tree, a, b) <= shared_by(sequences[tree.order[a]], sequences[tree.order[b]])
    prefixes = {tuple(sequences[tree.order[i]][:n].tolist()) for i, n in enumerate(tree.shared)} | {()}
    for inner in prefixes:
        for outer in prefixes - {inner}:
            assert outer != inner[: len(outer)] or len(inner) - len(outer) >= least


@given(sequences_of, least_shared)
def test_fewer_tokens_than_the_least_are_given_up_between_neighbours(sequences, least):
    tree = PrefixTree.of(sequences, least)
    for i in range(1, len(tree)):
        a, b = tree.order[i - 1 : i + 1]
        assert shared_by(sequences[a], sequences[b]) - tree.shared[i] < least


@given(sequences_of, least_shared, st.data())
def test_a_part_of_a_tree_is_a_tree_that_shares_the_same(sequences, least, data):
    tree = PrefixTree.of(sequences, least)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(tree), max_size=len(tree))))
    part = tree.where(chosen)
    assert part.order.tolist() == [c for c in tree.order if chosen[c]]
    assert part.lengths.tolist() == [len(sequences[c]) for c in part.order]
    place = {c: i for i, c in enumerate(tree.order.tolist())}
    for a, b in pairs(part):
        assert in_tree(part, a, b) == in_tree(tree, place[part.order[a]], place[part.order[b]])
    if least == 1:
        assert part.tokens() == distinct_prefixes([sequences[c] for c in part.order])
    assert not len(part) or part.shared[0] == 0


@given(sequences_of, st.integers(1, 40), st.data())
def test_a_cut_leaves_runs_within_the_budget(sequences, budget, data):
    tree = PrefixTree.of(sequences, least_shared=1)
    start = data.draw(st.integers(0, len(tree) - 1))
    stop = data.draw(st.integers(start + 1, len(tree)))
    runs = tree.cut(budget, start, stop)
    assert [place for run in runs for place in range(*run)] == list(range(start, stop))
    for a, b in runs:
        assert tree.tokens(a, b) == distinct_prefixes([sequences[c] for c in tree.order[a:b]])
        assert tree.tokens(a, b) <= budget or b - a == 1
    for (a, _), (_, b) in zip(runs, runs[1:], strict=False):
        assert tree.tokens(a, b) > budget  # neighbours that fit the budget together are together


def test_a_tree_is_cut_where_least_is_computed_again():
    """Two sections with three conversations each below one problem: first between the sections."""
    tree = PrefixTree(np.arange(6), np.full(6, 130), np.array([0, 110, 110, 10, 110, 110]))
    assert tree.tokens() == 10 + 2 * 100 + 6 * 20
    assert tree.cut(330) == [(0, 6)]
    assert tree.cut(329) == tree.cut(170) == [(0, 3), (3, 6)]
    assert tree.cut(169) == [(0, 2), (2, 3), (3, 5), (5, 6)]
    assert tree.cut(100) == [(i, i + 1) for i in range(6)]  # each is over the budget
    assert tree.cut(inf) == [(0, 6)]


def test_conversations_without_sharing():
    tree = PrefixTree.without_sharing(np.array([5, 3, 8]))
    assert tree.order.tolist() == [0, 1, 2] and tree.lengths.tolist() == [5, 3, 8] and tree.tokens() == 16
    assert tree.cut(8) == [(0, 2), (2, 3)]


@pytest.mark.parametrize(("a", "b", "n"), [([], [1], 0), ([1], [2], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [1, 2], 2)])
def test_a_common_prefix(a, b, n):
    assert common_prefix(np.array(a), np.array(b)) == common_prefix(np.array(b), np.array(a)) == n


def prefixes_of(layout, **sizes) -> tuple[PrefixTree, int]:
    """The tree in a group's record, and the number of its conversations."""
    group = reading_group(np.random.default_rng(0), layout, vocabulary=1000, **sizes)
    scores = np.zeros(4, np.float32)
    return scored_group(group, scores, scores, np.zeros(len(group.lengths), np.float32)).prefixes, len(group.lengths)


def test_a_group_that_reads_the_section_first_shares_it_at_every_turn():
    tree, conversations = prefixes_of(SECTION_FIRST, section=100, part=20)
    assert conversations == 16
    # Instruction and problem of all turns, three sections of 100; the first with its memory and request.
    assert tree.tokens() < 40 + 3 * 100 + 40 + (16 - 4) * (20 + 20 + 20) + 4 * (20 + 20 + 20 + 20)
    assert (tree.shared >= 20 + 20 + 100).sum() == 3 * 3


def test_a_group_in_the_papers_order_shares_the_first_turn():
    tree, _ = prefixes_of(PAPER, section=100, part=20)
    first_prompt = 20 + 20 + 20 + 100 + 20
    assert (tree.shared == first_prompt).sum() == 3
    assert set(tree.shared.tolist()) == {0, 20, 40, first_prompt}


def test_a_split_that_is_not_worth_it_is_not_made():
    tree, _ = prefixes_of(PAPER, section=100, part=7)  # problem of 7 tokens, instruction and problem of 14
    assert LEAST_SHARED == 16 and set(tree.shared.tolist()) == {0, 7 + 7 + 7 + 100 + 7}
