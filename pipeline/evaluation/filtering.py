"""The filter (jobs/support/filter.py): the questions to ask without their document, and which of them to keep.

Each question is asked once, however many samples have it and whatever the lengths of their documents. Its text, gold
answers and task identify it (`question_key`), so the same questions are kept at all lengths.
"""

import filecmp
import hashlib
import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.data.documents.hotpotqa_json import hotpotqa_question, own_paragraphs, question_id, read_questions
from pipeline.data.filtered_sets import KEPT, check_all_there
from pipeline.data.quarantine import Quarantine, checked_rows
from pipeline.data.rows import row_of
from pipeline.errors import BadRow, DataError
from pipeline.evaluation.results import result_rows
from pipeline.files import atomic_output, file_state, is_local, local_path
from pipeline.problems import Problem
from pipeline.rewards.scoring import values_found

RULES = ("score", "containment")
NO_DOCUMENT = "(asked without its document)"  # placeholder: a sample must have a document; closed_book ignores it


def hotpotqa_problems(path: str, only: set[str] | None, limit: int, quarantine: Quarantine) -> Iterator[Problem]:
    """Yield the questions of HotpotQA's JSON without their paragraphs. If an id repeats, the first one counts.

    Args:
        path: the JSON file.
        only: the ids of the wanted questions; None: all.
        limit: the largest number of questions, from the first; 0: all.
        quarantine: receives malformed and repeated questions.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file has another format, too many rows are bad, or an id in `only` is missing, whatever the
            limit.
    """
    name, missing, seen = path.rpartition("/")[2], set(only or ()), set()

    def rows() -> Iterator[tuple[str, object]]:
        for number, row in enumerate(read_questions(path), 1):
            row_id = f"{name}:{number}"
            this = question_id(row, row_id)
            missing.discard(this)
            if only is None or this in only:
                yield row_id, row
        check_all_there(missing, only or set(), path)

    def problem(row_id: str, row: Any) -> Problem:
        question = hotpotqa_question(row, row_id, own_paragraphs(row))
        if question.id in seen:
            raise BadRow(f"the id {question.id!r} occurs twice")
        seen.add(question.id)
        return Problem(question.id, question.question, (question.answer,), NO_DOCUMENT)

    wanted = rows()
    yield from itertools.islice(checked_rows(wanted, problem, quarantine), limit or None)
    if only is not None:
        deque(wanted, maxlen=0)  # read the rest of the file for its ids


def question_key(problem: Problem) -> str:
    """The key of a question, 32 hexadecimal digits: equal for samples with the same text, gold answers and task."""
    asked = json.dumps([problem.question, problem.answers, problem.task])
    return hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()


def write_asked(problems: Iterable[Problem], path: Path, begun: bool) -> int:
    """Write one sample per distinct question, with its key as id, to a local file; return their number.

    A file with the same content is left alone, so that a resumed evaluation finds it unchanged.

    Args:
        problems: the problems; several may ask the same question.
        path: the file to write.
        begun: whether there are answers to the file's questions, so that it must not change.

    Raises:
        DataError: there is no question, or the file would change although answers exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new, seen = path.with_suffix(".new"), set()
    try:
        with new.open("w", encoding="utf-8") as file:
            for problem in problems:
                if (key := question_key(problem)) not in seen:
                    seen.add(key)
                    asked = Problem(key, problem.question, problem.answers, NO_DOCUMENT, problem.task)
                    file.write(json.dumps(row_of(asked), ensure_ascii=False) + "\n")
        if not seen:
            raise DataError("there is no question to ask")
        if not path.exists() or not filecmp.cmp(new, path, shallow=False):
            if begun:
                raise DataError(f"{path.parent.parent} holds answers to other questions; choose another output")
            new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return len(seen)


@dataclass(frozen=True)
class Verdicts:
    """The keys of questions with at least one right answer, and how many others could not be asked or scored."""

    answered: frozenset[str]
    errors: int


def verdicts(results: Path, rule: str) -> Verdicts:
    """Judge the answers in results.jsonl by the scores of the evaluation. The ids of the rows are question keys.

    Args:
        results: the evaluation's results.jsonl.
        rule: "score": an answer is right if its task's scorer gives it 1. "containment": an answer is also right if any
            gold answer occurs anywhere in it as a substring, ignoring case. MemAgent's authors drop questions by this
            rule. It is lenient: "no" is in "know". A cut answer is judged as it is: a model that gives the right answer
            and keeps writing knew it.
    """
    answered, failed = set(), set()
    for row in result_rows(results):
        key, answers = row["id"], tuple(row["answers"])
        score = row.get("score_if_not_cut") if row["cut"] else row["score"]
        if row["error"] or score is None:
            failed.add(key)
        if (score or 0) >= 1 or (rule == "containment" and row["answer"] and values_found(row["answer"], answers)):
            answered.add(key)
    return Verdicts(frozenset(answered), len(failed - answered))


def split(problems: Iterable[Problem], answered: frozenset[str], folder: Path) -> dict[str, int]:
    """Write samples with an answered question to dropped/dropped.jsonl of a local folder, all others to kept.jsonl.

    Returns:
        The numbers of samples, as `kept` and `dropped`.
    """
    kept, dropped = folder / KEPT, folder / "dropped" / "dropped.jsonl"
    counts = {"kept": 0, "dropped": 0}
    links = {False: PassageLinks(folder), True: PassageLinks(dropped.parent)}
    with (
        atomic_output(kept) as kept_partial,
        atomic_output(dropped) as dropped_partial,
        kept_partial.open("w", encoding="utf-8") as kept_lines,
        dropped_partial.open("w", encoding="utf-8") as dropped_lines,
    ):
        for problem in problems:
            is_dropped = question_key(problem) in answered
            lines = dropped_lines if is_dropped else kept_lines
            lines.write(json.dumps(_line(problem, links[is_dropped]), ensure_ascii=False) + "\n")
            counts["dropped" if is_dropped else "kept"] += 1
    return counts


def _line(problem: Problem, links: "PassageLinks") -> dict:
    """A sample as a row of the file, with its passage file linked beside it; a bare question without a document."""
    if problem.document == NO_DOCUMENT:
        return {"id": problem.id, "question": problem.question, "answers": list(problem.answers)}
    if problem.passage_file and is_local(problem.passage_file) and local_path(problem.passage_file).exists():
        problem = replace(problem, passage_file=links.name(problem.passage_file))
    return row_of(problem)


class PassageLinks:
    """Links to passage files in a sample file's folder: the passage files that it names must be there."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._names: dict[str, str] = {}  # the link's name in the folder, by the path of the passage file

    def name(self, path: str) -> str:
        """The name of the folder's link to a local file; makes the link if it is missing."""
        if path not in self._names:
            self._names[path] = self._link(local_path(path))
        return self._names[path]

    def _link(self, file: Path) -> str:
        """Make a hard link, or a copy if the file system allows no link; return its name."""
        named, file = file.name, file.resolve()  # keep the name of a symbolic link, as in Hugging Face's cache
        for name in itertools.chain([named], (f"{number}-{named}" for number in itertools.count(2))):
            there = self._folder / name
            if name in self._names.values() or there.exists() and not _same(file, there):
                continue
            if not there.exists():
                try:
                    os.link(file, there)
                except OSError:
                    shutil.copy2(file, there)
            return name
        raise AssertionError("numbers have no end")


def _same(file: Path, other: Path) -> bool:
    """Whether the two are the same file, or one is a copy made by `PassageLinks`."""
    return file.samefile(other) or file_state(file) == file_state(other)
