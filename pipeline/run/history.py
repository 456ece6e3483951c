"""The history of a run: the few numbers of each row of metrics.jsonl that the summary and the figure need."""

import bisect
import math
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

DRAWN = ("reward", "memory_written", "memory_kept", "memory_answered", "memory_junk", "memory_tokens", "loss")
SUMMED = (
    "episodes",
    "conversations",
    "tokens_trained",
    "prompt_tokens",
    "prompt_tokens_computed",
    "mixed_version_episodes",
    "updates",
    "updates_skipped",
    "groups_discarded",
)
COUNTED = ("reward", "seconds", *SUMMED, "staleness_max", "logprob_mismatch_tokens", "logprob_mismatch_mean")


class History:
    """Columns of metrics by step. A metric that is in no row takes no memory.

    Args:
        names: the metrics to keep.
        rows: rows to add, in the order of their steps.
    """

    def __init__(self, names: Sequence[str], rows: Iterable[dict] = ()):
        self._names = names
        self.steps = array("q")
        self._columns: dict[str, array] = {}  # float64, as long as `steps`; NaN if a row lacks the metric
        for row in rows:
            self.add(row)

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, row: dict) -> None:
        """Add the row of the next step."""
        for name in self._names:
            value = row.get(name)
            if value is not None and name not in self._columns:
                self._columns[name] = array("d", [math.nan]) * len(self.steps)
            if name in self._columns:
                self._columns[name].append(math.nan if value is None else value)
        self.steps.append(row["step"])

    def roll_back(self, step: int) -> None:
        """Remove the rows of later steps."""
        kept = self.up_to(step)
        for column in (self.steps, *self._columns.values()):
            del column[kept:]

    def up_to(self, step: int) -> int:
        """The number of rows up to a step. A step is not an index: rows are missing if the disk was full."""
        return bisect.bisect_right(self.steps, step)

    @property
    def last_step(self) -> int:
        return self.steps[-1] if self.steps else 0

    def values(self, name: str, after: int = 0) -> list[float]:
        """The values of a metric, without the rows that lack it.

        Args:
            name: the metric.
            after: the number of rows to skip at the beginning.
        """
        return [value for value in self._columns.get(name, ())[after:] if not math.isnan(value)]

    def points(self, name: str) -> tuple[array, array]:
        """The steps whose rows have a metric, and its values there."""
        known = [(s, v) for s, v in zip(self.steps, self._columns.get(name, ()), strict=False) if not math.isnan(v)]
        return array("q", (step for step, _ in known)), array("d", (value for _, value in known))


class RunTotals(History):
    """A run's history and its totals, the numbers of summary.json.

    Args:
        tokens_generated: number of tokens generated, including those that were not trained.
    """

    def __init__(self, tokens_generated: int = 0):
        super().__init__(COUNTED)
        self.tokens_generated = tokens_generated

    @staticmethod
    def needed(row: dict) -> dict:
        """The part of a row that `add` needs."""
        return {name: row[name] for name in ("step", *COUNTED) if name in row}

    def reward_after(self, step: int) -> float:
        """Mean reward of the steps after `step`; 0 if there are none."""
        rewards = self.values("reward", self.up_to(step))
        return sum(rewards) / len(rewards) if rewards else 0.0

    @property
    def updates(self) -> int:
        """Optimizer steps that were not skipped."""
        return self._sum("updates")

    def summary(self) -> dict:
        rewards, mismatch_tokens = self.values("reward"), self._sum("logprob_mismatch_tokens")
        prompt_tokens, tenth = self._sum("prompt_tokens"), max(1, len(rewards) // 10)
        return {
            "reward_first": float(np.mean(rewards[:tenth])) if rewards else None,
            "reward_last": float(np.mean(rewards[-tenth:])) if rewards else None,
            **{name: self._sum(name) for name in SUMMED},
            "prefix_hit_share": 1 - self._sum("prompt_tokens_computed") / prompt_tokens if prompt_tokens else None,
            "tokens_generated": self.tokens_generated,
            "staleness_max": int(max(self.values("staleness_max"), default=0)),
            "logprob_mismatch_mean": self._mismatch() / mismatch_tokens if mismatch_tokens else None,
        }

    def _sum(self, name: str) -> int:
        return int(sum(self.values(name)))

    def _mismatch(self) -> float:
        """The sum of the log-prob mismatch over all tokens for which it is known."""
        means, tokens = self._columns.get("logprob_mismatch_mean", ()), self._columns.get("logprob_mismatch_tokens", ())
        # A row without such tokens has no mean.
        return sum(mean * count for mean, count in zip(means, tokens, strict=False) if not math.isnan(mean))
