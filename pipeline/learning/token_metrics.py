"""Metrics of tokens by kind: how a metric's values are summed up in a micro-batch, in a rank and over the ranks.

An objective returns its metrics as `{name: TokenMetric(kind, values)}`, a value for each response token. The learner
sums the values up (`kind.of`), `+` adds sums of any micro-batches, ranks and updates, and `value` is what the row of a
step shows under the metric's name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    import torch


class MetricSum(Protocol):
    """A kind of metric, and the sum of some of its values."""

    @classmethod
    def none(cls) -> Self:
        """The sum of no values."""

    @classmethod
    def of(cls, values: "torch.Tensor") -> Self:
        """The sum of these values, [n] of any dtype; n may be 0."""

    def __add__(self, other: Self) -> Self:
        """The sum of the values of both."""

    @property
    def value(self) -> object:
        """What the row shows, as JSON has it; None: there is none."""


@dataclass(frozen=True)
class Mean:
    """The mean over tokens; of true and false a fraction."""

    total: float
    count: int

    @classmethod
    def none(cls) -> Self:
        return cls(0.0, 0)

    @classmethod
    def of(cls, values: "torch.Tensor") -> Self:
        return cls(float(values.sum()), len(values))

    def __add__(self, other: Self) -> Self:
        return type(self)(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass(frozen=True)
class Max:
    """The largest value of a token."""

    largest: float | None  # None: of no token

    @classmethod
    def none(cls) -> Self:
        return cls(None)

    @classmethod
    def of(cls, values: "torch.Tensor") -> Self:
        return cls(float(values.max()) if len(values) else None)

    def __add__(self, other: Self) -> Self:
        return type(self)(max((x for x in (self.largest, other.largest) if x is not None), default=None))

    @property
    def value(self) -> float | None:
        return self.largest


@dataclass(frozen=True)
class Total:
    """The sum over tokens; of true and false a count."""

    total: float

    @classmethod
    def none(cls) -> Self:
        return cls(0)

    @classmethod
    def of(cls, values: "torch.Tensor") -> Self:
        return cls(values.sum().item())

    def __add__(self, other: Self) -> Self:
        return type(self)(self.total + other.total)

    @property
    def value(self) -> float:
        return self.total


@dataclass(frozen=True)
class Histogram:
    """How many tokens have the value 0, 1, 2, …"""

    counts: tuple[int, ...]

    @classmethod
    def none(cls) -> Self:
        return cls(())

    @classmethod
    def of(cls, values: "torch.Tensor") -> Self:
        return cls(tuple(values.bincount().tolist()))

    def __add__(self, other: Self) -> Self:
        return type(self)(tuple(a + b for a, b in zip_longest(self.counts, other.counts, fillvalue=0)))

    @property
    def value(self) -> list[int]:
        return list(self.counts)


class TokenMetric(NamedTuple):
    """Values of response tokens, [R] without gradient, and their kind."""

    kind: type[MetricSum]
    values: "torch.Tensor"


Sums = dict[str, MetricSum]


def added(parts: Iterable[Sums]) -> Sums:
    """The sums of all parts by name, in the order of the parts."""
    sums: Sums = {}
    for part in parts:
        for name, more in part.items():
            sums[name] = sums[name] + more if name in sums else more
    return sums
