"""The history of a run: of every row of metrics.jsonl the few numbers that the summary and the figure need."""

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
    "mixed_version_episodes",
    "updates",
    "updates_skipped",
    "groups_discarded",
)
COUNTED = ("reward", "seconds", *SUMMED, "staleness_max", "logprob_mismatch_tokens", "logprob_mismatch_mean")


class History:
    """Columns of numbers, by step. A metric that no row knows takes no room.

    Args:
        names: of the metrics that are kept.
        rows: in the order of their steps, as for `add`.
    """

    def __init__(self, names: Sequence[str], rows: Iterable[dict] = ()):
        self._names = names
        self.steps = array("q")
        self._columns: dict[str, array] = {}  # float64, as long as `steps`; NaN where a row does not know the metric
        for row in rows:
            self.add(row)

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, row: dict) -> None:
        """Keep the row of the next step."""
        for name in self._names:
            value = row.get(name)
            if value is not None and name not in self._columns:
                self._columns[name] = array("d", [math.nan]) * len(self.steps)
            if name in self._columns:
                self._columns[name].append(math.nan if value is None else value)
        self.steps.append(row["step"])

    def roll_back(self, step: int) -> None:
        """Forget the rows of later steps."""
        kept = self.up_to(step)
        for column in (self.steps, *self._columns.values()):
            del column[kept:]

    def up_to(self, step: int) -> int:
        """How many rows there are up to a step. Rows of a full disk's time may be missing: a step is no index."""
        return bisect.bisect_right(self.steps, step)

    @property
    def last_step(self) -> int:
        return self.steps[-1] if self.steps else 0

    def values(self, name: str, after: int = 0) -> list[float]:
        """Of a metric, without the rows that do not know it.

        Args:
            after: how many rows are left out, from the first.
        """
        return [value for value in self._columns.get(name, ())[after:] if not math.isnan(value)]

    def points(self, name: str) -> tuple[array, array]:
        """The steps at which a metric is known, and its values there."""
        known = [(s, v) for s, v in zip(self.steps, self._columns.get(name, ()), strict=False) if not math.isnan(v)]
        return array("q", (step for step, _ in known)), array("d", (value for _, value in known))


class RunTotals(History):
    """A run's history, and what it adds up to: the numbers of summary.json.

    Args:
        tokens_generated: also those that were not trained.
    """

    def __init__(self, tokens_generated: int = 0):
        super().__init__(COUNTED)
        self.tokens_generated = tokens_generated

    @staticmethod
    def needed(row: dict) -> dict:
        """The part of a row that has to be kept to add it."""
        return {name: row[name] for name in ("step", *COUNTED) if name in row}

    def reward_after(self, step: int) -> float:
        """Mean reward of the later steps; 0 if there is none."""
        rewards = self.values("reward", self.up_to(step))
        return sum(rewards) / len(rewards) if rewards else 0.0

    @property
    def updates(self) -> int:
        """Optimizer steps that were not skipped."""
        return self._sum("updates")

    def summary(self) -> dict:
        rewards, mismatch_tokens = self.values("reward"), self._sum("logprob_mismatch_tokens")
        tenth = max(1, len(rewards) // 10)
        return {
            "reward_first": float(np.mean(rewards[:tenth])) if rewards else None,
            "reward_last": float(np.mean(rewards[-tenth:])) if rewards else None,
            **{name: self._sum(name) for name in SUMMED},
            "tokens_generated": self.tokens_generated,
            "staleness_max": int(max(self.values("staleness_max"), default=0)),
            "logprob_mismatch_mean": self._mismatch() / mismatch_tokens if mismatch_tokens else None,
        }

    def _sum(self, name: str) -> int:
        return int(sum(self.values(name)))

    def _mismatch(self) -> float:
        """The sum over all tokens of which it is known."""
        means, tokens = self._columns.get("logprob_mismatch_mean", ()), self._columns.get("logprob_mismatch_tokens", ())
        # A row without such tokens has no mean.
        return sum(mean * count for mean, count in zip(means, tokens, strict=False) if not math.isnan(mean))
