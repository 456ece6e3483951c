"""Metrics by kind: the same however the tokens are divided among micro-batches, ranks and updates."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learning.token_metrics import Histogram, Max, Mean, Total, added
from pipeline.run.metric_names import is_taken
from pipeline.run.metrics import step_row
from tests.support.updates import rank, update
from tests.unit.test_metrics import records

KINDS = (Mean, Max, Total, Histogram)


@given(st.lists(st.integers(0, 9), max_size=20), st.lists(st.integers(0, 20), max_size=3))
def test_the_sums_of_parts_are_the_sum_of_the_whole(values, cuts):
    whole = torch.tensor(values, dtype=torch.int64)
    parts = whole.tensor_split(sorted(min(cut, len(values)) for cut in cuts))
    for kind in KINDS:
        sums = added([{"x": kind.none()}, *({"x": kind.of(part)} for part in parts)])
        assert sums["x"].value == kind.of(whole).value


@pytest.mark.parametrize(("kind", "value"), [(Mean, 0.75), (Max, 1.0), (Total, 3), (Histogram, [1, 3])])
def test_kinds_by_hand(kind, value):
    assert kind.of(torch.tensor([1, 0, 1, 1])).value == value


@pytest.mark.parametrize(("kind", "value"), [(Mean, None), (Max, None), (Total, 0), (Histogram, [])])
def test_of_no_tokens_there_is_no_mean_and_no_largest(kind, value):
    assert kind.none() == kind.of(torch.zeros(0, dtype=torch.int64)) and kind.none().value == value


def with_metrics(result: dict, **metrics) -> dict:
    return result | {"metrics": result["metrics"] | metrics}


def test_a_metric_of_an_objective_is_averaged_in_the_row_by_its_kind():
    ranks = [with_metrics(rank(tokens=4), shaped=Mean(2.0, 4), far=Max(3.0)), with_metrics(rank(), far=Max(-1.0))]
    bad = with_metrics(rank(grad_norm=None), shaped=Mean(9.0, 1), odd=Total(5))
    row = step_row(1, 1, records([1, 0]), [update(*ranks), update(bad)], [])
    assert (row["shaped"], row["far"]) == (0.5, 3.0)
    assert row["odd"] == 0  # only a skipped update has it


def test_a_metric_of_an_objective_may_not_hide_one_of_the_step():
    with pytest.raises(ValueError, match="metric 'grad_norm', which is one of the step's own"):
        step_row(1, 1, records([1, 0]), [update(with_metrics(rank(tokens=1), grad_norm=Mean(1.0, 1)))], [])


@pytest.mark.parametrize(
    ("losses", "metrics", "message"),
    [
        (torch.zeros(()), {}, r"a loss for each token, \(3,\), not \(\)"),
        (0.0, {}, "not float"),
        (torch.zeros(3), {"entropy": torch.zeros(3)}, "'entropy', which is one of the learner's"),
    ],
)
def test_what_an_objective_returns_is_checked(losses, metrics, message):
    from actors.learning.step import check_returned

    with pytest.raises(ValueError, match=message):
        check_returned("mine:loss", (losses, metrics), torch.zeros(3), is_taken)
    check_returned("mine:loss", (torch.zeros(3), {}), torch.zeros(3), is_taken)


def test_what_is_not_finite_is_null_in_the_row():
    odd = with_metrics(rank(tokens=4), shaped=Mean(math.nan, 4), far=Max(math.inf), all_of_them=Total(-math.inf))
    row = step_row(1, 1, records([1, 0]), [update(odd)], [])
    assert row["shaped"] is row["far"] is row["all_of_them"] is None
    json.dumps(row, allow_nan=False)
