"""Opens Arrow data from files of any origin, and checks it before any value is used.

Reading alone does not check. A string array with false offsets makes the process read outside its buffers and die.
"""

import struct
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError

SHOWN = 500  # characters of an error's text
OBJECT_BYTES = 32  # per value in a Python list


def open_parquet(handle: pa.NativeFile, path: str) -> pq.ParquetFile:
    """Open a parquet file and check that its columns are plain (`check_plain`).

    Raises:
        DataError: it is not a parquet file, or a column has an extension type.
    """
    try:
        file = pq.ParquetFile(handle)
        schema = file.schema_arrow
    except Exception as error:  # Arrow's errors, and any error of an extension type's code
        raise DataError(f"{path} is not a parquet file that can be read: {one_line(error)}") from None
    check_plain(schema, path)
    return file


def open_arrow(data: pa.Buffer, path: str) -> pa.Table:
    """An Arrow IPC file as a table inside `data`. Its columns are plain (`check_plain`); its rows are not checked.

    Raises:
        DataError: it is not an Arrow IPC file, a column has an extension type, or its buffers are compressed: a file of
            a few KB could hold gigabytes, and every process would hold its own copy.
    """
    try:
        file = pa.ipc.open_file(data)
        compressed = any(_is_compressed(data, place) for place in _blocks(data))
        table: pa.Table = None if compressed else file.read_all()
    except Exception as error:  # Arrow's errors, and any error of an extension type's code
        raise DataError(f"{path} is not an Arrow IPC file that can be read: {one_line(error)}") from None
    if compressed:
        raise DataError(
            f"{path} is compressed, so processes cannot share it; write it without compression "
            '(pyarrow.feather.write_feather(…, compression="uncompressed"))'
        )
    check_plain(table.schema, path)
    return table


def check_plain(schema: pa.Schema, path: str) -> None:
    """Check that no column has an extension type: the code of some (Ray's) unpickles the file's content.

    Raises:
        DataError: a column has an extension type; the message names it.
    """
    try:
        fields = [(field, field.name) for field in _fields(schema)]
    except UnicodeDecodeError:
        raise DataError(f"{path}: the name of a column is not UTF-8") from None
    except RecursionError:
        raise DataError(f"{path}: the columns are nested too deeply") from None
    for field, column in fields:
        name = (field.metadata or {}).get(b"ARROW:extension:name")
        if name is not None or isinstance(field.type, pa.BaseExtensionType):
            kind = name.decode(errors="replace") if name else field.type.extension_name
            raise DataError(f"{path}: the column {column!r} has the extension type {kind}; use a plain type")


def checked_batches(batches: Iterable[pa.RecordBatch], path: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a file after a full check of each: offsets, lengths, and that all text is UTF-8.

    Raises:
        DataError: a batch is malformed; the message names the row, from 0.
    """
    first, batches = 0, iter(batches)
    while True:
        batch = None
        try:
            if (batch := next(batches, None)) is None:
                return
            batch.validate(full=True)
        except pa.ArrowException as error:
            row = first + (_malformed_row(batch) if batch is not None else 0)
            raise DataError(f"{path}: row {row} (from 0) is malformed: {one_line(error)}") from None
        yield batch
        first += batch.num_rows


def one_line(error: Exception) -> str:
    """An error's text, which may quote the file, as one line that a terminal can show."""
    said = " ".join(str(error).split())[:SHOWN]
    return "".join(c if c.isprintable() else "�" for c in said)


def python_bytes(array: pa.Array) -> int:
    """About how many bytes an array takes as Python objects: its own, plus `OBJECT_BYTES` per value in a list."""
    if pa.types.is_dictionary(array.type):
        return python_bytes(array.dictionary_decode())
    if pa.types.is_struct(array.type):
        return sum(map(python_bytes, array.flatten()))
    if pa.types.is_nested(array.type) and hasattr(array, "flatten"):
        values = array.flatten()
        return OBJECT_BYTES * len(values) + python_bytes(values)
    return array.nbytes


def _malformed_row(batch: pa.RecordBatch) -> int:
    for row in range(batch.num_rows):
        try:
            batch.slice(row, 1).validate(full=True)
        except pa.ArrowInvalid:
            return row
    return 0  # only the batch as a whole is wrong


def _fields(schema: Iterable[pa.Field]) -> Iterator[pa.Field]:
    """Yield all fields, including nested ones."""
    for field in schema:
        yield field
        inner = field.type
        if pa.types.is_dictionary(inner):
            yield from _fields([pa.field("values", inner.value_type)])
        else:
            yield from _fields(inner.field(i) for i in range(inner.num_fields))


# pyarrow does not tell whether a batch is compressed, so it is read here from Arrow's IPC format (Message.fbs,
# File.fbs). `open_file` has already checked the footer, the file's last part; a message is checked when it is read.


def _blocks(data: pa.Buffer) -> Iterator[int]:
    """Yield the offsets of the messages of all batches in a file, including dictionaries."""
    (size,) = struct.unpack("<i", data[data.size - 10 : data.size - 6].to_pybytes())
    footer = data[data.size - 10 - size : data.size - 10].to_pybytes()
    for number in (2, 3):  # dictionaries, record batches
        if blocks := _field(footer, _follow(footer, 0), number):
            first = _follow(footer, blocks)
            for block in range(_read("I", footer, first)):
                yield _read("q", footer, first + 4 + 24 * block)


def _is_compressed(data: pa.Buffer, place: int) -> bool:
    message = pa.ipc.read_message(data[place:]).metadata.to_pybytes()
    root = _follow(message, 0)
    kind, header = _present(message, root, 1), _present(message, root, 2)
    batch = _follow(message, header)
    if _read("B", message, kind) == 2:  # a dictionary, which holds a batch
        batch = _follow(message, _present(message, batch, 1))
    return _field(message, batch, 3) is not None


def _field(flat: bytes, table: int, number: int) -> int | None:
    """The offset of a field in a flatbuffer's table; None if it is absent."""
    names = table - _read("i", flat, table)
    offset = _read("H", flat, names + 4 + 2 * number) if 4 + 2 * number < _read("H", flat, names) else 0
    return table + offset if offset else None


def _present(flat: bytes, table: int, number: int) -> int:
    """`_field` of a field that has to be there. Raises ValueError if it is not."""
    place = _field(flat, table, number)
    if place is None:
        raise ValueError(f"a message lacks its field {number}")
    return place


def _follow(flat: bytes, place: int) -> int:
    return place + _read("I", flat, place)


def _read(kind: str, flat: bytes, place: int) -> int:
    return struct.unpack_from(f"<{kind}", flat, place)[0]
