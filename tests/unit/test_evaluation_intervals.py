"""Confidence intervals: against textbooks, closed forms, enumeration and simulation."""

import itertools
import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.intervals import (
    bootstrap_mean,
    mean_interval,
    paired_difference,
    sign_test,
    stratified_mean,
    t_interval,
    t_quantile,
    wilson,
)

unit_values = st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_that_of_newcombe_1998(successes, trials, low, high):
    """Table I of "Two-sided confidence intervals for the single proportion", method 3."""
    interval = wilson(successes, trials)
    assert interval == pytest.approx((successes / trials, low, high, trials), abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_bounds_are_the_proportions_that_the_normal_test_just_accepts(case):
    successes, trials = case
    z2 = 1.959963984540054**2
    share = successes / trials
    # (share - p)² = z² p (1 - p) / n, solved for p.
    roots = np.sort(np.roots([1 + z2 / trials, -(2 * share + z2 / trials), share**2]).real)
    interval = wilson(successes, trials)
    assert (interval.low, interval.high) == pytest.approx(tuple(roots), abs=1e-7)
    assert 0.0 <= interval.low <= interval.mean <= interval.high <= 1.0


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 3), (4, 3)])
def test_impossible_counts_are_an_error(successes, trials):
    with pytest.raises(ValueError, match="have no interval"):
        wilson(successes, trials)


def test_the_bootstrap_is_that_of_all_resamples_where_they_can_be_listed():
    values = [0.0, 0.1, 0.5, 0.6, 1.0, 1.0]
    means = np.mean(list(itertools.product(values, repeat=6)), axis=1)
    interval = bootstrap_mean(values)
    assert interval.mean == pytest.approx(np.mean(values))
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.021)


def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    values, weights = np.array([0.0, 0.25, 0.5, 1.0]), np.array([0.4, 0.2, 0.1, 0.3])
    true = float(values @ weights)
    covered = 0
    for i in range(300):
        interval = bootstrap_mean(generator.choice(values, size=60, p=weights), seed=i, resamples=1000)
        covered += interval.low <= true <= interval.high
    assert 0.90 <= covered / 300 <= 0.985


def test_many_values_are_drawn_in_blocks_to_the_same_effect(monkeypatch):
    values = np.random.default_rng(1).random(200)
    whole = bootstrap_mean(values)
    monkeypatch.setattr("pipeline.evaluation.intervals.BLOCK", 70_000)
    assert bootstrap_mean(values) == whole


def test_the_same_seed_gives_the_same_interval_and_another_one_another():
    values = np.random.default_rng(2).random(50)
    assert bootstrap_mean(values) == bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_sets_weigh_the_same_and_their_variances_add_up():
    generator = np.random.default_rng(3)
    small, large = generator.random(100), generator.random(900) * 0.2
    interval = stratified_mean([small, large])
    error = math.sqrt(small.var() / 100 + large.var() / 900) / 2
    assert interval.mean == pytest.approx((small.mean() + large.mean()) / 2)
    assert interval.n == 1000
    assert (interval.mean - interval.low, interval.high - interval.mean) == pytest.approx((1.96 * error,) * 2, rel=0.05)


def test_zeros_and_ones_take_wilsons_interval_and_other_values_the_bootstrap():
    assert mean_interval([1, 0, 1, 1]) == wilson(3, 4)
    assert mean_interval([1.0, 0.0, 0.5, 1.0]) == bootstrap_mean([1.0, 0.0, 0.5, 1.0])
    assert mean_interval([1.0] * 20).low == wilson(20, 20).low < 0.9


@settings(max_examples=50, deadline=None)
@given(unit_values)
def test_an_interval_holds_its_mean_and_stays_within_the_scores(values):
    interval = mean_interval(values)
    assert 0.0 <= interval.low <= interval.mean <= interval.high <= 1.0
    assert interval.mean == pytest.approx(np.mean(values)) and interval.n == len(values)


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf], [[1.0], [0.0]]])
def test_no_values_and_values_that_are_not_finite_are_an_error(values):
    for mean in (
        bootstrap_mean,
        mean_interval,
        lambda v: stratified_mean([[1.0], v]),
        lambda v: paired_difference(v, v),
    ):
        with pytest.raises(ValueError, match="needs at least one value|not finite"):
            mean(values)


def test_no_sets_have_no_average():
    with pytest.raises(ValueError, match="at least one set"):
        stratified_mean([])


@pytest.mark.parametrize("n", range(12))
def test_the_sign_test_is_the_share_of_coin_tosses_at_least_as_uneven(n):
    tosses = [sum(toss) for toss in itertools.product((0, 1), repeat=n)]
    for heads in range(n + 1):
        uneven = sum(abs(2 * toss - n) >= abs(2 * heads - n) for toss in tosses)
        assert sign_test(heads, n - heads) == pytest.approx(uneven / 2**n)


def test_the_sign_test_stays_exact_and_fast_with_many_questions():
    tail = sum(math.comb(3001, i) for i in range(1441))
    assert sign_test(1440, 1561) == pytest.approx(float(Fraction(2 * tail, 2**3001)), rel=1e-12)
    start = time.process_time()
    assert 0.52 < sign_test(50_000, 50_200) < 0.54  # normal, with the correction for continuity: 0.5296
    assert sign_test(0, 100_000) == 0.0
    assert time.process_time() - start < 5.0


def test_a_paired_difference_counts_who_was_better():
    found = paired_difference([1, 1, 1, 0, 0.5], [0, 0, 1, 1, 0.5])
    assert found.interval.mean == pytest.approx(0.2) and found.interval.n == 5
    assert (found.only_a, found.only_b) == (2, 1)
    assert found.p_value == 1.0
    assert paired_difference([1] * 6, [0] * 6).p_value == pytest.approx(2 / 2**6)


def test_the_difference_has_the_interval_of_the_pairs_not_of_the_runs():
    generator = np.random.default_rng(4)
    easy = generator.random(400)  # questions differ much, the runs little
    found = paired_difference(easy + 0.05 * generator.random(400), easy).interval
    assert 0.02 < found.low < found.mean < found.high < 0.03


def test_swapping_the_runs_turns_the_sign():
    generator = np.random.default_rng(5)
    a, b = generator.integers(0, 2, 100), generator.integers(0, 2, 100)
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert one.interval.mean == -other.interval.mean and one.p_value == other.p_value
    assert (one.only_a, one.only_b) == (other.only_b, other.only_a)


def test_means_that_differ_by_rounding_are_a_tie():
    found = paired_difference([0.1 + 0.2], [0.3])
    assert (found.only_a, found.only_b, found.interval.mean) == (0, 0, 0.0)


def test_runs_of_different_length_cannot_be_paired():
    with pytest.raises(ValueError, match="2 and 1 values cannot be paired"):
        paired_difference([1, 0], [1])


# Tables of Student's distribution: the two-sided 5% points.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042, 120: 1.980, 1000: 1.962}


@pytest.mark.parametrize(("freedom", "quantile"), STUDENT.items())
def test_the_quantiles_of_student_are_those_of_the_tables(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, abs=5e-4)


def test_the_interval_over_three_runs():
    """1, 2, 3: a mean of 2, a standard deviation of 1, and 4.303 / √3 of it to each side."""
    assert t_interval([1, 2, 3]) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841, 3), abs=1e-4)
    assert t_interval([0.5, 0.5]) == (0.5, 0.5, 0.5, 2)


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_the_t_interval_holds_the_truth_in_95_of_100_cases(runs):
    draws = np.random.default_rng(0).normal(0.7, 0.1, (4000, runs))
    held = sum(interval.low <= 0.7 <= interval.high for interval in map(t_interval, draws))
    assert held / len(draws) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize("means", [[], [0.5], [0.5, math.nan]])
def test_one_run_has_no_interval_over_runs(means):
    with pytest.raises(ValueError, match="at least one value|at least two runs|not finite"):
        t_interval(means)
