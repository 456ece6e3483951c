"""The quarantine: rows that were turned away, counted and kept with their reasons."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline.credentials import without_credentials
from pipeline.errors import BadRow, DataError
from pipeline.storage import LineFile, Storage, append

KEPT = 10_000  # characters of a text, and values of a list, that the quarantine keeps of a row


FIELDS = ("id", "question", "answers", "task", "document", "passages", "passage_file", "metadata")


def row_to_show(row: object) -> object:
    """A row as the quarantine keeps it, which JSON can hold: long texts and lists are cut. It never raises."""
    if isinstance(row, dict):
        row = {_begin_of(str(name)): _begin_of(value) for name, value in itertools.islice(row.items(), KEPT)}
    row = _begin_of(row)
    try:
        written = json.dumps(row, ensure_ascii=False, default=str)
        return json.loads(written) if len(written) <= 2 * len(FIELDS) * KEPT else _begin_of(written)
    except Exception:  # what JSON, or the value itself, does not write
        return _begin_of(f"a {type(row).__name__} that cannot be written as JSON")


def _begin_of(value: object) -> object:
    """The first KEPT characters or values. A URI is not cut: half a password would not be known as one."""
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

    More than `max_share` bad rows stop the reading: a file that is mostly broken is the wrong file. This is judged by
    `finish`, and before it, where the `total` of rows is known, as soon as the rest cannot make it good.
    """

    path: Path
    max_share: float = 0.05
    total: int | None = None
    rows: int = 0
    bad: int = 0
    _ids: set[str] = field(default_factory=set)
    file: LineFile | None = None

    @classmethod
    def outliving(cls, path: Path, max_share: float, storage: Storage) -> "Quarantine":
        """One that a full disk does not stop: `file` keeps what cannot be written, and `add` never waits."""
        return cls(path, max_share, file=LineFile(path, storage))

    @property
    def kept(self) -> LineFile:
        """The file of one that is `outliving`."""
        assert self.file is not None, "a full disk stops this quarantine"
        return self.file

    def add(self, row_id: str, reason: str, row: object, withdrawn: bool = False) -> None:
        """Turn a row away; one that comes again when the data is read again is not counted twice.

        Args:
            row_id: of the row.
            reason: why.
            row: as it was read.
            withdrawn: it was a problem, and is never run again (see `withdrawn_ids`).
        """
        if row_id in self._ids:
            return
        self._ids.add(row_id)
        self.bad += 1
        entry = (
            {"id": row_id, "reason": reason} | ({"withdrawn": True} if withdrawn else {}) | {"row": row_to_show(row)}
        )
        line = without_credentials(json.dumps(entry, ensure_ascii=False))
        if self.file:
            self.file.put(line)
        else:
            append(f"{line}\n", self.path)
        if self.total is not None:
            self._check(self.total)

    def resume(self, row_ids: Iterable[str]) -> None:
        """These were turned away before the run was resumed."""
        row_ids = set(row_ids)
        self.bad += len(row_ids - self._ids)
        self._ids |= row_ids

    def finish(self) -> None:
        """Raise `DataError` when too many of all rows were bad, or when there was none at all."""
        if self.rows == 0:
            raise DataError("the data holds no rows")
        self._check(self.rows)

    def _check(self, rows: int) -> None:
        if self.bad > self.max_share * rows:
            raise DataError(
                f"{self.bad} of {rows} rows are bad, more than max_bad_share={self.max_share}; "
                f"their reasons are in {self.path}"
            )


def withdrawn_ids(path: Path) -> set[str]:
    """The ids of the problems that were withdrawn by name, as the quarantine file of a run has them; other lines of it
    are rows that were no problems. Raises `OSError`."""
    ids = set()
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if b'"withdrawn"' in line:
                with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that was damaged
                    entry = json.loads(line)
                    if isinstance(entry, dict) and entry.get("withdrawn") is True:
                        ids.add(entry["id"])
    return ids


Made = TypeVar("Made")


def checked_rows(
    rows: Iterable[tuple[str, Any]], make: Callable[[str, Any], Made], quarantine: Quarantine
) -> Iterator[Made]:
    """Yield `make(row_id, row)` for every row; a `BadRow` sends the row to `quarantine` instead."""
    for row_id, row in rows:
        quarantine.rows += 1
        try:
            made = make(row_id, row)
        except BadRow as error:
            quarantine.add(row_id, str(error), row)
        else:
            yield made
    quarantine.finish()
