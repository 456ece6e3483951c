"""Files in the sample schema (pipeline/data/rows.py), JSON lines or parquet, as one source of numbered samples.

Rows in other schemas are read from such files with `SampleFiles.decoded`.
"""

import bisect
import functools
import itertools
import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.data.arrow_files import one_line, open_parquet, python_bytes
from pipeline.data.quarantine import FIELDS, Quarantine, row_to_show
from pipeline.data.rows import RowRules, decode_line, problem_from_row
from pipeline.data.samples import SampleSource
from pipeline.errors import BadRow, DataError
from pipeline.files import file_state, is_file, list_files, open_input
from pipeline.problems import Problem

SUFFIXES = (".jsonl", ".parquet")
READ_BYTES = 1 << 24
CUT = 1000  # characters kept of a line that is too long
GROUP_BYTES = 2**32  # limit of a parquet row group, which lies whole in memory
GROUP_ROWS = 64  # rows read together, at least
# Where a sample is. For a line: its offset `place` and its length `within`, in bytes. For a parquet row: the number
# `place` of its row group, and the row's number `within` the group. `number` counts the file's lines or rows from 1,
# for messages.
ENTRY = np.dtype([("file", "i4"), ("place", "i8"), ("within", "i8"), ("number", "i8")])


@dataclass(frozen=True)
class SampleFiles:
    """A `SampleSource` (pipeline/data/samples.py) over files; blank lines are skipped."""

    files: tuple[str, ...]
    entries: np.ndarray  # ENTRY [N], in the order of the files
    rules: RowRules = RowRules()
    columns: tuple[str, ...] = FIELDS

    @classmethod
    def open(
        cls,
        path: str,
        rules: RowRules = RowRules(),  # noqa: B008  (it is frozen)
        columns: tuple[str, ...] = FIELDS,
    ) -> "SampleFiles":
        """Open the files that `sample_files` names.

        Args:
            path: a file or a folder.
            rules: the rules that the rows must keep.
            columns: the columns of the schema. Others in a parquet file are not read.

        Raises:
            FileNotFoundError: there is no such file or folder.
            DataError: there are no samples, or a file that should be parquet is not.
        """
        files = sample_files(path)
        entries = [_entries(number, file, columns) for number, file in enumerate(files)]
        source = cls(files, np.concatenate(entries), rules, columns)
        if not len(source):
            raise DataError(f"{path} holds no rows")
        return source

    def __len__(self) -> int:
        return len(self.entries)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """A shuffled order of all samples, int64 [N], which depends only on the arguments.

        Lines are shuffled freely. A parquet row group can only be read whole, so its rows stay together: the groups are
        shuffled, and so are the rows within each.
        """
        draw = np.random.default_rng([seed, epoch])
        _, unit = np.unique(self.entries[["file", "place"]], return_inverse=True)
        unit_rank = draw.permutation(unit.max() + 1)[unit]
        return np.lexsort((draw.permutation(len(self)), unit_rank))

    def sample(self, index: int) -> Problem:
        file, row_id, row = self._read(index)
        return problem_from_row(_decoded(row), row_id, posixpath.dirname(file) or ".", self.rules)

    def decoded(self, index: int) -> object:
        """The whole row of sample `index`, for rows in other schemas than a sample's.

        Raises:
            BadRow: the row is too large, is not JSON or cannot be read.
            DataError, OSError: its file cannot be read.
        """
        return _decoded(self._read(index)[2])

    def row(self, index: int) -> tuple[str, object]:
        try:
            _, row_id, row = self._read(index)
        except _Unreadable as error:
            return error.row_id, error.begins
        except (DataError, OSError):  # it was readable before
            return self._name(index), ""
        try:
            row = json.loads(row) if isinstance(row, str) else row
        except (ValueError, RecursionError):
            pass  # keep the raw line
        return row_id, row_to_show(row)

    def _read(self, index: int) -> tuple[str, str, str | dict]:
        """A sample's file, its id in case the row has none, and its line or parquet row."""
        entry, most = self.entries[index], self.rules.limits.row_bytes
        file, place, within = self.files[entry["file"]], int(entry["place"]), int(entry["within"])
        row_id = self._name(index)
        if file.endswith(".parquet"):
            return file, row_id, self._parquet_row(_row_group(file, place, self.columns), within, row_id)
        if within > most:
            begins = _open(file).read_at(CUT, place).decode(errors="replace")
            raise _Unreadable(f"the line has {within} bytes, over data.limits.row_bytes={most}", row_id, begins)
        return file, row_id, _open(file).read_at(within, place).decode("utf-8-sig", errors="replace")

    def _name(self, index: int) -> str:
        entry = self.entries[index]
        return f"{posixpath.basename(self.files[entry['file']])}:{entry['number']}"

    def _parquet_row(self, group: "_RowGroup", within: int, row_id: str) -> dict:
        most = self.rules.limits.row_bytes
        try:
            row = group.row(within)
            size = sum(map(python_bytes, row.columns))
            if size <= most:
                return row.to_pylist()[0]
        except UnicodeDecodeError:
            raise _Unreadable("the row holds text that is not UTF-8", row_id) from None
        except Exception as error:  # a date out of range, an unknown time zone, two fields of one name …
            raise _Unreadable(f"the row cannot be read: {one_line(error)}", row_id) from None
        raise _Unreadable(f"the row takes {size} bytes, over data.limits.row_bytes={most}", row_id)


class _Unreadable(BadRow):
    """A row that cannot be passed on as it came; `begins` is the part that can be shown."""

    def __init__(self, message: str, row_id: str = "", begins: str = ""):
        super().__init__(message)
        self.row_id, self.begins = row_id, begins


def sample_files(path: str) -> tuple[str, ...]:
    """The file `path`, or the sample files in the folder `path`, sorted by name.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: no file name has one of the `SUFFIXES`.
    """
    if not path.endswith(SUFFIXES) and is_file(path):
        raise DataError(f"{path}: the name of a sample file ends in {' or '.join(SUFFIXES)}")
    files = tuple([path] if path.endswith(SUFFIXES) else list_files(path, SUFFIXES))
    if not files:
        raise DataError(f"{path} holds no file that ends in {' or '.join(SUFFIXES)}")
    return files


def read_samples(source: SampleSource, quarantine: Quarantine) -> Iterator[tuple[int, Problem]]:
    """Yield the number and the problem of every sample, in order; bad rows go to `quarantine`.

    Raises:
        DataError: too many rows were bad.
    """
    quarantine.total = len(source)
    for index in range(len(source)):
        quarantine.rows += 1
        try:
            problem = source.sample(index)
        except BadRow as error:
            row_id, row = source.row(index)
            quarantine.add(row_id, str(error), row)
        else:
            yield index, problem
    quarantine.finish()


def _decoded(row: str | dict) -> object:
    return decode_line(row) if isinstance(row, str) else row


def _entries(file_number: int, file: str, columns: tuple[str, ...]) -> np.ndarray:
    with open_input(file) as handle:
        place, within, number = _parquet_rows(file, handle, columns) if file.endswith(".parquet") else _lines(handle)
    entries = np.empty(len(place), ENTRY)
    for name, values in (("file", file_number), ("place", place), ("within", within), ("number", number)):
        entries[name] = values
    return entries


def _parquet_rows(
    file: str, handle: pa.NativeFile, columns: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    opened = open_parquet(handle, file)
    for name in columns:
        if opened.schema_arrow.names.count(name) > 1:
            raise DataError(f"{file}: there are two columns {name!r}")
    metadata, size = opened.metadata, file_state(file)["size"]
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if min(sizes, default=0) < 0 or sum(sizes) > size:
        raise DataError(f"{file}: {sum(sizes)} rows in {size} bytes cannot be samples")
    place = np.repeat(np.arange(len(sizes)), sizes)
    within = np.concatenate([np.arange(0), *map(np.arange, sizes)])
    return place, within, np.arange(1, len(place) + 1)


def _lines(handle: pa.NativeFile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The offset, length (both in bytes) and number (from 1) of every line that is not blank, int64 [N] each."""
    lines: list[tuple[int, int, int]] = []
    begin, number, blank, position = 0, 1, True, 0
    while data := handle.read(READ_BYTES):
        done = 0
        for end in np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")).tolist():
            if not blank or data[done:end].strip():
                lines.append((begin, position + end - begin, number))
            begin, number, blank, done = position + end + 1, number + 1, True, end + 1
        blank = blank and not data[done:].strip()
        position += len(data)
    if not blank:
        lines.append((begin, position - begin, number))
    places, sizes, numbers = np.array(lines, np.int64).reshape(-1, 3).T
    return places, sizes, numbers


@functools.lru_cache(maxsize=64)
def _open(file: str) -> pa.NativeFile:
    return open_input(file).detach()  # unbuffered, so that several threads can read anywhere in it


@dataclass(frozen=True)
class _RowGroup:
    """A parquet row group, with only the columns of the schema."""

    batches: list[pa.RecordBatch]
    ends: list[int]  # rows up to the end of each batch

    def row(self, number: int) -> pa.RecordBatch:
        """Row `number` of the group, as a batch of one row. Raises `IndexError`."""
        batch = bisect.bisect_right(self.ends, number)
        if batch == len(self.batches):
            raise IndexError(f"its row group has {self.ends[-1] if self.ends else 0} rows, fewer than the file says")
        return self.batches[batch].slice(number - self.ends[batch] + self.batches[batch].num_rows, 1)


@functools.lru_cache(maxsize=2)
def _row_group(file: str, group: int, columns: tuple[str, ...]) -> _RowGroup:
    """Read these columns of a row group of a file. Raises `DataError`."""
    opened = open_parquet(_open(file), file)
    names = [name for name in opened.schema_arrow.names if name in columns]
    batches, size = [], 0
    # A row may take as much memory as its whole group in the file, where a text that many rows share is stored once.
    rows = GROUP_BYTES // max(1, opened.metadata.row_group(group).total_byte_size)
    rows = min(max(rows, GROUP_ROWS), 2**16)
    try:
        for batch in opened.iter_batches(rows, row_groups=[group], columns=names):
            batch.validate()
            size += batch.nbytes
            if size > GROUP_BYTES:
                raise DataError(
                    f"{file}: row group {group} has over {GROUP_BYTES} bytes; write smaller ones (row_group_size)"
                )
            batches.append(batch.select(names))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: row group {group} cannot be read: {error}") from None
    return _RowGroup(batches, list(itertools.accumulate(batch.num_rows for batch in batches)))
