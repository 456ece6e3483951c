"""Synthetic problems of a run and of an evaluation are all different: thousands of them."""

import pytest

from pipeline.data.documents.synthetic import (
    SYNTHETIC_TASKS,
    synthetic_problem,
)

CHUNKS = 8
every_task = pytest.mark.parametrize("task", SYNTHETIC_TASKS)


@every_task
def test_problems_are_not_repeated(task):
    seen = {hash(synthetic_problem(1_000_000, i, CHUNKS, task).document) for i in range(10_000)}
    assert len(seen) == 10_000
