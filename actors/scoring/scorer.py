"""A scorer: rewards and advantages of whole groups, by the scorer that the problem's task names."""

from collections.abc import Mapping

import ray

from pipeline.problems import Problem
from pipeline.rewards.group_scores import score_group
from pipeline.rewards.scoring import NO_MODULES
from pipeline.rollout.episodes import EpisodeGroup, ScoredGroup, scored_group
from pipeline.sections import ModelSection, ObjectiveSection


@ray.remote
class Scorer:
    """Args:
    objective: how rewards become advantages.
    modules: scorer.modules of the configuration.
    model: has the tokenizer, which is loaded once a scorer reads a response.
    """

    def __init__(
        self,
        objective: ObjectiveSection,
        modules: Mapping[str, str] = NO_MODULES,
        model: ModelSection | None = None,
    ):
        self.objective, self.modules, self.model = objective, modules, model or ModelSection()

    def ready(self) -> None:
        """Returns once this process is up."""

    def score(self, group: EpisodeGroup, problem: Problem) -> ScoredGroup:
        """Score every episode of a group; see `score_group`."""
        return scored_group(group, **vars(score_group(group, problem, self.objective, self.modules, self.model)))
