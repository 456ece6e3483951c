"""The quarantine: rows that were turned away, counted and written with their reasons."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipeline.credentials import without_credentials
from pipeline.errors import BadRow, DataError
from pipeline.storage import LineFile, append

KEPT = 10_000  # the most that the quarantine keeps of a row: characters of a text, values of a list
FIELDS = ("id", "question", "answers", "task", "document", "passages", "passage_file", "metadata")


def row_to_show(row: object) -> object:
    """A row as the quarantine keeps it, ready for JSON: long texts and lists are cut. Never raises."""
    if isinstance(row, dict):
        row = {_begin_of(str(name)): _begin_of(value) for name, value in itertools.islice(row.items(), KEPT)}
    row = _begin_of(row)
    try:
        written = json.dumps(row, ensure_ascii=False, default=str)
        return json.loads(written) if len(written) <= 2 * len(FIELDS) * KEPT else _begin_of(written)
    except Exception:  # JSON refuses the value, or the value itself raises
        return _begin_of(f"a {type(row).__name__} that cannot be written as JSON")


def _begin_of(value: object) -> object:
    """The first KEPT characters or values. A URI is never cut: half a password would not be recognised as one."""
    if isinstance(value, list):
        return value[:KEPT]
    if not isinstance(value, str) or len(value) <= KEPT:
        return value
    begin = value[:KEPT]
    words = begin.split()
    uri = words[-1].find("://") if words and not begin[-1].isspace() else -1
    return f"{begin if uri < 0 else begin[: len(begin) - len(words[-1]) + uri]}…"


@dataclass
class Quarantine:
    """Counts the rows that were turned away, and writes each with its reason to `path`.

    Reading stops if more than `max_share` of the rows are bad: a file that is mostly broken is the wrong file. `finish`
    checks this. If the `total` number of rows is known, the share is that of the total, since a resumed run reads only
    some of the rows again; and `add` checks it too, as soon as good rows could no longer help.
    """

    path: Path
    max_share: float = 0.05
    total: int | None = None
    rows: int = 0
    bad: int = 0
    _ids: set[str] = field(default_factory=set)
    line_file: LineFile | None = None

    @classmethod
    def outliving(cls, file: LineFile, max_share: float) -> "Quarantine":
        """A quarantine that a full disk does not stop: `file` keeps what cannot be written, and `add` never waits."""
        return cls(file.path, max_share, line_file=file)

    def add(self, row_id: str, reason: str, row: object, withdrawn: bool = False) -> None:
        """Turn a row away. A row that comes again when the data is read again is not counted twice.

        Args:
            row_id: the row's id.
            reason: why it is turned away.
            row: the row as it was read.
            withdrawn: the row is a problem that is never run again (see `withdrawn_ids`).

        Raises:
            DataError: too many rows were bad.
        """
        if row_id in self._ids:
            return
        self._ids.add(row_id)
        self.bad += 1
        entry = (
            {"id": row_id, "reason": reason} | ({"withdrawn": True} if withdrawn else {}) | {"row": row_to_show(row)}
        )
        line = without_credentials(json.dumps(entry, ensure_ascii=False))
        if self.line_file:
            self.line_file.put(line)
        else:
            append(f"{line}\n", self.path)
        if self.total is not None:
            self._check(self.total)

    def resume(self, row_ids: Iterable[str]) -> None:
        """Count the rows that were turned away before the run was resumed."""
        row_ids = set(row_ids)
        self.bad += len(row_ids - self._ids)
        self._ids |= row_ids

    def finish(self) -> None:
        """Raise `DataError` if too many of all rows were bad, or if there were no rows at all."""
        if self.rows == 0:
            raise DataError("the data holds no rows")
        self._check(self.rows if self.total is None else self.total)

    def refuse_all(self) -> NoReturn:
        """Raise `DataError`: a whole pass over the data had no good row, so another would have none either."""
        raise DataError(
            f"all {self.total} rows are bad; their reasons are in {self.path}. Correct the rows, or give other data"
        )

    def _check(self, rows: int) -> None:
        if self.bad > self.max_share * rows:
            raise DataError(
                f"{self.bad} of {rows} rows are bad, more than max_bad_share={self.max_share}; "
                f"their reasons are in {self.path}"
            )


def withdrawn_ids(path: Path) -> set[str]:
    """The ids of the withdrawn problems in a run's quarantine file; its other lines are bad rows. Raises `OSError`."""
    ids = set()
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if b'"withdrawn"' in line:
                with contextlib.suppress(ValueError, TypeError, KeyError):  # a damaged line
                    entry = json.loads(line)
                    if isinstance(entry, dict) and entry.get("withdrawn") is True:
                        ids.add(entry["id"])
    return ids


Made = TypeVar("Made")


def checked_rows(
    rows: Iterable[tuple[str, Any]], make: Callable[[str, Any], Made], quarantine: Quarantine
) -> Iterator[Made]:
    """Yield `make(row_id, row)` for every row. If it raises `BadRow`, the row goes to `quarantine` instead."""
    for row_id, row in rows:
        quarantine.rows += 1
        try:
            made = make(row_id, row)
        except BadRow as error:
            quarantine.add(row_id, str(error), row)
        else:
            yield made
    quarantine.finish()
