"""Packing: everything is trained once, no rank runs out of step, and the gradient knows nothing of any of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learning.packing import assign_items, build_micro_batch, pack_items, plan_update, split_updates
from pipeline.rollout.episodes import Completion, Conversation, Episode, pack_group
from tests.support.groups import random_group

group_lengths = st.lists(
    st.lists(st.integers(1, 50), min_size=1, max_size=9).map(np.array), min_size=1, max_size=12
).map(lambda groups: dict(enumerate(groups)))


@given(group_lengths, st.integers(1, 8), st.integers(50, 300))
def test_every_conversation_is_trained_once_within_the_budget_in_equal_numbers_of_micro_batches(lengths, ranks, budget):
    plan = plan_update(lengths, ranks, budget)
    assert len(plan) == ranks
    assert len({len(micro_batches) for micro_batches in plan}) == 1
    items = [item for micro_batches in plan for micro_batch in micro_batches for item in micro_batch]
    assert sorted(items) == [(g, c) for g, group in lengths.items() for c in range(len(group))]
    assert all(sum(lengths[g][c] for g, c in m) <= budget for micro_batches in plan for m in micro_batches)
    # An empty micro-batch is run only where there is nothing left to split.
    assert all(len(m) <= 1 for micro_batches in plan if [] in micro_batches for m in micro_batches)


@given(group_lengths, st.integers(1, 4))
def test_a_group_is_trained_on_one_rank_unless_there_are_more_ranks_than_groups(lengths, ranks):
    homes = [{g for g, _ in items} for items in assign_items(lengths, ranks)]
    if len(lengths) >= ranks:
        assert sum(len(home) for home in homes) == len(lengths)
        assert all(homes)


@pytest.mark.parametrize(("groups", "ranks"), [(8, 24), (16, 96), (16, 24), (3, 4), (1, 7)])
def test_few_groups_are_divided_evenly_among_many_ranks(groups, ranks):
    """As in the paper's presets: eight groups of 112 conversations on 24 ranks, sixteen on 96."""
    lengths = {g: np.full(112, 7000) for g in range(groups)}
    counts = [len(items) for items in assign_items(lengths, ranks)]
    assert sum(counts) == groups * 112 and max(counts) <= 1.1 * groups * 112 / ranks


def test_a_conversation_with_nothing_to_train_is_left_out():
    assert plan_update({0: np.array([5, 0, 7])}, 1, 100) == [[[(0, 2), (0, 0)]]]
    assert plan_update({0: np.array([0, 0])}, 2, 100) == [[[]], [[]]]


def test_a_conversation_over_the_budget_gets_a_micro_batch_of_its_own():
    assert pack_items([(0, 0), (0, 1)], {(0, 0): 500, (0, 1): 5}, 100) == [[(0, 0)], [(0, 1)]]


@given(st.integers(1, 8), st.integers(1, 16), st.integers(0, 99))
def test_updates_are_disjoint_sets_of_as_many_groups(size, updates, seed):
    sets = split_updates(size * updates, updates, (seed, 5))
    assert [len(groups) for groups in sets] == [size] * updates
    assert sorted(g for groups in sets for g in groups) == list(range(size * updates))
    assert sets == split_updates(size * updates, updates, (seed, 5))


def test_groups_are_dealt_out_at_random():
    """Not in the order in which they were finished, and differently in every step."""
    assert (
        split_updates(64, 4, (0, 0))
        != split_updates(64, 4, (0, 1))
        != [list(range(i, i + 16)) for i in (0, 16, 32, 48)]
    )


def test_every_response_token_has_the_advantage_of_its_conversation_and_the_reward_of_its_episode():
    group = random_group(np.random.default_rng(1), conversations=4)
    advantages, rewards = np.arange(len(group.episodes), dtype=np.float32), np.array([0.5, 1.5, 2.5], np.float32)
    items = [(7, c) for c in range(len(group.episodes))]
    row = build_micro_batch(items, {7: group}, {7: advantages}, {7: rewards})
    counts = np.diff(group.response_offsets)
    assert row.advantages.tolist() == np.repeat(advantages, counts).tolist()
    assert row.rewards.tolist() == np.repeat(rewards[group.episodes], counts).tolist()


@pytest.mark.parametrize(("prompt", "logprob", "message"), [([], -1.0, "prompt"), ([1], float("nan"), "not finite")])
def test_an_unusable_conversation_is_refused(prompt, logprob, message):
    with pytest.raises(ValueError, match=message):
        pack_group("p", [Episode([Conversation("memory", prompt, Completion([5], [logprob], [0], "stop"))])])
