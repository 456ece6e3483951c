"""Samples by number, in any requested order: Ray Data's workers read them from files or make them by a recipe.

A source gives sample number i independently of what was read before. So a pass can be shuffled, split, stopped and
resumed anywhere, and the result does not depend on the number of workers.
"""

import bisect
import itertools
import json
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from pipeline.data.rows import checked_problem, is_unicode, row_of
from pipeline.errors import BadRow, DataError
from pipeline.problems import Problem

ROWS_PER_TASK = 64  # at most; fewer if there are few rows, so that every worker gets some
BLOCK_BYTES = 1 << 24  # a worker passes its rows on once they reach this size


class SampleSource(Protocol):
    """Samples 0 … len - 1. A source is sent to the workers, so it is small and opens its files there."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Problem:
        """Sample number `index`. Raises `BadRow` if it cannot be used, `DataError` if the whole source cannot."""

    def row(self, index: int) -> tuple[str, object]:
        """The id and the raw row of a sample that raises `BadRow`, for the quarantine."""


@dataclass(frozen=True)
class JoinedSamples:
    """Several sources in sequence, as one `SampleSource`."""

    sources: tuple[SampleSource, ...]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def sample(self, index: int) -> Problem:
        source, index = self._locate(index)
        return source.sample(index)

    def row(self, index: int) -> tuple[str, object]:
        source, index = self._locate(index)
        return source.row(index)

    def _locate(self, index: int) -> tuple[SampleSource, int]:
        ends = list(itertools.accumulate(map(len, self.sources)))
        number = bisect.bisect_right(ends, index)
        return self.sources[number], index - ends[number] + len(self.sources[number])


@dataclass(frozen=True)
class SampleRow:
    """One sample from a worker: a line of a sample file, or a bad row and its fault."""

    index: int
    id: str
    line: str  # JSON: the sample in the schema of pipeline/data/rows.py, or the raw row
    error: str | None

    def problem(self) -> Problem:
        return checked_problem(json.loads(self.line))


def sample_rows(
    source: SampleSource, indices: Sequence[int] | np.ndarray, workers: int, num_cpus: float = 1.0
) -> Generator[SampleRow, None, None]:
    """Yield the samples `indices` of `source`, in that order, made by up to `workers` Ray Data tasks at a time.

    Args:
        source: the samples' source.
        indices: the samples' numbers, int [N]. Samples stream: those already yielded are not held.
        workers: the number of tasks at a time.
        num_cpus: CPUs per task, as Ray counts them.

    Raises:
        DataError: the source as a whole cannot be used.
    """
    import ray
    from ray.data import DataContext, TaskPoolStrategy, from_blocks

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it announces every pass
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    size = min(ROWS_PER_TASK, -(-len(indices) // (4 * workers)))
    if not size:
        return
    # Blocks are made here: from_numpy would start tasks that want a whole CPU each.
    blocks = [pa.table({"index": np.asarray(indices[i : i + size])}) for i in range(0, len(indices), size)]
    made = from_blocks(blocks).map_batches(
        _make_rows,
        fn_kwargs={"source": ray.put(source)},
        batch_size=None,
        num_cpus=num_cpus,
        compute=TaskPoolStrategy(size=min(workers, len(blocks))),
    )
    for batch in made.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from map(_sample_row, batch.to_pylist())


def sample_rows_here(source: SampleSource, indices: Iterable[int] | np.ndarray) -> Iterator[SampleRow]:
    """Yield what `sample_rows` yields, made one by one in this process: a few rows need not wait for Ray Data."""
    return (_sample_row(_make_row(source, int(index))) for index in indices)


def _sample_row(made: dict) -> SampleRow:
    if made.pop("fatal"):
        raise DataError(made["error"])
    return SampleRow(**made)


def _make_rows(batch: dict[str, np.ndarray], source) -> Iterator[dict[str, list]]:
    import ray

    source = ray.get(source)
    rows, size = [], 0
    for index in batch["index"]:
        rows.append(_make_row(source, int(index)))
        size += len(rows[-1]["line"])
        if size >= BLOCK_BYTES:
            yield _columns(rows)
            rows, size = [], 0
    if rows:
        yield _columns(rows)


def _columns(rows: list[dict]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _make_row(source: SampleSource, index: int) -> dict:
    row = {"index": index, "id": "", "line": "", "error": None, "fatal": False}
    try:
        problem = source.sample(index)
        return row | {"id": problem.id, "line": _json(row_of(problem))}
    except BadRow as error:
        row_id, as_it_came = source.row(index)
        return row | {"id": row_id, "line": _json(as_it_came), "error": str(error)}
    except (DataError, OSError) as error:  # if raised here, it would come with a traceback through Ray Data
        return row | {"error": str(error), "fatal": True}


def _json(value: object) -> str:
    """JSON as people read it; with escapes if it holds invalid Unicode, which Arrow refuses."""
    text = json.dumps(value, ensure_ascii=False)
    return text if is_unicode(text) else json.dumps(value)
