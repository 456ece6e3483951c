"""95% confidence intervals of means over questions or over training runs, and paired comparisons of two runs.

The question is the independent unit. Average the samples of a question before calling these functions: counted
separately, they would make the interval too narrow. For what training with another seed would give, the run is the
unit: `t_interval`.
"""

from collections.abc import Iterator, Sequence
from math import comb, cos, fsum, pi, sin, sqrt
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
BLOCK = 2_000_000  # numbers that the bootstrap holds at once
TIE = 1e-9  # smaller differences between means over samples are rounding errors


class Interval(NamedTuple):
    """A mean and its 95% confidence interval."""

    mean: float
    low: float
    high: float
    n: int  # questions, or training runs


class PairedDifference(NamedTuple):
    """The difference between two runs on the same questions."""

    interval: Interval  # a's score minus b's
    only_a: int  # questions on which a was better
    only_b: int
    p_value: float  # of the exact two-sided sign test


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927; Brown, Cai and DasGupta 2001, equation 4).

    It stays within [0, 1] and has a positive width even when all or none succeed.

    Raises:
        ValueError: `trials` is below 1, or `successes` is not in [0, trials].
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials have no interval")
    z = NormalDist().inv_cdf(TAILS[1])
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # At 0 and at 1 the bound equals the share; rounding would move it slightly off.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(share, low, high, trials)


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = 10_000) -> Interval:
    """Mean with its percentile bootstrap interval (Efron 1979).

    Equal values give an interval of zero width: resampling cannot draw values that were never observed.

    Args:
        values: one per question.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    return stratified_mean([values], seed, resamples)


def stratified_mean(strata: Sequence[Sequence[float] | np.ndarray], seed: int = 0, resamples: int = 10_000) -> Interval:
    """The equally weighted mean of the strata's means, with a percentile bootstrap within strata.

    Args:
        strata: the values of each set of questions, one per question.

    Returns:
        The interval; n is the number of questions in all strata.

    Raises:
        ValueError: there are no strata, a stratum has no values, or a value is not finite.
    """
    if not strata:
        raise ValueError("a mean over sets needs at least one set")
    arrays = [finite(values) for values in strata]
    mean = fsum(fsum(values) / len(values) for values in arrays) / len(arrays)
    generator = np.random.default_rng(seed)
    means = sum(np.concatenate(list(resampled_means(values, generator, resamples))) for values in arrays)
    low, high = np.quantile(means / len(arrays), TAILS)
    # With equal values, rounding could leave the mean outside the interval.
    return Interval(mean, min(float(low), mean), max(float(high), mean), sum(map(len, arrays)))


def resampled_means(values: np.ndarray, generator: np.random.Generator, resamples: int) -> Iterator[np.ndarray]:
    """Yield the means of `resamples` resamples, block by block.

    Scores take few distinct values, so this draws how often each occurs (a multinomial) instead of the single values:
    the same distribution for less work.
    """
    different, counts = np.unique(values, return_counts=True)
    rows = max(1, BLOCK // len(different))
    for first in range(0, resamples, rows):
        drawn = generator.multinomial(len(values), counts / len(values), size=min(rows, resamples - first))
        yield drawn @ different / len(values)


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean over questions with its interval: Wilson's if every value is 0 or 1, else the bootstrap.

    Args:
        values: one per question, the mean over its samples.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    array = finite(values)
    if np.isin(array, (0.0, 1.0)).all():
        return wilson(int(array.sum()), len(array))
    return bootstrap_mean(array)


def t_interval(means: Sequence[float]) -> Interval:
    """The mean of a few training runs with Student's t interval, which has n - 1 degrees of freedom.

    It covers all that differs between the runs: their seeds, and their questions if each run has its own. With three
    runs it is 2.5 standard deviations to each side. It may leave the range of the values, and runs of equal means give
    an interval of zero width.

    Args:
        means: one per run. Their differences, for runs that are paired by seed.

    Raises:
        ValueError: there are fewer than two values, or one is not finite.
    """
    array = finite(means)
    if len(array) < 2:
        raise ValueError("an interval over training runs needs at least two runs")
    mean = fmean(array)
    half = t_quantile(len(array) - 1) * stdev(array) / sqrt(len(array))
    return Interval(mean, mean - half, mean + half, len(array))


def t_quantile(freedom: int) -> float:
    """The t that Student's distribution with `freedom` degrees of freedom exceeds in size with probability 5%.

    The probability is the finite sum of Abramowitz and Stegun, 26.7.3 and 26.7.4; t is found by bisection.

    Raises:
        ValueError: `freedom` is below 1.
    """
    if freedom < 1:
        raise ValueError(f"Student's distribution needs at least one degree of freedom, not {freedom}")

    def within(angle: float) -> float:  # the probability of |t| ≤ √freedom · tan(angle)
        odd = freedom % 2
        term, total = (cos(angle) if odd else 1.0), 0.0
        for i in range(2 + odd, freedom + 1, 2):
            total += term
            term *= cos(angle) ** 2 * (i - 1) / i
        return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total

    low, high = 0.0, pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if within(middle) < LEVEL else (low, middle)
    return sqrt(freedom) * sin(low) / cos(low)


def paired_difference(a: Sequence[float], b: Sequence[float]) -> PairedDifference:
    """Compare two runs on the same questions.

    The interval is a bootstrap over pairs and shows by how much a is better. The p-value is that of the exact sign
    test, which asks which run is better more often; for scores of 0 and 1 it is McNemar's exact test.

    Args:
        a: the first run's scores, one per question.
        b: the second run's scores, in the same order of questions.

    Raises:
        ValueError: the numbers of values differ, there are none, or one is not finite.
    """
    first, second = finite(a), finite(b)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values cannot be paired")
    difference = first - second
    difference[np.abs(difference) < TIE] = 0.0
    only_a, only_b = int((difference > 0).sum()), int((difference < 0).sum())
    return PairedDifference(bootstrap_mean(difference), only_a, only_b, sign_test(only_a, only_b))


def sign_test(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value of the sign test: min(1, 2 Σ_{i ≤ k} C(n, i) / 2ⁿ), k the smaller count.

    The first term is exact. The others follow from C(n, i - 1) = C(n, i) · i / (n - i + 1) until they no longer change
    the sum, so a large n stays cheap.
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
    """The values as a float64 array; raises ValueError if there are none or one is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError("a mean needs at least one value")
    if not np.isfinite(array).all():
        raise ValueError(f"value {int(np.flatnonzero(~np.isfinite(array))[0])} is not finite")
    return array
