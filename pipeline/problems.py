"""A problem: one question about one document. And the sample schema, the form of a problem in a file.

A sample is an object of a JSON-lines file or a row of a parquet file:

    {"id": "q1", "question": "…", "answers": ["…"], "document": "…", "task": "qa", "metadata": {}}

`id`, `task` and `metadata` may be left out. A long document is better given by reference, so that many questions
share its parts: instead of `document`, the row numbers of passages (from 0) and the file that holds them, looked for
beside the sample's own file (pipeline/documents/passages.py has its format and how the passages become one text):

    {"id": "q1", "question": "…", "answers": ["…"], "passages": [17, 3, 208], "passage_file": "passages.arrow"}

A row that breaks the rules is quarantined with its reason, counted and written aside; it is never dropped in silence.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.storage import LineFile, Storage, append


class DataError(ValueError):
    """The data as a whole cannot be used. The message names the file and says what was expected."""


class BadRow(ValueError):
    """A row that is not a problem. The message says which field is wrong and why."""


class QuestionTooLong(BadRow):
    """The question does not fit the agent's budget for it."""


@dataclass(frozen=True)
class Problem:
    """One question about one document.

    `answers` are alternatives for a task of one answer, and the wanted values for a task of several;
    the task's scorer decides (pipeline/scoring.py). The document is a text, or the rows `passages` of `passage_file`.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    document: str = ""
    task: str = "qa"
    metadata: dict = field(default_factory=dict)
    passages: tuple[int, ...] = ()
    passage_file: str = ""


def problem_from_row(row: object, default_id: str, folder: str = "") -> Problem:
    """Check one decoded row of the schema above.

    Args:
        row: of the file.
        default_id: for a row without an id.
        folder: where a `passage_file` that is no whole path is looked for.

    Raises:
        BadRow: the row is not an object, or a field is missing, empty or of the wrong type.
    """
    question = text_field(row, "question")
    by_reference = row.get("passages") is not None
    if by_reference and row.get("document") is not None:
        raise BadRow("'document' and 'passages' exclude each other")
    document = "" if by_reference else text_field(row, "document")
    passages, passage_file = _passages(row, folder) if by_reference else ((), "")
    answers = row.get("answers")
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list) or not all(isinstance(a, str) and a.strip() for a in answers) or not answers:
        raise BadRow("'answers' must be a list of one or more non-empty strings")
    if not all(map(is_unicode, answers)):
        raise BadRow("'answers' holds text that is not valid Unicode")
    # A parquet file has every column in every row, so that null there means left out.
    given = {name: row[name] for name in ("id", "task", "metadata") if row.get(name) is not None}
    task, metadata = given.get("task", "qa"), given.get("metadata", {})
    if isinstance(metadata, str):  # a parquet file cannot hold objects of any shape, but their JSON
        metadata = decode_line(metadata)
    if not isinstance(task, str) or not task:
        raise BadRow("'task' must be the name of a scorer")
    if not isinstance(metadata, dict):
        raise BadRow("'metadata' must be an object")
    problem_id = str(given.get("id", default_id))
    if not is_unicode(problem_id):
        raise BadRow("'id' is not valid Unicode")
    try:
        written = json.dumps(metadata, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:  # a parquet file can hold dates and bytes
        raise BadRow(f"'metadata' cannot be written as JSON: {error}") from None
    if not is_unicode(written):
        raise BadRow("'metadata' holds text that is not valid Unicode")
    return Problem(problem_id, question, tuple(answers), document, task, metadata, passages, passage_file)


def row_of(problem: Problem) -> dict:
    """The row that `problem_from_row` reads as this problem."""
    row = {"id": problem.id, "question": problem.question, "answers": list(problem.answers), "task": problem.task}
    if problem.passage_file:
        row |= {"passages": list(problem.passages), "passage_file": problem.passage_file}
    else:
        row |= {"document": problem.document}
    return row | {"metadata": problem.metadata}


def _passages(row: dict, folder: str) -> tuple[tuple[int, ...], str]:
    passages = row["passages"]
    numbers = isinstance(passages, list) and all(type(p) is int and p >= 0 for p in passages)
    if not numbers or not passages:
        raise BadRow("'passages' must be a list of one or more row numbers from 0 on")
    file = text_field(row, "passage_file")
    whole = "://" in file or file.startswith("/") or not folder
    return tuple(passages), file if whole else f"{folder.rstrip('/')}/{file}"


def text_field(row: object, name: str) -> str:
    """The text in the field `name` of a row.

    Raises:
        BadRow: the row is not an object, or the field is missing, not text, blank or not valid Unicode.
    """
    if not isinstance(row, dict):
        raise BadRow(f"the row is a {type(row).__name__}, not an object")
    value = row.get(name)
    if not isinstance(value, str):
        raise BadRow(f"'{name}' must be text, not {type(value).__name__}")
    if not value.strip():
        raise BadRow(f"'{name}' is empty")
    if not is_unicode(value):
        raise BadRow(f"'{name}' is not valid Unicode")
    return value


def is_unicode(text: str) -> bool:
    """False for text with half a surrogate pair, which JSON can spell out and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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

    def add(self, row_id: str, reason: str, row: object) -> None:
        """Turn a row away; one that comes again when the data is read again is not counted twice."""
        if row_id in self._ids:
            return
        self._ids.add(row_id)
        self.bad += 1
        line = json.dumps({"id": row_id, "reason": reason, "row": row}, ensure_ascii=False)
        if self.file:
            self.file.put(line)
        else:
            append(f"{line}\n", self.path)
        if self.total is not None:
            self._check(self.total)

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


def checked_rows(rows: Iterable[tuple[str, object]], make, quarantine: Quarantine) -> Iterator[Problem]:
    """Yield `make(row_id, row)` for every row; a `BadRow` sends the row to `quarantine` instead."""
    for row_id, row in rows:
        quarantine.rows += 1
        try:
            problem = make(row_id, row)
        except BadRow as error:
            quarantine.add(row_id, str(error), row)
        else:
            yield problem
    quarantine.finish()


def decode_line(line: str) -> object:
    """One line of a JSON-lines file; raises `BadRow` if it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or thousands of brackets
        raise BadRow(f"not JSON: {error}") from None


def write_problem_file(problems: Iterable[Problem], path: str | Path) -> int:
    """Write problems as JSON lines; return how many."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for problem in problems:
            file.write(json.dumps(row_of(problem), ensure_ascii=False) + "\n")
            count += 1
    return count
