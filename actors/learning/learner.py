"""A learner: one rank of the gang that trains the policy under ZeRO-3."""

import numpy as np
import ray

from actors.learning.rank import CONCURRENCY_GROUPS, LearnerRank
from actors.learning.tracing import traced
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
        """Fetch this rank's groups of a step; return the indices of lost ones. All ranks fetch before any rank trains.

        Args:
            refs: for each group, by its index in the step, a list with its object reference.
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
        trace: str,
        shown: list[int],
    ) -> list[dict]:
        """Train one step on this rank's share of the fetched groups.

        Args:
            version: the version of the weights before the step.
            updates: this rank's share of each optimizer step, in order (pipeline/learning/packing.py).
            advantages: the advantages of each fetched group's conversations, float32 [C], by the group's index.
            rewards: the rewards of each fetched group's episodes, float32 [G], by the group's index.
            trace: file for a trace of the step (actors/learning/tracing.py); empty: none.
            shown: the fetched groups, by index, whose first episode is sampled for people to read.

        Returns:
            For each update: `loss`, this rank's part of the loss; `metrics`, sums by name
            (pipeline/learning/token_metrics.py); `grad_norm`, None if the update was skipped because the loss or
            gradient was not finite on some rank; `not_finite`, the indices of this rank's groups that caused it; and
            `learning_rate`, `micro_batches` and `proximal_seconds`. The first has `shown` if this rank computed
            log-probs to show: a reference to them (`Shown`), which are lost with this rank.
        """
        from actors.learning.step import StepTrainer

        groups, self._groups = self._groups, {}
        trainer = StepTrainer(self.engine, self.config.objective, groups, advantages, rewards, self.moved, shown)
        with traced(trace):
            rows = trainer.train(version, updates)
        if trainer.logprobs:
            rows[0]["shown"] = ray.put(trainer.logprobs)
        return rows
