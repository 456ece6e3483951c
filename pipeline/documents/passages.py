"""Documents by reference: passages in one file, and the text of a document that names its passages by their rows.

A passage file is an Arrow IPC file with the columns `title` and `text`, which all processes of a node read from one
and the same memory. Parquet with these columns, or JSON lines of {"title": "…", "text": "…"}, will do as well; they
are read into the memory of every process that opens them.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import atomic_output, open_input, read_buffer
from pipeline.problems import BadRow, DataError, Problem, decode_line, is_unicode

PASSAGES = "passages.arrow"  # the file's name in a folder of samples
COLUMNS = ("title", "text")
SCHEMA = pa.schema([(name, pa.large_string()) for name in COLUMNS])
BATCH_ROWS = 4096  # rows that a writer holds


class PassageFile:
    """The passages of one file, by row number from 0. `table` holds other columns too, where the file has them."""

    def __init__(self, path: str | Path):
        """Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not in the format above.
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

    def document(self, rows: Sequence[int]) -> str:
        """The passages of these rows, in this order, as one text.

        Raises:
            BadRow: there is no such row.
        """
        if rows and not 0 <= min(rows) <= max(rows) < len(self):
            wrong = next(row for row in rows if not 0 <= row < len(self))
            raise BadRow(f"'passages' names row {wrong}, but {self.path} holds {len(self)} rows")
        return "\n\n".join(passage_text(i, self.title(row), self.text(row)) for i, row in enumerate(rows, 1))


@functools.lru_cache(maxsize=8)
def open_passages(path: str) -> PassageFile:
    """The passage file `path`, opened once in a process: a passage file is not changed. Raises: as `PassageFile`."""
    return PassageFile(path)


def document_text(problem: Problem) -> str:
    """The text of a problem's document, given by value or by reference.

    Raises:
        BadRow: a passage's row number is not in the file.
        FileNotFoundError, DataError: there is no such passage file, or it is not one.
    """
    if not problem.passage_file:
        return problem.document
    return open_passages(problem.passage_file).document(problem.passages)


def passage_text(number: int, title: str, text: str) -> str:
    """A passage as the document's number so-and-so, from 1."""
    return f"Document {number}:\n{title}\n{text}" if title else f"Document {number}:\n{text}"


def read_passages(path: str | Path) -> Iterator[tuple[str, object]]:
    """Yield (place, row) for each row of a file of any of the three formats, malformed ones too: `passage` checks them.

    A row is a line, or {"title": …, "text": …} of a table. Bytes in it that are not UTF-8 become half surrogate pairs.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is in none of the formats.
    """
    path = str(path)
    if path.endswith(".jsonl"):
        yield from _read_lines(path, "surrogateescape")
        return
    number = 0
    for batch in _batches(path):
        columns = [batch.column(name).cast(pa.large_binary()).to_pylist() for name in COLUMNS]
        for values in zip(*columns, strict=True):
            number += 1
            texts = (None if value is None else value.decode(errors="surrogateescape") for value in values)
            yield f"{path}: row {number}", dict(zip(COLUMNS, texts, strict=True))


def passage(row: object) -> tuple[str, str]:
    """Title and text of a row that `read_passages` yields.

    Raises:
        BadRow: the line is not JSON, or title or text are missing, not text or not valid Unicode.
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
        """Write a row, its values in the order of the schema; returns its number, from 0."""
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
    """A writer of the Arrow IPC file `path`, a passage file unless `schema` is another one.

    The file is there, whole, when the block has ended without an error.
    """
    with atomic_output(path) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        writer = TableWriter(file, schema)
        yield writer
        writer.flush()


def read_arrow(path: str | Path) -> pa.Table:
    """An Arrow IPC file as a table that lies in the page cache, if the file is local.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not such a file.
    """
    try:
        return pa.ipc.open_file(read_buffer(path)).read_all()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not an Arrow IPC file: {error}") from None


def _read_table(path: str) -> pa.Table:
    if path.endswith(".jsonl"):
        passages = [_strict(place, line) for place, line in _read_lines(path, "replace")]
        columns = list(zip(*passages, strict=True)) or [(), ()]
        return pa.table([pa.array(column, pa.large_string()) for column in columns], SCHEMA)
    if path.endswith(".parquet"):
        with _parquet(path) as file:
            table = _checked(file.read(), path)
    else:
        table = _read_arrow_passages(path)
    for name in COLUMNS:
        if table.column(name).null_count:
            raise DataError(f"{path}: the column '{name}' has rows without a value")
    return table


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    if not path.endswith(".parquet"):
        yield from _read_arrow_passages(path).to_batches(BATCH_ROWS)
        return
    with _parquet(path) as file:
        _checked(file.schema_arrow.empty_table(), path)
        yield from file.iter_batches(BATCH_ROWS, columns=list(COLUMNS))


def _read_arrow_passages(path: str) -> pa.Table:
    if not path.endswith(".arrow"):
        raise DataError(f"{path}: a passage file ends in .arrow, .parquet or .jsonl")
    return _checked(read_arrow(path), path)


def _parquet(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(open_input(path))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a parquet file: {error}") from None


def _checked(table: pa.Table, path: str) -> pa.Table:
    types = {field.name: field.type for field in table.schema}
    for name in COLUMNS:
        if types.get(name) not in (pa.string(), pa.large_string()):
            found = f"'{name}' is {types[name]}" if name in types else f"'{name}' is not there"
            raise DataError(f"{path}: {found}; a passage file has the columns title and text, both text")
    return table


def _read_lines(path: str, errors: str) -> Iterator[tuple[str, str]]:
    """Yield (place, line) for each line that is not blank; `errors` as for bytes.decode."""
    with open_input(path) as file:
        number = 0
        while line := file.readline():
            number += 1
            if line.strip():
                yield f"{path}:{number}", line.rstrip(b"\r\n").decode(errors=errors)


def _strict(place: str, line: str) -> tuple[str, str]:
    try:
        return passage(line)
    except BadRow as error:
        raise DataError(f'{place}: {error}; expected a line like {{"title": "…", "text": "…"}}') from None
