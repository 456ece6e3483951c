"""Advantages and over-long shaping against numbers worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rewards.advantages import ADVANTAGES, GroupRewards, group_advantages
from pipeline.rewards.overlong import overlong_penalties, soft_penalty
from pipeline.rollout.episodes import Completion, Conversation, Episode, pack_group


def advantages_of(rewards: np.ndarray, kind: str) -> np.ndarray:
    """Of episodes of one conversation each."""
    n = len(rewards)
    one = GroupRewards(rewards, None, np.arange(n), np.zeros(n, int), np.ones(n, int), ("answer",) * n)
    return group_advantages(one, kind)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", [0.75, -0.25, -0.25, -0.25]),
        ("std", [1.5, -0.5, -0.5, -0.5]),  # the sample's variance is (0.75² + 3 · 0.25²) / 3 = 0.25
        ("leave_one_out", [1.0, -1 / 3, -1 / 3, -1 / 3]),
        ("reward", [1.0, 0.0, 0.0, 0.0]),
        ("none", [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_advantages_by_hand(kind, expected):
    advantages = advantages_of(np.array([1.0, 0.0, 0.0, 0.0]), kind)
    assert advantages.dtype == np.float32 and advantages == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in ADVANTAGES if kind not in ("reward", "gru_mem")])
def test_a_group_of_equal_rewards_has_no_advantage(kind):
    assert advantages_of(np.full(8, 0.25), kind).tolist() == [0.0] * 8


@given(st.lists(st.integers(0, 100), min_size=2, max_size=16))
def test_leave_one_out_is_the_reward_less_the_mean_of_the_others(percent):
    rewards = [p / 100 for p in percent]
    for i, advantage in enumerate(advantages_of(np.array(rewards), "leave_one_out")):
        others = rewards[:i] + rewards[i + 1 :]
        assert advantage == pytest.approx(rewards[i] - sum(others) / len(others), abs=1e-6)


def test_soft_penalty_by_hand():
    """A limit of 100 with a tail of 20: free up to 80, half at 90, full at 100; no limit, no penalty."""
    lengths, limits = np.array([1, 80, 90, 100, 5000]), np.array([100, 100, 100, 100, 0])
    assert soft_penalty(lengths, limits, 0.2) == pytest.approx([0, 0, -0.5, -1, 0])


def test_an_episode_is_penalized_by_the_mean_of_its_responses():
    def conversation(tokens: int, limit: int) -> Conversation:
        response = Completion([5] * tokens, [-1.0] * tokens, [0] * tokens, "stop", max_tokens=limit)
        return Conversation("memory", [1], response)

    episodes = [
        Episode([conversation(10, 10), conversation(3, 10), conversation(9, 10)]),  # -1, 0, -0.5
        Episode([conversation(0, 10)]),
    ]
    assert overlong_penalties(pack_group("p", episodes), share=0.2) == pytest.approx([-0.5, 0.0])
