"""A learner: one rank of the gang that trains the policy under ZeRO-3."""

import numpy as np
import ray

from actors.learning.rank import CONCURRENCY_GROUPS, LearnerRank
from pipeline.learning.packing import Update


@ray.remote(concurrency_groups=CONCURRENCY_GROUPS)
class Learner(LearnerRank):
    def engine_options(self) -> dict:
        c = self.config
        return {
            "updates": c.train.steps * c.train.updates_per_step,
            "temperature": c.train.temperature,
            "train_entropy": c.objective.entropy_coefficient != 0,
            "with_reference": c.objective.kl_coefficient != 0,
        }

    def fetch(self, refs: dict[int, list]) -> list[int]:
        """Get this rank's groups of a step, before any rank begins with it; return the indices of those that are lost.

        Args:
            refs: for each of the groups, by its index in the step, a list with its object reference.
        """
        self._groups, lost = {}, []
        for index, (ref,) in refs.items():
            self.moved()
            try:
                self._groups[index] = ray.get(ref)
            except ray.exceptions.ObjectLostError:
                lost.append(index)
        return lost

    def train(
        self,
        version: int,
        updates: list[Update],
        advantages: dict[int, np.ndarray],
        rewards: dict[int, np.ndarray],
    ) -> list[dict]:
        """Train one step on this rank's share of the groups that were fetched.

        Args:
            version: of the weights before the step.
            updates: this rank's share of each optimizer step, in order (pipeline/learning/packing.py).
            advantages: of the conversations of each of these groups, float32 [C].
            rewards: of the episodes of each, float32 [G].

        Returns:
            For each update, this rank's part of the `loss`, the sums of its `metrics` by name
            (pipeline/learning/token_metrics.py) and more; `grad_norm` is None if it was skipped, as its loss or
            gradient was not finite on some rank, and `not_finite` names this rank's groups to blame.
        """
        from actors.learning.step import StepTrainer

        groups, self._groups = self._groups, {}
        trainer = StepTrainer(self.engine, self.config.objective, groups, advantages, rewards, self.moved)
        return trainer.train(version, updates)
