"""What scorers and estimators of one's own may return, and what is refused before it becomes an advantage."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import CONFIGS
from pipeline.problems import Problem
from pipeline.rewards.advantages import BadAdvantage, GroupRewards, group_advantages, group_rewards
from pipeline.rewards.episode_scoring import EpisodeReward, ScoredEpisode, episode_scorer
from pipeline.rewards.group_scores import GroupScores, score_group
from pipeline.rewards.scoring import BadReward
from pipeline.rollout.episodes import (
    Completion,
    Conversation,
    Episode,
    EpisodeGroup,
    GroupRecord,
    ScoredGroup,
    pack_group,
    scored_group,
)
from pipeline.run.metrics import conversation_rewards
from pipeline.sections import ModelSection, ObjectiveSection

MODEL = ModelSection(path=str(CONFIGS / "models" / "tiny"))


def group_of(*lengths: int, roles: tuple[str, ...] = ("gate", "answer")) -> EpisodeGroup:
    """An episode for each length: a response of that many tokens for each role but the last, which has one."""

    def conversation(role: str, n: int) -> Conversation:
        return Conversation(role, [1], Completion([5] * n, [-1.0] * n, [0] * n, "stop"))

    return pack_group(
        "p", [Episode([*(conversation(r, n) for r in roles[:-1]), conversation(roles[-1], 1)]) for n in lengths]
    )


RETURNED: list = []


@episode_scorer
def returns(episode: ScoredEpisode) -> EpisodeReward:
    return EpisodeReward(*RETURNED)


@episode_scorer
def counts_in_the_metadata(episode: ScoredEpisode) -> EpisodeReward:
    episode.metadata["seen"].append(1)
    return EpisodeReward(float(len(episode.metadata["seen"])))


@episode_scorer
def longer_gates(episode: ScoredEpisode) -> EpisodeReward:
    return EpisodeReward(1.0, [float(c.role == "gate" and c.response_tokens > 1) for c in episode.conversations])


@episode_scorer
def answers_less_than_gates(episode: ScoredEpisode) -> EpisodeReward:
    return EpisodeReward(1.0, [float(c.role == "gate") for c in episode.conversations])


def scores_of(group: EpisodeGroup, scorer, advantage: str = "mean") -> GroupScores:
    problem = Problem("p", "q", ("a",), task="mine", metadata={"seen": []})
    modules = {"mine": f"{__name__}:{scorer.__name__}"}
    return score_group(group, problem, ObjectiveSection(advantage=advantage), modules, MODEL)


def scored(group: EpisodeGroup, scorer, advantage: str = "mean") -> ScoredGroup:
    return scored_group(group, **vars(scores_of(group, scorer, advantage)))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, 1.0], "returned 1.0 as rewards of conversations"),
        ([1.0, "11"], "for conversation 0, returned '1'"),
        ([1e39], "not a finite number"),
        ([10**400], "not a finite number"),
        ([np.float16(math.inf)], "not a finite number"),
        ([1.0, [math.nan, 0.0]], "for conversation 0, returned nan"),
        ([np.complex64(1)], "not a finite number"),
        (["1"], "not a finite number"),
    ],
)
def test_a_reward_that_is_none_is_refused(returned, message, monkeypatch):
    monkeypatch.setattr(f"{__name__}.RETURNED", returned)
    with pytest.raises(BadReward, match=message):
        scores_of(group_of(1, 1), returns)


def test_a_reward_may_be_any_number_of_python_or_numpy(monkeypatch):
    for one in (1, True, np.bool_(True), np.float16(1), np.int8(1)):
        monkeypatch.setattr(f"{__name__}.RETURNED", [one, [one, one]])
        scores = scores_of(group_of(1, 1), returns)
        assert scores.rewards.tolist() == [1, 1] and scores.conversation_rewards.tolist() == [1] * 4


def test_a_scorer_that_changes_the_metadata_changes_its_episodes_alone():
    assert scores_of(group_of(1, 1, 1), counts_in_the_metadata).rewards.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1"] * 4, "an array of <U1, not of numbers"),
        (np.ones(4) * 1j, "an array of complex128"),
        ([None] * 4, "of object"),
    ],
)
def test_an_estimator_returns_numbers(values, message, monkeypatch):
    monkeypatch.setattr(f"{__name__}.RETURNED", values)
    with pytest.raises(BadAdvantage, match=message):
        group_advantages(group_rewards(group_of(1, 1), np.zeros(2)), f"{__name__}:estimates")
    monkeypatch.setattr(f"{__name__}.RETURNED", [True, False, True, True])
    assert group_advantages(group_rewards(group_of(1, 1), np.zeros(2)), f"{__name__}:estimates").sum() == 3


def estimates(group: GroupRewards):
    return RETURNED


def test_dynamic_sampling_keeps_a_group_whose_turns_differ():
    assert scored(group_of(3, 1, 1), longer_gates, "gru_mem").is_informative
    assert not scored(group_of(1, 1, 1), longer_gates, "gru_mem").is_informative
    assert not scored(group_of(3, 1, 1), longer_gates, "mean").is_informative  # which trains nothing of it
    # A gate is not compared with an answer, so that each having its own reward is no difference.
    assert not scored(group_of(1, 1), answers_less_than_gates, "reward").is_informative


def test_a_role_is_spelled_as_a_metric():
    group = group_of(1, 1, roles=("gate 1", "gate-1", "Lösung"))
    own = GroupRecord.of(
        replace(scored(group, longer_gates), conversation_rewards=np.array([1, 0, 0, 1, 0, 1], np.float32)),
        group_id="g",
        generator="g-0",
        generation_seconds=1.0,
    )
    assert conversation_rewards([own]) == {"turn_reward": 0.5, "turn_reward_L_sung": 0.5, "turn_reward_gate_1": 0.5}
