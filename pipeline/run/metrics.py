"""The row of metrics.jsonl for one learner step."""

import math
import re
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from pipeline.learning.packing import Work
from pipeline.learning.token_metrics import added
from pipeline.rollout.episodes import GroupRecord
from pipeline.rollout.memory_counts import MemoryCounts, memory_shares
from pipeline.run.metric_names import TURN_REWARD

NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_]")


@dataclass(frozen=True)
class UpdateResult:
    """The result of one optimizer step."""

    groups: list[int]  # the update's groups by their index in the step
    ranks: list[dict]  # each rank's sums over its share (actors/learning/step.py)
    work: Work

    @property
    def grad_norm(self) -> float | None:
        """Gradient norm before clipping, over all ranks; None if the update was skipped."""
        return self.ranks[0]["grad_norm"]

    @property
    def skipped(self) -> bool:
        """Whether the loss or gradient was not finite on some rank, so that no rank changed its weights."""
        return self.grad_norm is None

    @property
    def culprits(self) -> list[int]:
        """The groups that may have caused a skipped update, by their index in the step.

        These are the groups whose loss was not finite, or all groups if only the gradient was not finite.
        """
        return sorted({index for rank in self.ranks for index in rank["not_finite"]}) or self.groups


def step_row(
    step: int, version: int, records: list[GroupRecord], updates: list[UpdateResult], discarded: list[GroupRecord]
) -> dict:
    """The metrics of one learner step, averaged over its updates and all ranks.

    Args:
        step: the step's number, from 1.
        version: the weight version after the step.
        records: records of the trained groups.
        updates: results of the step's optimizer steps.
        discarded: records of the groups that dynamic sampling discarded since the previous step.

    Raises:
        ValueError: a metric of the objective has the name of one of the step's own.
    """
    done = [update for update in updates if not update.skipped]
    ranks = [rank for update in done for rank in update.ranks]
    norms = [update.grad_norm for update in done if update.grad_norm is not None]

    rewards = np.concatenate([record.rewards for record in records])
    sampled = np.concatenate([record.rewards for record in records + discarded])
    # Skipped updates contribute only metric names, so that a step whose updates were all skipped has the same columns.
    nothing = [{n: type(m).none() for n, m in rank["metrics"].items()} for update in updates for rank in update.ranks]
    sums = added([*nothing, *(rank["metrics"] for rank in ranks)])
    metrics: dict[str, Any] = {name: _finite(metric.value) for name, metric in sums.items()}
    tokens = sum(update.work.tokens for update in done)
    staleness = [sum(ages) for ages in zip_longest(*(update.work.staleness for update in done), fillvalue=0)]
    computed, shared = (sum(getattr(update.work, kind) for update in updates) for kind in ("computed", "shared"))
    row = {
        "step": step,
        "version": version,
        "reward": float(sampled.mean()),  # over all groups generated, so that dynamic sampling does not inflate it
        "reward_std": float(sampled.std()),
        "reward_trained": float(rewards.mean()),
        **conversation_rewards(records + discarded),
        "overlong_penalty": float(np.mean([record.penalties.mean() for record in records])),
        "groups": len(records),
        "groups_of_equal_reward": sum(not record.is_informative for record in records),
        "groups_discarded": len(discarded),
        "kept_fraction": len(records) / (len(records) + len(discarded)),
        "episodes": len(rewards),
        "conversations": sum(len(record.lengths) for record in records),
        "preemptions": sum(record.preemptions for record in records),
        "cut_conversations": sum(record.cut_conversations for record in records),
        "cut_answer_fraction": sum(record.cut_answers for record in records + discarded) / len(sampled),
        **memory_shares(sum((record.memory for record in records), MemoryCounts())),
        "staleness_mean": sum(age * count for age, count in enumerate(staleness)) / tokens if tokens else None,
        "staleness_max": len(staleness) - 1 if staleness else None,
        "tokens_trained": tokens,
        "staleness_tokens": staleness,  # number of tokens by staleness
        "tokens_computed": computed,
        "tokens_shared_share": shared / (computed + shared) if computed else None,
        "tokens_recomputed": sum(update.work.recomputed for update in updates),
        "mixed_version_episodes": sum(record.mixed_version_episodes for record in records),
        "updates": len(done),
        "updates_skipped": len(updates) - len(done),
        "learning_rate": updates[-1].ranks[0]["learning_rate"],
        "grad_norm": float(np.mean(norms)) if done else None,
        "grad_norm_max": max(norms, default=None),
        "loss": sum(rank["loss"] for rank in ranks) / len(done) if done else None,
        "micro_batches": sum(update.ranks[0]["micro_batches"] for update in updates),
        "proximal_seconds": sum(max(rank["proximal_seconds"] for rank in update.ranks) for update in updates),
        "group_seconds_mean": float(np.mean([record.generation_seconds for record in records])),
        "group_seconds_max": float(max(record.generation_seconds for record in records)),
        **prefix_hits(records + discarded),
    }
    if clash := metrics.keys() & row.keys():
        raise ValueError(f"the objective has a metric {clash.pop()!r}, which is one of the step's own; rename it")
    return row | metrics


def prefix_hits(records: list[GroupRecord]) -> dict[str, Any]:
    """What the engines computed of the groups' prompts, by vLLM's own counts.

    prompt_tokens           tokens of all prompts
    prompt_tokens_computed  of these, tokens that the engine did not have in its prefix cache
    prefix_hit_share        share of the tokens that the engine had
    prefix_hit_share_min    the same, of the group with the lowest share
    prefix_hit_shares       the same, of the prompts submitted under each weight version: {"7": 0.8, "8": 0.6}

    Each conversation counts once, as computed by the engine that wrote its response, also if its group has moved. What
    engines computed for lost conversations (`conversations_redone`) or again after a preemption is not counted.
    """
    prompt = sum((record.prompt_tokens for record in records), Counter[int]())
    cached = sum((record.cached_tokens for record in records), Counter[int]())
    shares = [record.cached_tokens.total() / record.prompt_tokens.total() for record in records]
    return {
        "prompt_tokens": prompt.total(),
        "prompt_tokens_computed": prompt.total() - cached.total(),
        "prefix_hit_share": cached.total() / prompt.total(),
        "prefix_hit_share_min": min(shares),
        "prefix_hit_shares": {str(version): cached[version] / prompt[version] for version in sorted(prompt)},
    }


def _finite(value: object) -> object:
    """A metric as JSON has it: None in the place of a number that is not finite."""
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def conversation_rewards(records: list[GroupRecord]) -> dict[str, float]:
    """The mean reward of all conversations (turn_reward) and of those of each role (turn_reward_<role>).

    Only groups whose scorer rewards conversations count; empty if there are none. In a role's name, characters that a
    metric's name cannot have become _.
    """
    given = [record for record in records if record.conversation_rewards is not None]
    if not given:
        return {}
    rewards = np.concatenate([record.conversation_rewards for record in given])
    roles = np.array([NOT_IN_NAMES.sub("_", role) for record in given for role in record.roles])
    of_roles = {f"{TURN_REWARD}_{role}": float(rewards[roles == role].mean()) for role in np.unique(roles).tolist()}
    return {TURN_REWARD: float(rewards.mean()), **of_roles}
