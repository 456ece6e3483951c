"""Scores a group: rewards, penalties, and the advantages of its conversations."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.problems import Problem
from pipeline.rewards.advantages import group_advantages, group_rewards
from pipeline.rewards.episode_scoring import episode_reward, scored_episodes, scores_episodes
from pipeline.rewards.overlong import overlong_penalties
from pipeline.rewards.scoring import BadReward, reward
from pipeline.rollout.episodes import EpisodeGroup
from pipeline.sections import ModelSection, ObjectiveSection


@dataclass(frozen=True)
class GroupScores:
    """The scores of a group's G episodes and their C conversations."""

    rewards: np.ndarray  # the scorer's reward of each episode, float32 [G]; 0 where the answer was cut
    penalties: np.ndarray  # for over-long responses, from -1 to 0, float32 [G]
    conversation_rewards: np.ndarray | None  # float32 [C]; None if the task's scorer gives none
    advantages: np.ndarray  # from all of the above, float32 [C]


def score_group(
    group: EpisodeGroup,
    problem: Problem,
    objective: ObjectiveSection,
    modules: Mapping[str, str],
    model: ModelSection,
) -> GroupScores:
    """Score every episode of a group. A cut answer has reward 0.

    Args:
        group: the episodes.
        problem: their problem; its document is not needed.
        objective: the section that says how rewards become advantages.
        modules: scorer.modules of the configuration.
        model: the section whose tokenizer decodes responses for scorers that read them.

    Raises:
        BadReward: the scorer returned something other than finite numbers.
        BadAdvantage: the estimator failed, or returned something other than finite numbers.
        Exception: any error of the task's scorer.
    """
    if scores_episodes(problem.task, modules):
        rewards, of_conversations = _of_episodes(group, problem, modules, model)
    else:
        rewards, of_conversations = _of_answers(group, problem, modules), None
    penalties = overlong_penalties(group, objective.overlong_share)
    shaped = group_rewards(group, rewards + objective.overlong_penalty * penalties, of_conversations)
    return GroupScores(rewards, penalties, of_conversations, group_advantages(shaped, objective.advantage))


def _of_answers(group: EpisodeGroup, problem: Problem, modules: Mapping[str, str]) -> np.ndarray:
    """Rewards of the episodes' answers, float32 [G]."""
    return np.array(
        [
            0.0 if cut else reward(problem.task, answer, problem.answers, modules)
            for answer, cut in zip(group.episode_answers, group.cut_answers, strict=True)
        ],
        np.float32,
    )


def _of_episodes(
    group: EpisodeGroup, problem: Problem, modules: Mapping[str, str], model: ModelSection
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rewards of the episodes, float32 [G], and of their conversations, float32 [C] or None."""
    episodes = scored_episodes(group, problem, model)
    given = [episode_reward(problem.task, episode, modules) for episode in episodes]
    rewards = np.array([0.0 if e.cut else g.reward for e, g in zip(episodes, given, strict=True)], np.float32)
    without = [i for i, g in enumerate(given) if g.conversations is None]
    if len(without) == len(given):
        return rewards, None
    if without:
        raise BadReward(
            f"the scorer of task {problem.task!r} gave conversations rewards in some episodes of a group, and none in "
            f"episode {without[0]}"
        )
    of_conversations = np.zeros(len(group.episodes), np.float32)
    for episode, g in enumerate(given):
        of_conversations[group.episodes == episode] = g.conversations
    return rewards, of_conversations
