"""Reads filtered sets: the ids of the questions that `jobs.prepare filter` kept.

A filtered set is a file kept.jsonl, or the folder that holds it. Each line is an object with an `id`.
"""

from collections.abc import Iterator, Sequence

from pipeline.data.rows import decode_line
from pipeline.errors import BadRow, DataError
from pipeline.files import join, open_input

KEPT = "kept.jsonl"


def kept_file(path: str) -> str:
    """The file of a filtered set, given as a folder or as the file itself."""
    return path if path.endswith(".jsonl") else join(path, KEPT)


def kept_ids(paths: Sequence[str]) -> set[str]:
    """The ids of the questions that every one of these filtered sets kept.

    Raises:
        FileNotFoundError: a file is missing.
        DataError: a line has no id, or no question is in all of the sets.
    """
    sets = [set(_ids(kept_file(path))) for path in paths]
    kept = set.intersection(*sets)
    if not kept:
        raise DataError(f"only={list(paths)}: no question is in all of these filtered sets")
    return kept


def _ids(file: str) -> Iterator[str]:
    with open_input(file) as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = decode_line(line.decode("utf-8-sig", errors="replace"))
            except BadRow as error:
                raise DataError(f"{file}, line {number}: {error}") from None
            if not isinstance(row, dict) or not isinstance(row.get("id"), str):
                raise DataError(f"{file}, line {number} has no id; a filtered set is what `jobs.prepare filter` kept")
            yield row["id"]


def check_all_there(missing: set[str], only: set[str], questions: str) -> None:
    """Raise a `DataError` if any ids are `missing`: those of `only` that the file `questions` does not hold."""
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(only)} questions that only= names are not in {questions}, such as "
            f"{min(missing)!r}: give the file that was filtered"
        )
