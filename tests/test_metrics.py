"""A step's row and a run's summary against numbers worked by hand."""

import numpy as np
import pytest

from pipeline.metrics import RunTotals, step_row
from tests.groups import random_group, record_of


def rank(**sums) -> dict:
    zero = dict.fromkeys(
        "tokens loss clipped ratio same_version_tokens mismatch mismatch_max staleness staleness_max".split(), 0
    )
    return zero | {"grad_norm": 0.5, "learning_rate": 1e-6, "micro_batches": 2, "seconds": 1.0} | sums


def records(*rewards):
    group = random_group(np.random.default_rng(0), episodes=2)
    return [record_of(group, f"g{i}", r) for i, r in enumerate(rewards)]


def test_a_row_averages_over_the_tokens_of_all_ranks():
    row = step_row(
        3,
        records([1, 0], [0, 0]),
        [
            rank(tokens=30, clipped=3, ratio=30.0, staleness=30, staleness_max=1, loss=0.1),
            rank(tokens=10, clipped=1, ratio=14.0, loss=0.2, same_version_tokens=5, mismatch=0.01, mismatch_max=0.004),
        ],
    )
    assert row["reward"] == 0.25 and row["groups_of_equal_reward"] == 1
    assert row["tokens_trained"] == 40
    assert row["clip_fraction"] == pytest.approx(0.1) and row["ratio_mean"] == pytest.approx(1.1)
    assert row["staleness_mean"] == 0.75 and row["staleness_max"] == 1
    assert row["loss"] == pytest.approx(0.3)
    assert row["logprob_mismatch_mean"] == pytest.approx(0.002) and row["logprob_mismatch_max"] == 0.004


def test_without_tokens_of_the_learners_version_there_is_no_mismatch_to_report():
    assert step_row(1, records([1, 0]), [rank(tokens=3)])["logprob_mismatch_mean"] is None


def test_the_summary_compares_the_first_and_the_last_tenth():
    totals = RunTotals()
    for reward in np.linspace(0, 1, 21):
        row = step_row(1, records([reward, reward]), [rank(tokens=7, same_version_tokens=7, mismatch=0.7)])
        totals.add(row)
    summary = totals.summary()
    assert summary["steps"] == 21 and summary["tokens_trained"] == 21 * 7 and summary["episodes"] == 42
    assert summary["reward_first"] == pytest.approx(0.025) and summary["reward_last"] == pytest.approx(0.975)
    assert summary["logprob_mismatch_mean"] == pytest.approx(0.1)


def test_a_run_without_a_step_has_a_summary_too():
    summary = RunTotals().summary()
    assert summary["steps"] == 0 and summary["reward_first"] is None and summary["logprob_mismatch_mean"] is None
