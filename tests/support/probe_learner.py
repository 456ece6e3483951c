"""A learner gang that tells what its model is and computes."""

import ray
import torch

from actors.learning.gang import Gang
from actors.learning.rank import CONCURRENCY_GROUPS, LearnerRank
from pipeline.learning.forest import Forest


@ray.remote(concurrency_groups=CONCURRENCY_GROUPS)
class ProbeLearner(LearnerRank):
    def engine_options(self) -> dict:
        return {"updates": 1, "with_reference": True}

    def buffers(self) -> list[dict[str, torch.Tensor]]:
        """Of the policy and of the reference model."""
        return [dict(engine.module.model.named_buffers()) for engine in (self.engine._engine, self.engine._reference)]

    @torch.no_grad()
    def logprobs(self, rows: list[tuple[list[int], list[int]]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Log-probs of each response after its prompt, float32 [R], under policy and reference."""
        results = []
        for prompt, response in rows:
            row = torch.tensor(prompt + response)
            at = torch.arange(len(prompt) - 1, len(row) - 1)
            inputs = [row, torch.arange(len(row)), at, torch.tensor(response), Forest((0, len(row)))]
            results.append((self.engine.forward(*inputs)[0], self.engine.reference(*inputs)))
        return results


class ProbeGang(Gang):
    LEARNER = ProbeLearner
