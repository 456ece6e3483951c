"""Arrow's data as it comes from files that anybody may have written: checked before a value of it is looked at.

Reading does not check it. A string array whose offsets lie makes the process read outside of its buffers and die.
"""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline.problems import DataError


def check_plain(schema: pa.Schema, path: str) -> None:
    """No column has an extension type: the code of some of them (Ray's) unpickles what a file holds.

    Raises:
        DataError: one has; the message names it.
    """
    for field in _fields(schema):
        name = (field.metadata or {}).get(b"ARROW:extension:name")
        if name is not None or isinstance(field.type, pa.BaseExtensionType):
            kind = name.decode(errors="replace") if name else field.type.extension_name
            raise DataError(f"{path}: the column {field.name!r} has the extension type {kind}; plain types are wanted")


def checked_batches(batches: Iterable[pa.RecordBatch], path: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a file, each checked in full: offsets, lengths, and that all text is UTF-8.

    Raises:
        DataError: one is malformed; the message names the row, from 0.
    """
    first = 0
    for batch in batches:
        try:
            batch.validate(full=True)
        except pa.ArrowInvalid as error:
            row = first + _malformed_row(batch)
            raise DataError(f"{path}: row {row} (from 0) is malformed: {' '.join(str(error).split())}") from None
        yield batch
        first += batch.num_rows


def _malformed_row(batch: pa.RecordBatch) -> int:
    for row in range(batch.num_rows):
        try:
            batch.slice(row, 1).validate(full=True)
        except pa.ArrowInvalid:
            return row
    return 0  # only the batch as a whole is wrong


def _fields(schema: Iterable[pa.Field]) -> Iterator[pa.Field]:
    """All fields, those within others too."""
    for field in schema:
        yield field
        inner = field.type
        yield from _fields(inner.field(i) for i in range(inner.num_fields))
