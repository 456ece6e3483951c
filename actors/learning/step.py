"""One training step on a learner rank: runs its micro-batches through policy and loss, and sums the metrics."""

import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch

from actors.learning.zero_engine import ZeroEngine
from pipeline.learning.objectives import loss_for
from pipeline.learning.packing import Item, Update, build_micro_batch
from pipeline.learning.policy import inputs_of, tensors
from pipeline.learning.returned import check_returned
from pipeline.learning.token_metrics import Max, Mean, Sums, TokenMetric, Total, added
from pipeline.rollout.episodes import EpisodeGroup
from pipeline.run.metric_names import is_taken
from pipeline.run.sampled_episode import SAMPLED, Shown
from pipeline.sections import ObjectiveSection

# Log-probs under the proximal policy for each micro-batch of an update; None if it is unused or the policy itself.
Proximal = list[torch.Tensor | None]


class StepTrainer:
    """Lives for one step.

    Args:
        engine: this rank's engine.
        objective: the section that defines the loss.
        groups: this rank's groups, by their index in the step.
        advantages: the advantages of each group's conversations, float32 [C], by the group's index.
        rewards: the rewards of each group's episodes, float32 [G], by the group's index.
        moved: called at every micro-batch, to record progress.
        shown: the groups, by index, whose first episode's log-probs are kept.

    Attributes:
        logprobs: of these episodes' conversations that this rank computes, under the weights with which their update
            begins.
    """

    def __init__(
        self,
        engine: ZeroEngine,
        objective: ObjectiveSection,
        groups: dict[int, EpisodeGroup],
        advantages: dict[int, np.ndarray],
        rewards: dict[int, np.ndarray],
        moved: Callable[[], None],
        shown: Collection[int] = (),
    ):
        self.logprobs: Shown = {}
        self._shown = frozenset(shown)
        self.engine, self.objective, self._token_losses = engine, objective, loss_for(objective.loss)
        self._groups, self._advantages, self._rewards, self._moved = groups, advantages, rewards, moved

    def train(self, version: int, updates: list[Update]) -> list[dict]:
        """See `Learner.train`."""
        proximal: list[Proximal] = [[None] * len(update.micro_batches) for update in updates]
        proximal_seconds = 0.0
        # In the first update the proximal policy is the policy itself: a separate pass would give the same numbers.
        if self.objective.decoupled and len(updates) > 1:
            begin = time.perf_counter()
            proximal[1:] = [list(self._logprobs(update)) for update in updates[1:]]
            proximal_seconds = time.perf_counter() - begin
        rows = [
            self._update(version, update, proximal[number], at_start=number == 0)
            for number, update in enumerate(updates)
        ]
        rows[0]["proximal_seconds"] = proximal_seconds
        return rows

    @torch.no_grad()
    def _logprobs(self, update: Update) -> list[torch.Tensor]:
        """Log-probs under the current weights, float [R] for each micro-batch."""
        logprobs = []
        for items in update.micro_batches:
            self._moved()
            logprobs.append(self.engine.forward(*inputs_of(self._build(items)))[0])
        return logprobs

    def _update(self, version: int, update: Update, proximal: Proximal, at_start: bool) -> dict[str, object]:
        """Train one update.

        Args:
            version: the version of the weights before the step.
            update: this rank's share of the update.
            proximal: the update's log-probs under the proximal policy.
            at_start: whether the weights are still those from before the step.
        """
        sums: Sums = {}
        total, not_finite, is_finite = 0.0, set(), True
        for number, items in enumerate(update.micro_batches):
            self._moved()
            batch = self._build(items)
            inputs = inputs_of(batch)
            reference = self.engine.reference(*inputs)
            logprobs, entropy = self.engine.forward(*inputs)
            self._keep_shown(items, logprobs)
            # Before the objective is called, which may change what it is given.
            own = own_metrics(version, batch, entropy.detach(), logprobs.detach() if at_start else proximal[number])
            own_sums = {n: m.kind.of(m.values if items else m.values[:0]) for n, m in own.items()}
            with torch.set_grad_enabled(bool(items)):  # of a placeholder only the names of the metrics are wanted
                returned = self._token_losses(
                    logprobs,
                    entropy,
                    batch["advantages"],
                    batch["rewards"],
                    behaviour=batch["behaviour"],
                    proximal=proximal[number],
                    reference=reference,
                    objective=self.objective,
                )
            given = logprobs if items else logprobs.detach()
            token_losses, metrics = check_returned(self.objective.loss, returned, given, is_taken)
            if items:
                losses = torch.where(batch["is_response"], token_losses, 0.0)
                loss = losses.sum() / update.tokens
                not_finite.update(batch["groups"][~torch.isfinite(losses)].tolist())
            else:  # all ranks go through the backward pass together; 0 times a loss that is not finite would be NaN
                loss = 0.0 * (logprobs.sum() + entropy.sum()) / update.tokens
            is_finite = is_finite and bool(torch.isfinite(loss))
            last = number == len(update.micro_batches) - 1
            # A loss that is not finite makes the whole gradient non-finite, so that all ranks skip the update together.
            self.engine.backward(loss if is_finite or not last else loss * torch.nan, last)
            total += float(loss.detach())
            # A placeholder adds no tokens, only the names of the metrics.
            of_batch = {n: m.kind.of(m.values if items else m.values[:0]) for n, m in metrics.items()}
            sums = added([sums, of_batch | own_sums])
        grad_norm, learning_rate = self.engine.step()
        return {
            "loss": total,
            "metrics": sums,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "micro_batches": len(update.micro_batches),
            "not_finite": sorted(not_finite),
            "proximal_seconds": 0.0,
        }

    def _keep_shown(self, items: list[Item], logprobs: torch.Tensor) -> None:
        """Copy the log-probs of the shown conversations out of a micro-batch's, float [R]."""
        end = 0
        for item in items:
            group = self._groups[item.group]
            start, end = end, end + len(group.response(item.conversation))
            if item.group in self._shown and group.episodes[item.conversation] == SAMPLED:
                kept = logprobs[start:end].detach().float().cpu().numpy().copy()
                self.logprobs[item.group, item.conversation] = kept

    def _build(self, items: list[Item]) -> dict[str, Any]:
        """A micro-batch with its arrays as tensors on the device."""
        batch = build_micro_batch(items, self._groups, self._advantages, self._rewards)
        return tensors(batch, self.engine.device)


def own_metrics(
    version: int, batch: dict[str, Any], entropy: torch.Tensor, start: torch.Tensor | None
) -> dict[str, TokenMetric]:
    """The metrics of a micro-batch that do not depend on the objective.

    Args:
        version: the version of the weights before the step.
        batch: the micro-batch.
        entropy: the policy's entropy, float [R].
        start: log-probs under the weights before the step, float [R]; None if unknown.
    """
    # |learner log-prob - vLLM log-prob| of tokens that vLLM wrote, prompt included, with the weights before the step.
    mismatch = entropy.new_zeros(0)
    if start is not None:
        mismatch = (start - batch["behaviour"])[batch["cache_versions"] == version].abs()
    return {
        "entropy": TokenMetric(Mean, entropy),
        "logprob_mismatch_mean": TokenMetric(Mean, mismatch),
        "logprob_mismatch_max": TokenMetric(Max, mismatch),
        "logprob_mismatch_tokens": TokenMetric(Total, torch.ones_like(mismatch, dtype=torch.int64)),
    }
