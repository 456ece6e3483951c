"""How sure a mean is: 95% intervals over questions, and whether two runs differ.

The question is the independent unit. Several samples of one question are averaged before they come here: counted one
by one they would make the interval look narrower than it is.
"""

from collections.abc import Iterator, Sequence
from math import comb, fsum, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
BLOCK = 2_000_000  # numbers held at once by the bootstrap
TIE = 1e-9  # means over samples that differ by less differ by rounding only


class Interval(NamedTuple):
    """A mean and its 95% confidence interval."""

    mean: float
    low: float
    high: float
    n: int  # questions


class PairedDifference(NamedTuple):
    """How two runs differ on the same questions."""

    interval: Interval  # of a's score minus b's
    only_a: int  # questions on which a was better
    only_b: int
    p_value: float  # of the exact two-sided sign test


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927; Brown, Cai and DasGupta 2001, equation 4).

    It stays within [0, 1] and keeps its width when all or none succeed.

    Raises:
        ValueError: not 0 ≤ successes ≤ trials, or no trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials have no interval")
    z = NormalDist().inv_cdf(TAILS[1])
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # At 0 and at 1 the bound is the share itself; rounding would leave it a hair inside or outside.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(share, low, high, trials)


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = 10_000) -> Interval:
    """The percentile bootstrap of a mean (Efron 1979).

    Values that are all equal give an interval of no width: what was never seen cannot be drawn.

    Args:
        values: one a question.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    return stratified_mean([values], seed, resamples)


def stratified_mean(strata: Sequence[Sequence[float] | np.ndarray], seed: int = 0, resamples: int = 10_000) -> Interval:
    """The mean of the strata's means, each stratum weighing the same, with a percentile bootstrap within strata.

    Args:
        strata: for each set of questions its values, one a question.

    Returns:
        The interval, with n the number of questions of all strata.

    Raises:
        ValueError: no strata, one without values, or a value that is not finite.
    """
    if not strata:
        raise ValueError("there is no mean of no sets")
    arrays = [finite(values) for values in strata]
    mean = fsum(fsum(values) / len(values) for values in arrays) / len(arrays)
    generator = np.random.default_rng(seed)
    means = sum(np.concatenate(list(resampled_means(values, generator, resamples))) for values in arrays)
    low, high = np.quantile(means / len(arrays), TAILS)
    # Rounding, where all values are equal, would leave the mean outside.
    return Interval(mean, min(float(low), mean), max(float(high), mean), sum(map(len, arrays)))


def resampled_means(values: np.ndarray, generator: np.random.Generator, resamples: int) -> Iterator[np.ndarray]:
    """The means of as many resamples, block by block.

    Scores take few different values, so how often each is drawn is drawn at once: the same distribution, less work.
    """
    different, counts = np.unique(values, return_counts=True)
    rows = max(1, BLOCK // len(different))
    for first in range(0, resamples, rows):
        drawn = generator.multinomial(len(values), counts / len(values), size=min(rows, resamples - first))
        yield drawn @ different / len(values)


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean over questions and its interval: Wilson's if every value is 0 or 1, else the bootstrap.

    Args:
        values: one a question, the mean over its samples.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    array = finite(values)
    if np.isin(array, (0.0, 1.0)).all():
        return wilson(int(array.sum()), len(array))
    return bootstrap_mean(array)


def paired_difference(a: Sequence[float], b: Sequence[float]) -> PairedDifference:
    """How much better a is than b on the same questions, in the same order.

    The interval is a bootstrap over pairs; the p-value is that of the exact sign test, which for scores of 0 and 1 is
    McNemar's exact test. The test asks who is better more often, the interval by how much.

    Raises:
        ValueError: not equally many values, none, or one that is not finite.
    """
    first, second = finite(a), finite(b)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values cannot be paired")
    difference = first - second
    difference[np.abs(difference) < TIE] = 0.0
    only_a, only_b = int((difference > 0).sum()), int((difference < 0).sum())
    return PairedDifference(bootstrap_mean(difference), only_a, only_b, sign_test(only_a, only_b))


def sign_test(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value of so many signs either way: min(1, 2 Σ_{i ≤ k} C(n, i) / 2ⁿ), k the fewer.

    The first term is exact; the others follow from it by C(n, i - 1) = C(n, i) · i / (n - i + 1), until they no longer
    count. So large n needs neither large sums nor long.
    """
    n, fewer = only_a + only_b, min(only_a, only_b)
    term = comb(n, fewer) / 2**n
    tail = 0.0
    for i in range(fewer, -1, -1):
        tail += term
        term *= i / (n - i + 1)
        if term < tail * 1e-17:
            break
    return min(1.0, 2 * tail)


def finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The values as float64; a ValueError if there are none or one is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError("there is no mean of no values")
    if not np.isfinite(array).all():
        raise ValueError(f"value {int(np.flatnonzero(~np.isfinite(array))[0])} is not finite")
    return array
