"""A learner of supervised fine-tuning: one rank of the gang that learns the responses of examples under ZeRO-3."""

from dataclasses import dataclass

import ray

from actors.learning.rank import CONCURRENCY_GROUPS, LearnerRank
from pipeline.fine_tuning.examples import ExampleBatch, build_example_micro_batch


@dataclass(frozen=True)
class FineTuningUpdate:
    """One rank's share of an optimizer step: micro-batches of example indices, and the learned tokens of all ranks."""

    micro_batches: list[list[int]]
    tokens: int


@ray.remote(concurrency_groups=CONCURRENCY_GROUPS)
class FineTuningLearner(LearnerRank):
    def engine_options(self) -> dict:
        return {"updates": self.config.fine_tuning.steps}

    def train(self, update: FineTuningUpdate, ref: list[ray.ObjectRef]) -> dict:
        """Train one optimizer step on this rank's share.

        Args:
            update: the share.
            ref: a list with the object reference of the step's `ExampleBatch`.

        Returns:
            `loss`, this rank's part of the mean loss in nats per token; `grad_norm`, None if the step was skipped
            because a gradient was not finite on some rank; `learning_rate`.
        """
        import torch

        from pipeline.learning.policy import inputs_of, tensors

        batch: ExampleBatch = ray.get(ref[0])
        total = 0.0
        for number, items in enumerate(update.micro_batches):
            self.moved()
            row = tensors(build_example_micro_batch(items, batch), self.engine.device)
            logprobs, _ = self.engine.forward(*inputs_of(row))
            loss = -torch.where(row["is_learned"], logprobs, 0.0).sum() / update.tokens
            self.engine.backward(loss, last=number == len(update.micro_batches) - 1)
            total += float(loss.detach())
        grad_norm, learning_rate = self.engine.step()
        return {"loss": total, "grad_norm": grad_norm, "learning_rate": learning_rate}
