"""Forests against what each token of each conversation has to see."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learning.forest import Block, Forest, build_forest
from pipeline.rollout.prefix_tree import PrefixTree
from tests.support.forests import seen_by

few_words = st.integers(1, 3).flatmap(
    lambda words: st.lists(st.lists(st.integers(1, words), min_size=1, max_size=12), min_size=1, max_size=9)
)


@given(few_words, st.sampled_from([1, 2, 4]))
def test_a_token_sees_the_tokens_of_its_conversation_up_to_itself_once_and_no_other(lists, least_shared):
    sequences = [np.array(tokens) for tokens in lists]
    tree = PrefixTree.of(sequences, least_shared)
    forest, places = build_forest(tree.lengths.tolist(), tree.shared.tolist())
    assert forest.tokens == tree.tokens()
    expected, row = np.zeros((forest.tokens, forest.tokens), np.int64), np.zeros(forest.tokens, np.int64)
    for c, at in zip(tree.order, places, strict=True):
        assert len(at) == len(sequences[c])
        assert all(row[place] in (0, token) for place, token in zip(at, sequences[c], strict=True))
        row[at] = sequences[c]
        for t, place in enumerate(at):
            expected[place, at[: t + 1]] = 1
    assert row.all()  # every place of the row is some conversation's
    assert (seen_by(forest) == expected).all()


@given(few_words)
def test_branches_are_not_empty_and_a_query_is_in_one_block_of_a_level(lists):
    tree = PrefixTree.of([np.array(tokens) for tokens in lists], least_shared=1)
    forest, _ = build_forest(tree.lengths.tolist(), tree.shared.tolist())
    assert (np.diff(forest.branches) > 0).all() and forest.branches[0] == 0
    for level in forest.levels:
        queries = np.zeros(forest.tokens, np.int64)
        for block in level:
            assert block.queries.stop > block.queries.start >= block.keys.stop > block.keys.start
            queries[block.queries] += 1
        assert level and queries.max() == 1


def block(first_query, end_query, first_key, end_key) -> Block:
    return Block(slice(first_query, end_query), slice(first_key, end_key))


def test_conversations_that_share_nothing_are_branches():
    forest, places = build_forest([3, 1, 2], [0, 0, 0])
    assert forest == Forest((0, 3, 4, 6))
    assert [at.tolist() for at in places] == [[0, 1, 2], [3], [4, 5]]


def test_equal_conversations_are_one_branch():
    forest, places = build_forest([3, 3, 2], [0, 3, 0])
    assert forest == Forest((0, 3, 5))
    assert [at.tolist() for at in places] == [[0, 1, 2], [0, 1, 2], [3, 4]]


def test_a_conversation_that_begins_with_another_goes_on_from_it():
    """A chat that grows is one branch, but what also goes on from an earlier one is not."""
    forest, places = build_forest([3, 5, 6], [0, 3, 5])
    assert forest == Forest((0, 6))
    assert [at.tolist() for at in places] == [[0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    forest, _ = build_forest([3, 5, 4], [0, 3, 3])
    assert forest == Forest((0, 5, 6), ((block(5, 6, 0, 3),),))


def test_branches_that_share_a_prefix_are_in_one_block():
    forest, _ = build_forest([6, 6, 7], [0, 5, 5])
    assert forest == Forest((0, 6, 7, 9), ((block(6, 9, 0, 5),),))


def test_branches_that_share_two_prefixes_have_two_levels():
    """Problem of 2 tokens, two sections of 3, two memories of 1 and 2 tokens below each. The first section follows the
    problem in the row, so one block has both."""
    forest, places = build_forest([6, 7, 6, 7], [0, 5, 2, 5])
    assert forest.branches == (0, 6, 8, 12, 14)
    assert forest.levels == ((block(6, 8, 0, 5), block(8, 14, 0, 2)), (block(12, 14, 8, 11),))
    assert places[3].tolist() == [0, 1, 8, 9, 10, 12, 13]
