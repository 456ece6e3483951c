"""A learner: one rank of the gang that trains the policy under ZeRO-3."""

import time
from dataclasses import asdict, dataclass, field
from itertools import zip_longest

import numpy as np
import ray
import torch

from actors.learner_rank import CONCURRENCY_GROUPS, LearnerRank
from pipeline.episodes import EpisodeGroup
from pipeline.objective import TokenLosses, token_losses
from pipeline.packing import Item, Update, build_micro_batch


@dataclass
class UpdateSums:
    """What one rank adds up over the micro-batches of an update; pipeline/metrics.py adds up the ranks."""

    tokens: int = 0
    loss: float = 0.0
    clipped: int = 0
    ratio: float = 0.0
    importance: float = 0.0
    importance_max: float = 0.0
    importance_capped: int = 0
    entropy: float = 0.0
    kl: float = 0.0
    same_version_tokens: int = 0  # written, prompt and all, by the very weights that the step starts with
    mismatch: float = 0.0  # Σ |learner log-prob - vLLM log-prob| over those
    mismatch_max: float = 0.0
    staleness: list[int] = field(default_factory=list)  # tokens by how many versions behind they were written


# Log-probs under the proximal policy for each micro-batch of an update; None where it is the policy itself or not used.
Proximal = list[torch.Tensor | None]


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
            self.progress_made += 1
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
            updates: this rank's share of each optimizer step, in order (pipeline/packing.py).
            advantages: for each of these groups, float32 [G].
            rewards: likewise.

        Returns:
            For each update, `UpdateSums` and what else is known of it; `grad_norm` is None if it was skipped, because
            its loss or gradient was not finite on some rank, and `not_finite` names this rank's groups to blame.
        """
        groups, self._groups = self._groups, {}
        batches = _Batches(groups, advantages, rewards, self.engine.device)
        proximal: list[Proximal] = [[None] * len(update.micro_batches) for update in updates]
        proximal_seconds = 0.0
        # In the first update the proximal policy is the policy itself: a pass of its own would find the same numbers.
        if self.config.objective.decoupled and len(updates) > 1:
            begin = time.perf_counter()
            proximal[1:] = [self._logprobs(update, batches) for update in updates[1:]]
            proximal_seconds = time.perf_counter() - begin
        rows = [
            self._update(version, update, batches, proximal[number], at_start=number == 0)
            for number, update in enumerate(updates)
        ]
        rows[0]["proximal_seconds"] = proximal_seconds
        return rows

    @torch.no_grad()
    def _logprobs(self, update: Update, batches: "_Batches") -> list[torch.Tensor]:
        """Log-probs under the present weights, for each micro-batch."""
        return [self.engine.forward(*inputs_of(batches.build(items)))[0] for items in update.micro_batches]

    def _update(
        self, version: int, update: Update, batches: "_Batches", proximal: Proximal, at_start: bool
    ) -> dict[str, object]:
        """Train one update.

        Args:
            version: of the weights before the step.
            update: this rank's share.
            batches: of the step.
            proximal: of this update.
            at_start: the weights are still those that the step starts with.
        """
        sums, not_finite, is_finite = UpdateSums(), set(), True
        objective = self.config.objective
        for number, items in enumerate(update.micro_batches):
            self.progress_made += 1
            batch = batches.build(items)
            inputs = inputs_of(batch)
            reference = self.engine.reference(*inputs)
            logprobs, entropy = self.engine.forward(*inputs)
            tokens = token_losses(
                logprobs,
                entropy,
                batch["advantages"],
                batch["rewards"],
                behaviour=batch["behaviour"],
                proximal=proximal[number],
                reference=reference,
                objective=objective,
            )
            losses = torch.where(batch["is_response"], tokens.losses, 0.0)
            loss = losses.sum() / update.tokens
            not_finite.update(batch["groups"][~torch.isfinite(losses)].tolist())
            is_finite = is_finite and bool(torch.isfinite(loss))
            last = number == len(update.micro_batches) - 1
            # A loss that is not finite makes the whole gradient so, for then all ranks skip the update together.
            self.engine.backward(loss if is_finite or not last else loss * torch.nan, last)
            if items:
                _add(sums, version, batch, entropy.detach(), tokens, loss.detach(), objective.importance_cap)
                _add_mismatch(sums, version, batch, logprobs.detach() if at_start else proximal[number])
        grad_norm, learning_rate = self.engine.step()
        return asdict(sums) | {
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "micro_batches": len(update.micro_batches),
            "not_finite": sorted(not_finite),
            "proximal_seconds": 0.0,
        }


class _Batches:
    """Builds the micro-batches of a step as tensors on the device."""

    def __init__(
        self,
        groups: dict[int, EpisodeGroup],
        advantages: dict[int, np.ndarray],
        rewards: dict[int, np.ndarray],
        device: torch.device,
    ):
        self.groups, self.advantages, self.rewards, self.device = groups, advantages, rewards, device

    def build(self, items: list[Item]) -> dict[str, torch.Tensor]:
        batch = build_micro_batch(items, self.groups, self.advantages, self.rewards)
        return {name: torch.tensor(value, device=self.device) for name, value in vars(batch).items()}


def inputs_of(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What the policy takes of a micro-batch."""
    return [batch[name] for name in ("tokens", "positions", "predict_at", "targets")]


def _add(
    sums: UpdateSums, version: int, batch: dict, entropy: torch.Tensor, tokens: TokenLosses, loss, cap: float
) -> None:
    behind = version - batch["versions"]
    sums.tokens += len(entropy)
    sums.loss += float(loss)
    sums.clipped += int(tokens.clipped.sum())
    sums.ratio += float(tokens.ratios.sum())
    sums.importance += float(tokens.importance.sum())
    sums.importance_max = max(sums.importance_max, _max(tokens.importance))
    sums.importance_capped += int((tokens.importance >= cap).sum())
    sums.entropy += float(entropy.sum())
    sums.kl += float(tokens.kl.sum())
    sums.staleness = [sum(n) for n in zip_longest(sums.staleness, torch.bincount(behind).tolist(), fillvalue=0)]


def _add_mismatch(sums: UpdateSums, version: int, batch: dict, logprobs: torch.Tensor | None) -> None:
    """`logprobs`: under the weights that the step starts with; None if they are not known."""
    if logprobs is None:
        return
    same = (logprobs - batch["behaviour"])[batch["cache_versions"] == version].abs()
    sums.same_version_tokens += len(same)
    sums.mismatch += float(same.sum())
    sums.mismatch_max = max(sums.mismatch_max, _max(same))


def _max(values: torch.Tensor) -> float:
    return float(values.max()) if len(values) else 0.0
