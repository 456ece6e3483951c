"""One training step of a learner rank: its micro-batches through policy and loss, and what is counted on the way."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import zip_longest

import numpy as np
import torch

from actors.learning.zero_engine import ZeroEngine
from pipeline.learning.objective import TokenLosses, token_losses
from pipeline.learning.packing import Item, Update, build_micro_batch
from pipeline.rollout.episodes import EpisodeGroup
from pipeline.sections import ObjectiveSection


@dataclass
class UpdateSums:
    """What one rank adds up over the micro-batches of an update; pipeline/run/metrics.py adds up the ranks."""

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


class StepTrainer:
    """Lives for one step.

    Args:
        engine: of this rank.
        objective: the loss.
        groups: this rank's groups of the step, by their index in it.
        advantages: of the conversations of each of these groups, float32 [C].
        rewards: of the episodes of each, float32 [G].
        moved: is called with every micro-batch.
    """

    def __init__(
        self,
        engine: ZeroEngine,
        objective: ObjectiveSection,
        groups: dict[int, EpisodeGroup],
        advantages: dict[int, np.ndarray],
        rewards: dict[int, np.ndarray],
        moved: Callable[[], None],
    ):
        self.engine, self.objective = engine, objective
        self._groups, self._advantages, self._rewards, self._moved = groups, advantages, rewards, moved

    def train(self, version: int, updates: list[Update]) -> list[dict]:
        """See `Learner.train`."""
        proximal: list[Proximal] = [[None] * len(update.micro_batches) for update in updates]
        proximal_seconds = 0.0
        # In the first update the proximal policy is the policy itself: a pass of its own would find the same numbers.
        if self.objective.decoupled and len(updates) > 1:
            begin = time.perf_counter()
            proximal[1:] = [self._logprobs(update) for update in updates[1:]]
            proximal_seconds = time.perf_counter() - begin
        rows = [
            self._update(version, update, proximal[number], at_start=number == 0)
            for number, update in enumerate(updates)
        ]
        rows[0]["proximal_seconds"] = proximal_seconds
        return rows

    @torch.no_grad()
    def _logprobs(self, update: Update) -> list[torch.Tensor]:
        """Log-probs under the present weights, for each micro-batch."""
        return [self.engine.forward(*inputs_of(self._build(items)))[0] for items in update.micro_batches]

    def _update(self, version: int, update: Update, proximal: Proximal, at_start: bool) -> dict[str, object]:
        """Train one update.

        Args:
            version: of the weights before the step.
            update: this rank's share.
            proximal: of this update.
            at_start: the weights are still those that the step starts with.
        """
        sums, not_finite, is_finite = UpdateSums(), set(), True
        objective = self.objective
        for number, items in enumerate(update.micro_batches):
            self._moved()
            batch = self._build(items)
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

    def _build(self, items: list[Item]) -> dict[str, torch.Tensor]:
        """A micro-batch as tensors on the device."""
        batch = build_micro_batch(items, self._groups, self._advantages, self._rewards)
        return {name: torch.tensor(value, device=self.engine.device) for name, value in vars(batch).items()}


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
