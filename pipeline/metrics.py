"""What a step and a run amount to: one row of metrics.jsonl a step, one summary.json a run."""

from dataclasses import dataclass, field

import numpy as np

from pipeline.episodes import GroupRecord

DROPPED_STALE = "dropped_stale"  # among the failures of a run: trained by nobody, but no fault of anything


def step_row(version: int, records: list[GroupRecord], ranks: list[dict]) -> dict:
    """The metrics of one learner step, averaged over the whole global batch.

    Args:
        version: of the weights after the step.
        records: of the groups trained.
        ranks: each rank's sums over its share (actors/learner.py).
    """

    def total(key: str) -> float:
        return sum(rank[key] for rank in ranks)

    rewards = np.concatenate([record.rewards for record in records])
    tokens = int(total("tokens"))
    same = int(total("same_version_tokens"))
    return {
        "step": version,
        "version": version,
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "groups": len(records),
        "groups_of_equal_reward": sum(bool(np.ptp(record.rewards) == 0) for record in records),
        "episodes": len(rewards),
        "conversations": sum(len(record.lengths) for record in records),
        "cut_conversations": sum(record.cut_conversations for record in records),
        "tokens_trained": tokens,
        "staleness_mean": total("staleness") / tokens,
        "staleness_max": max(rank["staleness_max"] for rank in ranks),
        "mixed_version_episodes": sum(record.mixed_version_episodes for record in records),
        "loss": total("loss"),
        "clip_fraction": total("clipped") / tokens,
        "ratio_mean": total("ratio") / tokens,
        # None when no token of the batch was sampled by the very weights that the learner had.
        "logprob_mismatch_mean": total("mismatch") / same if same else None,
        "logprob_mismatch_max": max(rank["mismatch_max"] for rank in ranks) if same else None,
        "logprob_mismatch_tokens": same,
        "grad_norm": ranks[0]["grad_norm"],
        "learning_rate": ranks[0]["learning_rate"],
        "micro_batches": ranks[0]["micro_batches"],
        "group_seconds_mean": float(np.mean([record.generation_seconds for record in records])),
        "group_seconds_max": float(max(record.generation_seconds for record in records)),
    }


@dataclass
class RunTotals:
    """Adds the rows of a run up to the numbers of summary.json."""

    rewards: list[float] = field(default_factory=list)
    episodes: int = 0
    conversations: int = 0
    tokens_generated: int = 0
    tokens_trained: int = 0
    mixed_version_episodes: int = 0
    staleness_max: int = 0
    mismatch: float = 0.0
    mismatch_tokens: int = 0

    def add(self, row: dict) -> None:
        self.rewards.append(row["reward"])
        for name in ("episodes", "conversations", "tokens_trained", "mixed_version_episodes"):
            setattr(self, name, getattr(self, name) + row[name])
        self.staleness_max = max(self.staleness_max, row["staleness_max"])
        if row["logprob_mismatch_tokens"]:
            self.mismatch += row["logprob_mismatch_mean"] * row["logprob_mismatch_tokens"]
            self.mismatch_tokens += row["logprob_mismatch_tokens"]

    def summary(self) -> dict:
        tenth = max(1, len(self.rewards) // 10)
        return {
            "steps": len(self.rewards),
            "reward_first": float(np.mean(self.rewards[:tenth])) if self.rewards else None,
            "reward_last": float(np.mean(self.rewards[-tenth:])) if self.rewards else None,
            "episodes": self.episodes,
            "conversations": self.conversations,
            "tokens_generated": self.tokens_generated,
            "tokens_trained": self.tokens_trained,
            "mixed_version_episodes": self.mixed_version_episodes,
            "staleness_max": self.staleness_max,
            "logprob_mismatch_mean": self.mismatch / self.mismatch_tokens if self.mismatch_tokens else None,
        }
