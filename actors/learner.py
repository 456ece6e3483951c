"""A learner: one rank of the gang that trains the policy under ZeRO-3."""

import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import ray
import torch

from pipeline.config import Config
from pipeline.objective import token_losses
from pipeline.packing import Item, build_micro_batch
from pipeline.weight_buckets import pack_buckets


@dataclass
class StepSums:
    """What one rank adds up over its micro-batches; the coordinator adds up the ranks (pipeline/metrics.py)."""

    tokens: int = 0
    loss: float = 0.0
    clipped: int = 0
    ratio: float = 0.0
    same_version_tokens: int = 0  # written, prompt and all, by the very weights that the learner has now
    mismatch: float = 0.0  # Σ |learner log-prob - vLLM log-prob| over those
    mismatch_max: float = 0.0
    staleness: float = 0.0  # Σ of versions behind
    staleness_max: int = 0


@ray.remote
class Learner:
    def __init__(self, config: Config, rank: int):
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self.config = config
        self.rank = rank

    def address(self) -> tuple[str, int]:
        """A host and free port at which this rank can be the gang's meeting point."""
        with socket.socket() as s:
            s.bind(("", 0))
            return ray.util.get_node_ip_address(), s.getsockname()[1]

    def join(self, host: str, port: int) -> None:
        """Form the gang with the other ranks and load the model."""
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.config.learner.ranks),
            LOCAL_RANK="0",  # Ray shows each rank its own GPU only
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
        )
        # Imported here: who only holds a handle to this actor need not spend seconds on importing DeepSpeed.
        from actors.zero_engine import ZeroEngine

        self.engine = ZeroEngine(self.config)

    def train(
        self,
        version: int,
        plan: list[list[Item]],
        refs: dict[int, list],
        advantages: dict[int, np.ndarray],
        step_tokens: int,
    ) -> dict:
        """Train one step on this rank's share.

        Args:
            version: of the weights before the step.
            plan: this rank's micro-batches (pipeline/packing.py).
            refs: for each of this rank's groups, by its index in the step, a list with its object reference.
            advantages: for each of these groups, float32 [G].
            step_tokens: response tokens of the step on all ranks: the denominator of the loss.
        """
        begin = time.perf_counter()
        groups = {index: ray.get(ref) for index, (ref,) in refs.items()}
        le, sums = self.config.learner, StepSums()
        for number, items in enumerate(plan, 1):
            batch = build_micro_batch(items, groups, advantages)
            tensors = {name: torch.tensor(value, device=self.engine.device) for name, value in vars(batch).items()}
            logprobs = self.engine.forward(*(tensors[n] for n in ("tokens", "positions", "predict_at", "targets")))
            losses, clipped = token_losses(
                logprobs,
                tensors["behaviour"],
                tensors["advantages"],
                clip_low=le.clip_low,
                clip_high=le.clip_high,
                dual_clip=le.dual_clip,
            )
            loss = (losses * tensors["weights"]).sum() / step_tokens
            self.engine.backward(loss, last=number == len(plan))
            if items:
                _add(sums, version, tensors, logprobs.detach(), loss.detach(), clipped)
        norm, learning_rate = self.engine.step()
        return asdict(sums) | {
            "grad_norm": norm,
            "learning_rate": learning_rate,
            "micro_batches": len(plan),
            "seconds": time.perf_counter() - begin,
        }

    def publish(self) -> list[ray.ObjectRef] | None:
        """Put the weights into the object store in buckets (rank 0; the others help to gather them)."""
        size = self.config.learner.bucket_mib * 2**20
        parameters = self.engine.parameters(size)
        if self.rank == 0:
            return [ray.put(bucket) for bucket in pack_buckets(_copied(parameters), size)]
        for _ in parameters:
            pass
        return None

    def save(self, folder: str) -> None:
        """Write the Hugging Face folder of a checkpoint; complete or not there at all."""
        partial = Path(folder + ".partial")
        self.engine.save(partial)
        if self.rank == 0:
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(
                self.config.model.path, trust_remote_code=self.config.model.trust_remote_code
            ).save_pretrained(partial)
            partial.rename(folder)

    def close(self) -> None:
        self.engine.close()


def _copied(parameters):
    """Gathered parameters are freed when the next group is gathered; buckets may span groups."""
    return ((name, tensor.detach().cpu().clone()) for name, tensor in parameters)


def _add(sums: StepSums, version: int, batch: dict, logprobs: torch.Tensor, loss: torch.Tensor, clipped) -> None:
    difference = logprobs - batch["behaviour"]
    same = difference[batch["cache_versions"] == version].abs()
    behind = version - batch["versions"]
    sums.tokens += len(logprobs)
    sums.loss += float(loss)
    sums.clipped += int(clipped.sum())
    sums.ratio += float(torch.exp(difference).sum())
    sums.same_version_tokens += len(same)
    sums.mismatch += float(same.sum())
    sums.mismatch_max = max(sums.mismatch_max, float(same.max()) if len(same) else 0.0)
    sums.staleness += float(behind.sum())
    sums.staleness_max = max(sums.staleness_max, int(behind.max()))
