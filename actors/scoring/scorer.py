"""A scorer: rewards and advantages of whole groups, by the scorer that the problem's task names."""

from collections.abc import Mapping

import numpy as np
import ray

from pipeline.rewards.advantages import group_advantages
from pipeline.rewards.overlong import overlong_penalties
from pipeline.rewards.scoring import NO_MODULES, reward
from pipeline.rollout.episodes import EpisodeGroup, ScoredGroup, scored_group
from pipeline.sections import ObjectiveSection


@ray.remote
class Scorer:
    """Args:
    objective: how rewards become advantages.
    modules: scorer.modules of the configuration.
    """

    def __init__(self, objective: ObjectiveSection, modules: Mapping[str, str] = NO_MODULES):
        self.objective, self.modules = objective, modules

    def ready(self) -> None:
        """Returns once this process is up."""

    def score(self, group: EpisodeGroup, task: str, answers: tuple[str, ...]) -> ScoredGroup:
        """Score every episode of a group. A cut answer has reward 0.

        Raises:
            BadReward: the scorer returned NaN, infinity or no number.
            Exception: whatever the task's scorer raises.
        """
        rewards = np.array(
            [
                0.0 if cut else reward(task, answer, answers, self.modules)
                for answer, cut in zip(group.episode_answers, group.cut_answers, strict=True)
            ],
            np.float32,
        )
        penalties = overlong_penalties(group, self.objective.overlong_share)
        advantages = group_advantages(rewards + self.objective.overlong_penalty * penalties, self.objective.advantage)
        return scored_group(group, rewards, penalties, advantages)
