"""A problem: one question about one document. And the file format that holds them.

The file is JSON lines, one object a line:

    {"id": "q1", "question": "…", "answers": ["…"], "document": "…", "task": "qa", "metadata": {}}

`id`, `task` and `metadata` may be left out. A row that breaks the rules is quarantined with its
reason, counted and written aside; it is never dropped in silence.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path


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
    the task's scorer decides (pipeline/scoring.py).
    """

    id: str
    question: str
    answers: tuple[str, ...]
    document: str
    task: str = "qa"
    metadata: dict = field(default_factory=dict)


def problem_from_row(row: object, default_id: str) -> Problem:
    """Check one decoded row of the file format above.

    Raises:
        BadRow: the row is not an object, or a field is missing, empty or of the wrong type.
    """
    question, document = (text_field(row, name) for name in ("question", "document"))
    answers = row.get("answers")
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list) or not all(isinstance(a, str) and a.strip() for a in answers) or not answers:
        raise BadRow("'answers' must be a list of one or more non-empty strings")
    if not all(map(_is_unicode, answers)):
        raise BadRow("'answers' holds text that is not valid Unicode")
    task, metadata = row.get("task", "qa"), row.get("metadata", {})
    if not isinstance(task, str) or not task:
        raise BadRow("'task' must be the name of a scorer")
    if not isinstance(metadata, dict):
        raise BadRow("'metadata' must be an object")
    return Problem(str(row.get("id", default_id)), question, tuple(answers), document, task, metadata)


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
    if not _is_unicode(value):
        raise BadRow(f"'{name}' is not valid Unicode")
    return value


def _is_unicode(text: str) -> bool:
    """False for text with half a surrogate pair, which JSON can spell out and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass
class Quarantine:
    """Counts the rows that were turned away, and writes each with its reason to `path`.

    More than `max_share` bad rows (checked from the twentieth row on, and by `finish`) stops the reading:
    a file that is mostly broken is the wrong file.
    """

    path: Path
    max_share: float = 0.05
    rows: int = 0
    bad: int = 0
    _ids: set[str] = field(default_factory=set)

    def add(self, row_id: str, reason: str, row: object) -> None:
        """Turn a row away; one that comes again when the data is read again is not counted twice."""
        if row_id in self._ids:
            return
        self._ids.add(row_id)
        self.bad += 1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # What is not valid Unicode is written as the JSON escape that it came from.
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps({"id": row_id, "reason": reason, "row": row}, ensure_ascii=False) + "\n")
        if self.rows >= 20:
            self._check()

    def finish(self) -> None:
        """Raise `DataError` when too many of all rows were bad, or when there was none at all."""
        if self.rows == 0:
            raise DataError("the data holds no rows")
        self._check()

    def _check(self) -> None:
        if self.bad > self.max_share * self.rows:
            raise DataError(
                f"{self.bad} of {self.rows} rows are bad, more than data.max_bad_share={self.max_share}; "
                f"their reasons are in {self.path}"
            )


def read_problem_file(path: str | Path, quarantine: Quarantine) -> Iterator[Problem]:
    """Yield the problems of a JSON-lines file in the format above; bad rows go to `quarantine`.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: too many rows were bad, or there was none.
    """
    path = Path(path)
    with path.open(encoding="utf-8", errors="replace") as file:
        rows = ((f"{path.name}:{number}", line) for number, line in enumerate(file, 1) if line.strip())
        yield from checked_rows(rows, lambda row_id, line: problem_from_row(decode_line(line), row_id), quarantine)


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
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error}") from None


def write_problem_file(problems: Iterable[Problem], path: str | Path) -> int:
    """Write problems as JSON lines; return how many."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for problem in problems:
            file.write(json.dumps(asdict(problem), ensure_ascii=False) + "\n")
            count += 1
    return count
