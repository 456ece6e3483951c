"""Kinds of token metrics: how values are aggregated over the tokens of a micro-batch, micro-batches and ranks.

An objective returns its metrics as `{name: TokenMetric(kind, values)}`, with a value for each response token.
`kind.of` aggregates the values of a micro-batch into a sum, `+` combines the sums of micro-batches, ranks and updates,
and `value` is shown under the metric's name in the step's row.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    import torch


class MetricSum(Protocol):
    """A kind of metric; an instance is the aggregate ("sum") of some values."""

    @classmethod
    def none(cls) -> Self:
        """The sum of no values."""

    @classmethod
    def of(cls, values: "torch.Tensor") -> Self:
        """The sum of these values, [n], any dtype; n may be 0."""

    def __add__(self, other: Self) -> Self:
        """The sum over the values of both."""

    @property
    def value(self) -> object:
        """The JSON value shown in the step's row; None: no value."""


@dataclass(frozen=True)
class Mean:
    """The mean over tokens; for booleans, a fraction."""

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
    """The maximum over tokens."""

    largest: float | None  # None: no tokens

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
    """The sum over tokens; for booleans, a count."""

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
    """The number of tokens with the value 0, 1, 2, …"""

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
    """A metric's kind and its values at the response tokens, [R], without gradient."""

    kind: type[MetricSum]
    values: "torch.Tensor"


Sums = dict[str, MetricSum]


def added(parts: Iterable[Sums]) -> Sums:
    """Add the sums of all parts by name. Names keep the order in which they first appear."""
    sums: Sums = {}
    for part in parts:
        for name, more in part.items():
            sums[name] = sums[name] + more if name in sums else more
    return sums
