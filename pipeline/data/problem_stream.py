"""The problems of a training run: every pass over the data in another seeded order, from any position on.

A position counts the rows handed out since the start of the run, bad ones included: position p is row p mod N of pass
p div N. It depends on nothing else, so a run that is taken up, with other workers or other ranks, sees what the run
that was stopped would have seen.
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
FEW = 64  # rows that are read without it: a run need not wait for it to start
WORKERS = 2
WORKER_CPUS = 0.1  # reading is light work beside that of the engines


@dataclass(frozen=True)
class Cursor:
    """Where a run stands in its data: what a checkpoint keeps.

    `position` is the next one to be read; `open` are the positions before it whose problems were not yet trained.
    """

    position: int = 0
    open: tuple[int, ...] = ()


START = Cursor()


def problem_stream(
    source: SampleFiles | SyntheticRecipe, seed: int, quarantine: Quarantine, cursor: Cursor = START
) -> Iterator[tuple[int, Problem]]:
    """Yield (position, problem) for ever: first the open positions of the cursor, then from its position on.

    Raises:
        DataError: too many rows were bad.
    """
    quarantine.total = len(source)
    yield from _problems(source, seed, quarantine, cursor.open)
    position, rows = cursor.position, FEW
    while True:
        end = min(position + rows, (position // len(source) + 1) * len(source))
        yield from _problems(source, seed, quarantine, range(position, end))
        position, rows = end, SEGMENT
        if position == len(source):  # the first pass is over
            quarantine.finish()


def problem_at(source: SampleFiles | SyntheticRecipe, seed: int, position: int) -> Problem:
    """The problem at a position, read here and now. Raises `BadRow`."""
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
    """The rows at these positions, int64."""
    indices = np.zeros_like(positions)
    for epoch in np.unique(positions // len(source)):
        here = positions // len(source) == epoch
        indices[here] = source.order(seed, int(epoch))[positions[here] % len(source)]
    return indices
