"""Documents by reference: a file of passages, and the text of a document that names its passages by their rows.

A passage file is an Arrow IPC file with the columns `title` and `text`; all processes of a node share one copy in
memory. Parquet with these columns, or JSON lines of {"title": "…", "text": "…"}, also works, but every process that
opens such a file reads it into its own memory.

Every row is checked when a file is opened, once per process and batch by batch: its offsets lie within the file, and
its text is UTF-8. For a local .arrow file this reads the page cache, in 0.2 to 0.5 s per GB on one core.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.arrow_files import checked_batches, open_arrow, open_parquet
from pipeline.data.rows import decode_line, is_unicode
from pipeline.errors import BadRow, DataError
from pipeline.files import atomic_output, file_state, open_input, read_buffer
from pipeline.problems import Problem
from pipeline.sections import AgentSection

PASSAGES = "passages.arrow"  # the file's name in a folder of samples
COLUMNS = ("title", "text")
SCHEMA = pa.schema([(name, pa.large_string()) for name in COLUMNS])
BATCH_ROWS = 4096  # rows that a writer buffers
# The memory that a parquet file of passages may take: this many bytes, or this many times its size, whichever is more.
# Text shrinks to a third.
UNPACKED_BYTES, UNPACKED_TIMES = 2**30, 100


class PassageFile:
    """The passages of one file, by row number from 0. `table` keeps the file's other columns too."""

    def __init__(self, path: str | Path):
        """Open and check the file `path`.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: the file is not in a format above; the message names the row at fault, if there is one.
        """
        self.path = str(path)
        self.table = _read_table(self.path)
        self._titles, self._texts = (self.table.column(name) for name in COLUMNS)

    def __len__(self) -> int:
        return self.table.num_rows

    def title(self, row: int) -> str:
        return self._titles[row].as_py()

    def text(self, row: int) -> str:
        return self._texts[row].as_py()

    def document(self, rows: Sequence[int], most: int = AgentSection.document_characters) -> str:
        """The passages at these rows, in this order, as one text.

        Raises:
            BadRow: there is no such row, or the text would have more than `most` characters.
        """
        if rows and not 0 <= min(rows) <= max(rows) < len(self):
            wrong = next(row for row in rows if not 0 <= row < len(self))
            raise BadRow(f"'passages' names row {wrong}, but {self.path} holds {len(self)} rows")
        if self._bytes(rows) > most and (size := self._characters(rows)) > most:
            raise BadRow(f"'passages' make a document of {size} characters, over agent.document_characters={most}")
        return "\n\n".join(passage_text(i, self.title(row), self.text(row)) for i, row in enumerate(rows, 1))

    def _bytes(self, rows: Sequence[int]) -> int:
        """About how many bytes the document has in UTF-8: from the offsets alone, with one-digit passage numbers."""
        return sum(
            times * (self._titles[row].as_buffer().size + self._texts[row].as_buffer().size)
            for row, times in Counter(rows).items()
        ) + len(rows) * len(passage_text(1, "", "\n\n"))

    def _characters(self, rows: Sequence[int]) -> int:
        """The same in characters, which reads each passage once."""
        return sum(times * (len(self.title(row)) + len(self.text(row))) for row, times in Counter(rows).items()) + len(
            rows
        ) * len(passage_text(1, "", "\n\n"))


@functools.lru_cache(maxsize=8)
def open_passages(path: str) -> PassageFile:
    """The passage file `path`, opened once per process: passage files do not change. Raises: as `PassageFile`."""
    return PassageFile(path)


def document_text(problem: Problem, most: int = AgentSection.document_characters) -> str:
    """The text of a problem's document, given by value or by reference.

    Raises:
        BadRow: a passage's row number is not in the file, or the passages have more than `most` characters.
        FileNotFoundError, DataError: the passage file is missing or malformed.
    """
    if not problem.passage_file:
        return problem.document
    return open_passages(problem.passage_file).document(problem.passages, most)


def passage_text(number: int, title: str, text: str) -> str:
    """A passage as it stands in a document, under its number there, from 1."""
    return f"Document {number}:\n{title}\n{text}" if title else f"Document {number}:\n{text}"


def read_passages(path: str | Path) -> Iterator[tuple[str, object]]:
    """Yield (place, row) for each row of a file in any of the three formats, unchecked: `passage` checks them.

    A row is a line, or {"title": …, "text": …} from a table. Bytes that are not UTF-8 become half surrogate pairs.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is in none of the formats.
    """
    path = str(path)
    if path.endswith(".jsonl"):
        yield from _read_lines(path)
        return
    number = 0
    for batch in _batches(path):
        columns = [batch.column(name).to_pylist() for name in COLUMNS]
        for values in zip(*columns, strict=True):
            number += 1
            texts = (None if value is None else value.decode(errors="surrogateescape") for value in values)
            yield f"{path}: row {number}", dict(zip(COLUMNS, texts, strict=True))


def passage(row: object) -> tuple[str, str]:
    """The title and text of a row from `read_passages`.

    Raises:
        BadRow: the line is not JSON, or its title or text is missing, not text or not valid Unicode.
    """
    if isinstance(row, str):
        row = decode_line(row)
    title, text = (row.get(name) for name in COLUMNS) if isinstance(row, dict) else (None, None)
    if not isinstance(title, str) or not isinstance(text, str):
        raise BadRow("the row is not an object with the texts 'title' and 'text'")
    if not is_unicode(title + text):
        raise BadRow("'title' or 'text' is not valid Unicode")
    return title, text


class TableWriter:
    """Writes rows to an Arrow IPC file, `BATCH_ROWS` at a time. Made by `table_writer`."""

    def __init__(self, file: pa.ipc.RecordBatchFileWriter, schema: pa.Schema):
        self.rows = 0
        self._file, self._schema = file, schema
        self._held: list[tuple] = []

    def add(self, *values) -> int:
        """Write a row, with values in the order of the schema; return its number, from 0."""
        self._held.append(values)
        self.rows += 1
        if len(self._held) == BATCH_ROWS:
            self.flush()
        return self.rows - 1

    def flush(self) -> None:
        if self._held:
            columns = zip(*self._held, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
            self._file.write_batch(pa.record_batch(arrays, schema=self._schema))
            self._held = []


@contextmanager
def table_writer(path: str | Path, schema: pa.Schema = SCHEMA) -> Iterator[TableWriter]:
    """Yield a writer of the Arrow IPC file `path`, a passage file unless `schema` says otherwise.

    The file appears, complete, when the block ends without an error.
    """
    with atomic_output(path) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        writer = TableWriter(file, schema)
        yield writer
        writer.flush()


def read_arrow(path: str | Path) -> pa.Table:
    """An Arrow IPC file as a table with checked rows. A local file's table lies in the page cache.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not an Arrow IPC file, or a row is malformed.
    """
    table = open_arrow(read_buffer(path), str(path))
    if (state := _state(path)) not in _checked_files:
        for _ in checked_batches(table.to_batches(), str(path)):
            pass
        _checked_files.add(state)
    return table


_checked_files: set[tuple] = set()  # by this process


def _state(path: str | Path) -> tuple:
    return str(path), *file_state(path).values()


def _read_table(path: str) -> pa.Table:
    if path.endswith(".jsonl"):
        passages = [_strict(place, line) for place, line in _read_lines(path)]
        columns = list(zip(*passages, strict=True)) or [(), ()]
        return pa.table([pa.array(column, pa.large_string()) for column in columns], SCHEMA)
    if path.endswith(".parquet"):
        with _parquet(path) as file:
            empty = _with_columns(file.schema_arrow.empty_table(), path).select(COLUMNS)
            table = pa.Table.from_batches(checked_batches(_iter_parquet(file, path), path), empty.schema)
    else:
        _check_suffix(path)
        table = _with_columns(read_arrow(path), path)
    for name in COLUMNS:
        if table.column(name).null_count:
            row = pc.index(pc.is_null(table.column(name)), True).as_py()
            raise DataError(f"{path}: row {row} (from 0) has no '{name}'")
    return table


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    """Yield batches of title and text as bytes. Their offsets are checked; they need not be UTF-8."""
    if path.endswith(".parquet"):
        with _parquet(path) as file:
            _with_columns(file.schema_arrow.empty_table(), path)
            yield from checked_batches(map(_as_bytes, _iter_parquet(file, path)), path)
        return
    _check_suffix(path)
    table = _with_columns(open_arrow(read_buffer(path), path), path)
    yield from checked_batches(map(_as_bytes, table.to_batches(BATCH_ROWS)), path)


def _as_bytes(batch: pa.RecordBatch) -> pa.RecordBatch:
    binary = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    columns = [batch.column(name) for name in COLUMNS]
    return pa.record_batch([column.view(binary[column.type]) for column in columns], list(COLUMNS))


def _iter_parquet(file: pq.ParquetFile, path: str) -> Iterator[pa.RecordBatch]:
    """Yield batches of title and text. A small file that unpacks to gigabytes is refused on the way."""
    size, most = 0, max(UNPACKED_BYTES, UNPACKED_TIMES * file_state(path)["size"])
    try:
        for batch in file.iter_batches(BATCH_ROWS, columns=list(COLUMNS)):
            size += batch.nbytes
            if size > most:
                raise DataError(f"{path} unpacks to more than {most} bytes, {UNPACKED_TIMES} times its size")
            yield batch.select(list(COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is a broken parquet file: {error}") from None


def _check_suffix(path: str) -> None:
    if not path.endswith(".arrow"):
        raise DataError(f"{path}: a passage file ends in .arrow, .parquet or .jsonl")


def _parquet(path: str) -> pq.ParquetFile:
    return open_parquet(open_input(path), path)


def _with_columns(table: pa.Table, path: str) -> pa.Table:
    types = {field.name: field.type for field in table.schema}
    for name in COLUMNS:
        if types.get(name) not in (pa.string(), pa.large_string()):
            found = f"'{name}' is {types[name]}" if name in types else f"'{name}' is not there"
            raise DataError(f"{path}: {found}; a passage file has the columns title and text, both text")
        if table.column_names.count(name) > 1:
            raise DataError(f"{path}: there are two columns '{name}'")
    return table


def _read_lines(path: str) -> Iterator[tuple[str, str]]:
    """Yield (place, line) for each line that is not blank. Bytes that are not UTF-8 become half surrogate pairs."""
    with open_input(path) as file:
        number = 0
        while line := file.readline():
            number += 1
            if line.strip():
                yield f"{path}:{number}", line.rstrip(b"\r\n").decode("utf-8-sig", errors="surrogateescape")


def _strict(place: str, line: str) -> tuple[str, str]:
    try:
        return passage(line)
    except BadRow as error:
        raise DataError(f'{place}: {error}; expected a line like {{"title": "…", "text": "…"}}') from None
