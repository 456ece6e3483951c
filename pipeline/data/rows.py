"""The sample schema: a problem's form in a file, and the checks of a row.

A sample is an object of a JSON-lines file or a row of a parquet file:

    {"id": "q1", "question": "…", "answers": ["…"], "document": "…", "task": "qa", "metadata": {}}

`id`, `task` and `metadata` are optional. A long document is better given by reference, so that many questions share
its parts: instead of `document`, the row numbers of passages (from 0) and the file that holds them, which is looked
for beside the sample's own file (pipeline/data/documents/passages.py has its format and how passages become one text):

    {"id": "q1", "question": "…", "answers": ["…"], "passages": [17, 3, 208], "passage_file": "passages.arrow"}

A row that breaks the rules is quarantined: counted and written with its reason, never dropped silently.
"""

import json
import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipeline.credentials import INSTEAD, has_credentials
from pipeline.errors import BadRow
from pipeline.problems import Problem
from pipeline.rewards.scoring import SCORERS
from pipeline.sections import AgentSection, RowLimits

SHOWN = 100  # characters of a row's value that a reason repeats; of a path, so many at each end
PATH_CHARACTERS = 4096  # the longest path on Linux
PASSAGE_CHARACTERS = len("Document 1:\n\n\n")  # the least that a passage adds to the document


@dataclass(frozen=True)
class RowRules:
    """The tasks, sizes and folders that the configuration allows a row."""

    tasks: tuple[str, ...] = tuple(SCORERS)  # names of scorers
    limits: RowLimits = field(default_factory=RowLimits)
    document_characters: int = AgentSection.document_characters
    passage_folders: tuple[str, ...] = ()  # folders and URIs with passage files, besides the sample file's folder


def row_rules(config: Any) -> RowRules:
    """The rules in a configuration with the sections data, agent and scorer."""
    return RowRules(
        (*SCORERS, *config.scorer.modules),
        config.data.limits,
        config.agent.document_characters,
        tuple(config.data.passage_folders),
    )


def problem_from_row(row: Any, default_id: str, folder: str = "", rules: RowRules | None = None) -> Problem:
    """Check one decoded row of the schema above and return its problem.

    Args:
        row: the decoded row.
        default_id: the id of a row that has none.
        folder: the sample file's folder. A `passage_file` must lie in it, or in a folder that the rules name.
        rules: the configuration's rules; None: the defaults.

    Raises:
        BadRow: the row is not an object, a field is missing, empty, of the wrong type or too large, or it names a
            scorer or a passage file that the rules do not allow.
    """
    rules = rules or RowRules()
    limits = rules.limits
    question = text_field(row, "question")
    _at_most("'question'", "characters", len(question), limits.question_characters, "data.limits.question_characters")
    by_reference = row.get("passages") is not None
    if by_reference and row.get("document") is not None:
        raise BadRow("'document' and 'passages' exclude each other")
    if isinstance(row.get("document"), str):  # first, because the next check copies it
        size = len(row["document"])
        _at_most("'document'", "characters", size, rules.document_characters, "agent.document_characters")
    document = "" if by_reference else text_field(row, "document")
    passages, passage_file = _passages(row, folder, rules) if by_reference else ((), "")
    answers = row.get("answers")
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list) or not all(isinstance(a, str) and a.strip() for a in answers) or not answers:
        raise BadRow("'answers' must be a list of one or more non-empty strings")
    if not all(map(is_unicode, answers)):
        raise BadRow("'answers' holds text that is not valid Unicode")
    _at_most("'answers'", "texts", len(answers), limits.answers, "data.limits.answers")
    longest = max(map(len, answers))
    _at_most("one of 'answers'", "characters", longest, limits.answer_characters, "data.limits.answer_characters")
    # A parquet file has every column in every row, so null means left out.
    given = {name: row[name] for name in ("id", "task", "metadata") if row.get(name) is not None}
    task, metadata = given.get("task", "qa"), given.get("metadata", {})
    if isinstance(metadata, str):  # parquet cannot hold objects of any shape, only their JSON
        metadata = decode_line(metadata)
    if not isinstance(task, str) or not task:
        raise BadRow("'task' must be the name of a scorer")
    if task not in rules.tasks:
        raise BadRow(_unknown_task(task, rules.tasks))
    if not isinstance(metadata, dict):
        raise BadRow("'metadata' must be an object")
    problem_id = _id_of(given.get("id", default_id))
    if not is_unicode(problem_id):
        raise BadRow("'id' is not valid Unicode")
    _at_most("'id'", "characters", len(problem_id), limits.id_characters, "data.limits.id_characters")
    _at_most("'metadata'", "levels", _depth(metadata), limits.metadata_depth, "data.limits.metadata_depth")
    try:
        written = json.dumps(metadata, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:  # a parquet file can hold dates and bytes
        raise BadRow(f"'metadata' cannot be written as JSON: {error}") from None
    if not is_unicode(written):
        raise BadRow("'metadata' holds text that is not valid Unicode")
    most = limits.metadata_characters
    _at_most("'metadata'", "characters", len(written), most, "data.limits.metadata_characters")
    return Problem(problem_id, question, tuple(answers), document, task, metadata, passages, passage_file)


def row_of(problem: Problem) -> dict:
    """The row of a problem; `problem_from_row` reads it back."""
    row: dict[str, Any] = {"id": problem.id, "question": problem.question, "answers": list(problem.answers)}
    row["task"] = problem.task
    if problem.passage_file:
        row |= {"passages": list(problem.passages), "passage_file": problem.passage_file}
    else:
        row |= {"document": problem.document}
    return row | {"metadata": problem.metadata}


def checked_problem(row: dict) -> Problem:
    """The problem of a row from `row_of`, without the checks: they were made when it was first read."""
    return Problem(**row | {"answers": tuple(row["answers"]), "passages": tuple(row.get("passages", ()))})


def _unknown_task(task: str, tasks: tuple[str, ...]) -> str:
    shown = task if len(task) <= SHOWN else f"{task[:SHOWN]}…"
    how = (
        f"scorer.modules.mine={shown}"
        if ":" in shown and shown.isprintable()
        else "scorer.modules.mine=module:function"
    )
    return (
        f"'task' is {shown!r}; a row may name {', '.join(tasks)}. A scorer of your own gets a name in the "
        f'configuration ({how}), which the row then names ("task": "mine")'
    )


def _id_of(value: object) -> str:
    if not isinstance(value, (str, int, float)):
        raise BadRow(f"'id' must be text, not {type(value).__name__}")
    return str(value)


def _at_most(what: str, unit: str, size: int, most: int, key: str) -> None:
    if size > most:
        raise BadRow(f"{what} has {size} {unit}, over {key}={most}")


def _depth(value: object) -> int:
    """How deeply objects and lists are nested."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, (dict, list))]:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth


def _passages(row: dict, folder: str, rules: RowRules) -> tuple[tuple[int, ...], str]:
    passages, most = row["passages"], rules.document_characters
    if isinstance(passages, list) and (least := PASSAGE_CHARACTERS * len(passages)) > most:
        raise BadRow(f"'passages' make a document of {least} characters or more, over agent.document_characters={most}")
    numbers = isinstance(passages, list) and all(type(p) is int and 0 <= p < 2**63 for p in passages)
    if not numbers or not passages:
        raise BadRow("'passages' must be a list of one or more row numbers from 0 on")
    file = row.get("passage_file")
    if isinstance(file, str) and len(file) > PATH_CHARACTERS:
        raise BadRow(f"'passage_file' has {len(file)} characters; a path has {PATH_CHARACTERS} at most")
    file = text_field(row, "passage_file")
    if has_credentials(file):
        raise BadRow(f"'passage_file' holds credentials; {INSTEAD}")
    whole = "://" in file or file.startswith("/") or not folder
    file = file if whole else f"{folder.rstrip('/')}/{file}"
    if "\0" in file or ("://" in file and ("?" in file or "#" in file)):
        raise BadRow("'passage_file' must be a path, or a URI without parameters")
    place = _place(file)
    if folder and not any(_is_in(place, allowed) for allowed in (folder, *rules.passage_folders)):
        leads = "" if place == file else f", that is {_path_to_show(place)}"
        raise BadRow(
            f"'passage_file' is {_path_to_show(file)}{leads}, outside the folder of the sample file; if that is "
            "intended, add its folder to data.passage_folders"
        )
    # Behind a link, ".." leads to another folder: open exactly the path that was checked.
    return tuple(passages), place if "://" not in place and ".." in unquote(file).split("/") else file


def _is_in(place: str, folder: str) -> bool:
    """Whether a file lies in a folder or below it, judged by its name.

    A link in the folder counts as lying there, wherever it leads: the folder's owner put it there, and a row can only
    name it.
    """
    pairs = [(place, _place(folder))]
    if "://" not in place and "://" not in pairs[0][1]:  # compare without links in the folders' own paths too
        there = posixpath.join(os.path.realpath(posixpath.dirname(place)), posixpath.basename(place))
        pairs.append((there, os.path.realpath(pairs[0][1])))
    return any(file.startswith(f"{above.rstrip('/')}/") for file, above in pairs)


def _place(path: str) -> str:
    """The path or URI without "." and ".."; links are not followed."""
    scheme, there, inner = path.partition("://")
    if there and scheme != "file":
        return f"{scheme}://{posixpath.normpath(unquote(inner))}"
    return os.path.abspath(unquote(inner) if there else path)


def _path_to_show(path: str) -> str:
    return path if len(path) <= 2 * SHOWN else f"{path[:SHOWN]}…{path[-SHOWN:]}"


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
    """False for text with half a surrogate pair, which JSON can spell but no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def decode_line(line: str) -> object:
    """Decode one line of a JSON-lines file. Raises `BadRow` if it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # also for thousands of digits or brackets
        raise BadRow(f"not JSON: {error}") from None


def write_problem_file(problems: Iterable[Problem], path: str | Path) -> int:
    """Write problems as JSON lines; return their number."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for problem in problems:
            file.write(json.dumps(row_of(problem), ensure_ascii=False) + "\n")
            count += 1
    return count
