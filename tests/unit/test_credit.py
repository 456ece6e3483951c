"""Credit for each conversation: rewards, turns and advantages of ragged groups, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.problems import Problem
from pipeline.rewards.advantages import ADVANTAGES, BadAdvantage, group_advantages, group_rewards
from pipeline.rewards.episode_scoring import EpisodeReward, ScoredEpisode, episode_reward, episode_scorer
from pipeline.rewards.group_scores import score_group
from pipeline.rewards.scoring import BadReward
from pipeline.rollout.episodes import Completion, Conversation, Episode, EpisodeGroup, pack_group
from pipeline.run.metrics import conversation_rewards
from pipeline.run.rules import check_config
from pipeline.sections import ModelSection, ObjectiveSection
from tests.support.groups import random_group, record_of
from tests.unit.test_config import sound

MODEL = ModelSection(path="never/loaded")  # no scorer here reads a text
HERE = __name__
NAN = float("nan")


def ragged(*roles: str) -> EpisodeGroup:
    """A group of episodes, a letter for each conversation: m a memory, a the answer. Its responses have one token."""

    def conversation(role: str) -> Conversation:
        return Conversation({"m": "memory", "a": "answer"}[role], [1], Completion([5], [-1.0], [0], "stop"))

    return pack_group("p", [Episode([conversation(role) for role in of_episode]) for of_episode in roles])


@episode_scorer
def counts_turns(episode: ScoredEpisode) -> EpisodeReward:
    return EpisodeReward(len(episode.conversations), [c.turn for c in episode.conversations])


@episode_scorer
def outcome_only(episode: ScoredEpisode) -> EpisodeReward:
    return EpisodeReward(1.0)


@episode_scorer
def forgets_the_last(episode: ScoredEpisode) -> EpisodeReward:
    return EpisodeReward(1.0, [0.0] * (len(episode.conversations) - 1))


@episode_scorer
def returns_nan(episode: ScoredEpisode) -> EpisodeReward:
    return EpisodeReward(1.0, [0.0, NAN, 0.0][: len(episode.conversations)])


@episode_scorer
def returns_a_number(episode: ScoredEpisode) -> float:
    return 1.0


@episode_scorer
def skips_short_ones(episode: ScoredEpisode) -> EpisodeReward:
    return EpisodeReward(1.0, [0.0] * 3 if len(episode.conversations) == 3 else None)


@episode_scorer
def sees_all(episode: ScoredEpisode) -> EpisodeReward:
    assert (episode.problem_id, episode.question, episode.answers) == ("q", "city Rex", ("Paris",))
    assert episode.metadata == {"hops": 1}
    return EpisodeReward(
        float(episode.cut), [c.response_tokens + (c.finish_reason == "length") for c in episode.conversations]
    )


def scored(group: EpisodeGroup, scorer, advantage: str = "mean"):
    problem = Problem("q", "city Rex", ("Paris",), task="mine", metadata={"hops": 1})
    modules = {"mine": f"{HERE}:{scorer.__name__}"}
    return score_group(group, problem, ObjectiveSection(advantage=advantage), modules, MODEL)


def test_turns_and_who_is_still_running():
    group = group_rewards(ragged("mma", "a", "ma"), np.zeros(3))
    assert group.turns.tolist() == [0, 1, 2, 0, 0, 1]
    assert [group.running(turn).tolist() for turn in range(4)] == [[0, 1, 2], [0, 2], [0], []]
    assert group.at(1).tolist() == [1, 5] and group.roles[5] == "answer"
    assert group.of_episodes(np.array([7, 8, 9])).tolist() == [7, 7, 7, 8, 9, 9]
    assert group.response_lengths.tolist() == [1] * 6


def test_the_scorer_sees_problem_and_responses_and_its_rewards_keep_their_places():
    scores = scored(ragged("mma", "a", "ma"), counts_turns)
    assert scores.rewards.tolist() == [3, 1, 2]
    assert scores.conversation_rewards.tolist() == [0, 1, 2, 0, 0, 1]
    assert scores.advantages.tolist() == [1, 1, 1, -1, 0, 0]


def test_an_episode_whose_answer_was_cut_has_reward_0_and_its_conversations_keep_theirs():
    cut = Conversation("answer", [1], Completion([5, 6], [-1.0] * 2, [0] * 2, "length"))
    good = Conversation("answer", [1], Completion([5], [-1.0], [0], "stop"))
    scores = scored(pack_group("p", [Episode([cut]), Episode([good])]), sees_all)
    assert scores.rewards.tolist() == [0, 0] and scores.conversation_rewards.tolist() == [3, 1]


def test_a_scorer_of_episodes_need_not_reward_conversations():
    scores = scored(ragged("ma", "a"), outcome_only)
    assert scores.conversation_rewards is None and scores.rewards.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (forgets_the_last, "'mine' returned 2 rewards for an episode of 3 conversations"),
        (returns_nan, "'mine', for conversation 1, returned nan, not a finite number"),
        (returns_a_number, "'mine' returned 1.0, not an EpisodeReward"),
        (skips_short_ones, "rewards in some episodes of a group, and none in episode 1"),
    ],
)
def test_a_bad_reward_of_conversations_is_refused(scorer, message):
    with pytest.raises(BadReward, match=message):
        scored(ragged("mma", "ma"), scorer)


def test_a_scorer_of_answers_scores_an_episode_by_its_answer():
    episode = ScoredEpisode("q", "city Rex", ("Paris",), {}, (), "\\boxed{ Paris }", False)
    assert episode_reward("qa", episode) == EpisodeReward(1.0)


@pytest.mark.parametrize("kind", [kind for kind in ADVANTAGES if kind != "gru_mem"])
def test_estimators_of_episodes_give_all_their_conversations_the_same(kind):
    """Also in a group of as many conversations as episodes, one of which has none."""
    for group, rewards in ((ragged("mma", "a", "ma"), [1.0, 0.0, 0.5]), (ragged("ma", ""), [1.0, 0.0])):
        r = np.array(rewards)
        expected = {
            "mean": r - r.mean(),
            "std": (r - r.mean()) / (r.std(ddof=1) + 1e-6),
            "leave_one_out": (r - r.mean()) * len(r) / (len(r) - 1),
            "reward": r,
            "none": 0 * r,
        }[kind]
        given = group_advantages(group_rewards(group, r), kind)
        assert given.dtype == np.float32
        assert given == pytest.approx([expected[episode] for episode in group.episodes], abs=1e-7)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-1, 2)), min_size=2, max_size=6), st.integers(0, 99))
def test_gru_mem_is_that_of_a_naive_calculation(episodes, seed):
    """Each turn less the mean over the episodes that still read then; the answer less that of answers then."""
    group = ragged(*("m" * memories + "a" for memories, _ in episodes))
    rewards = [reward for _, reward in episodes]
    of_turns = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], len(group.episodes))
    table = iter(of_turns)
    turns = [[next(table) for _ in range(memories + 1)] for memories, _ in episodes]
    expected = []
    for (memories, reward), own in zip(episodes, turns, strict=True):
        for t, r in enumerate(own):
            alike = [
                other[t] for (n, _), other in zip(episodes, turns, strict=True) if (t < n if t < memories else t == n)
            ]
            expected.append(0.9 * (reward - sum(rewards) / len(rewards)) + 0.1 * (r - sum(alike) / len(alike)))
    given = group_advantages(group_rewards(group, np.array(rewards), of_turns), "gru_mem")
    assert given == pytest.approx(expected, abs=1e-6)


def test_gru_mem_without_rewards_of_conversations_is_refused():
    with pytest.raises(BadAdvantage, match="needs a reward for each conversation"):
        scored(ragged("ma", "a"), outcome_only, "gru_mem")
    with pytest.raises(ValueError, match="gru_mem needs rewards of conversations, which no built-in scorer gives"):
        check_config(sound(objective={"advantage": "gru_mem"}))
    check_config(sound(objective={"advantage": "gru_mem"}, scorer={"modules": {"mine": "my_rewards:score"}}))


def of_episodes(group):
    return np.arange(len(group.rewards))


def of_a_third_shape(group):
    return np.zeros(1)


def not_finite(group):
    return np.full(len(group.episodes), math.inf)


def too_large(group):
    return np.full(len(group.episodes), 1e300)


def raises(group):
    raise KeyError("turns")


def test_an_estimator_may_return_a_number_for_each_episode():
    group = group_rewards(ragged("mma", "ma"), np.zeros(2))
    assert group_advantages(group, f"{HERE}:of_episodes").tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (of_a_third_shape, r"shape \(1,\) for 5 conversations of 2 episodes; it must be \(5,\) or \(2,\)"),
        (not_finite, "returned inf for conversation 0 of episode 0"),
        (too_large, r"returned 1e\+300 for conversation 0 of episode 0, not a finite number in float32"),
        (raises, "KeyError: 'turns'"),
    ],
)
def test_a_bad_advantage_is_refused(estimator, message):
    with pytest.raises(BadAdvantage, match=message):
        group_advantages(group_rewards(ragged("mma", "ma"), np.zeros(2)), f"{HERE}:{estimator.__name__}")


def test_the_row_has_the_rewards_of_conversations_by_role_where_there_are_some():
    plain = record_of(random_group(np.random.default_rng(0)), "a", [1, 0, 0])
    assert conversation_rewards([plain]) == {}
    group = ragged("mma", "ma")
    own = replace(record_of(group, "b", [1, 0]), conversation_rewards=np.array([1, 0, 0.5, 1, 0], np.float32))
    means = conversation_rewards([plain, own])
    assert means == {"turn_reward": 0.5, "turn_reward_answer": 0.25, "turn_reward_memory": pytest.approx(2 / 3)}
