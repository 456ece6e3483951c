"""The problems of a training run, from any position on. Each pass over the data has a seeded order of its own.

A position counts the rows handed out since the start of the run, including bad ones: position p is row p mod N of pass
p div N. It depends on nothing else, so a resumed run sees what the stopped run would have seen, even with other
workers or ranks.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.data.documents.synthetic import SyntheticRecipe
from pipeline.data.quarantine import Quarantine
from pipeline.data.sample_files import SampleFiles
from pipeline.data.samples import sample_rows, sample_rows_here
from pipeline.problems import Problem

SEGMENT = 4096  # rows of one Ray Data execution
FEW = 64  # rows read without Ray Data, so that a run need not wait for it to start
WORKERS = 2
WORKER_CPUS = 0.1  # reading is light work beside the engines


@dataclass(frozen=True)
class Cursor:
    """A run's place in its data, as a checkpoint keeps it.

    `position` is the next position to read; `open` holds the positions before it whose problems are not yet trained.
    """

    position: int = 0
    open: tuple[int, ...] = ()


START = Cursor()


def problem_stream(
    source: SampleFiles | SyntheticRecipe, seed: int, quarantine: Quarantine, cursor: Cursor = START
) -> Iterator[tuple[int, Problem]]:
    """Yield (position, problem) forever: first the cursor's open positions, then from its position on.

    Raises:
        DataError: too many rows were bad, or all rows of a whole pass.
    """
    quarantine.total = len(source)
    yield from _problems(source, seed, quarantine, cursor.open)
    position, rows = cursor.position, FEW
    good = position - 1  # the last position known to be good; the rows before the cursor's position count as good
    while True:
        end = min(position + rows, (position // len(source) + 1) * len(source))
        for good, problem in _problems(source, seed, quarantine, range(position, end)):
            yield good, problem
        position, rows = end, SEGMENT
        if position == len(source):  # the first pass is over
            quarantine.finish()
        if position % len(source) == 0 and good < position - len(source):
            quarantine.refuse_all()


def problem_at(source: SampleFiles | SyntheticRecipe, seed: int, position: int) -> Problem:
    """The problem at a position, read in this process. Raises `BadRow`."""
    (index,) = _indices(source, seed, np.array([position]))
    return source.sample(int(index))


def _problems(source, seed: int, quarantine: Quarantine, positions: Iterable[int]) -> Iterator[tuple[int, Problem]]:
    positions = np.array(positions, np.int64)
    indices = _indices(source, seed, positions)
    if len(indices) <= FEW:
        rows = sample_rows_here(source, indices)
    else:
        rows = sample_rows(source, indices, WORKERS, WORKER_CPUS)
    for position, row in zip(positions.tolist(), rows, strict=True):
        quarantine.rows += position < len(source)  # a row is counted in its first pass
        if row.error:
            quarantine.add(row.id, row.error, json.loads(row.line))
        else:
            yield position, row.problem()


def _indices(source, seed: int, positions: np.ndarray) -> np.ndarray:
    """The row numbers at these positions, int64 [N]."""
    indices = np.zeros_like(positions)
    for epoch in np.unique(positions // len(source)):
        here = positions // len(source) == epoch
        indices[here] = source.order(seed, int(epoch))[positions[here] % len(source)]
    return indices
