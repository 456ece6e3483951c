"""A scorer: an actor that computes the rewards and advantages of groups, by the scorer named by the problem's task."""

from collections.abc import Mapping

import ray

from pipeline.problems import Problem
from pipeline.rewards.group_scores import score_group
from pipeline.rewards.scoring import NO_MODULES
from pipeline.rollout.episodes import EpisodeGroup, ScoredGroup, scored_group
from pipeline.sections import ModelSection, ObjectiveSection


@ray.remote
class Scorer:
    """Scores whole groups.

    Args:
        objective: the section that says how rewards become advantages.
        modules: scorer.modules of the configuration.
        model: the section of the model, whose tokenizer is loaded when a scorer first reads a response.
    """

    def __init__(
        self,
        objective: ObjectiveSection,
        modules: Mapping[str, str] = NO_MODULES,
        model: ModelSection | None = None,
    ):
        self.objective, self.modules, self.model = objective, modules, model or ModelSection()

    def ready(self) -> None:
        """Return once this process is up."""

    def score(self, group: EpisodeGroup, problem: Problem) -> ScoredGroup:
        """Score a group (`score_group`)."""
        return scored_group(group, **vars(score_group(group, problem, self.objective, self.modules, self.model)))
