"""Read results.jsonl and group its rows into the cells of a table.

A row is one trial: a question, a method and a sample number. Errors and answers cut at their length limit score 0 and
are never dropped; both are counted separately.
"""

import json
import math
import re
import reprlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.evaluation.answer_scores import METRICS, answer_scores
from pipeline.evaluation.intervals import Interval, mean_interval, stratified_mean
from pipeline.rollout.memory_counts import MemoryCounts, Ratio
from pipeline.storage import LineFile, Storage

KEY = ("set", "length", "id", "method", "sample")
SCORES = ("score", *METRICS)
REQUIRED = (*KEY, *SCORES, "task", "question", "answers", "error", "cut", "document_tokens")
SURROGATE = re.compile("[\ud800-\udfff]")
NUMBER, TEXT_OR_NUMBER = (int, float), (str, int, float)
# The types of a row's columns, and their names in error messages.
TYPES: dict[str, tuple[Any, str]] = {
    "set": (str, "a text"),
    "length": ((*TEXT_OR_NUMBER, type(None)), "a text, a number or null"),
    "id": (TEXT_OR_NUMBER, "a text or a number"),
    "method": (str, "a text"),
    "sample": (int, "a number"),
    "task": (str, "a text"),
    "question": (str, "a text"),
    "answers": (list, "a list of texts"),
    "answer": ((str, type(None)), "a text or null"),
    "cut": (bool, "true or false"),
    "error": ((str, type(None)), "a text or null"),
    "document_tokens": ((*NUMBER, type(None)), "a number or null"),
    "memory_trace": ((dict, type(None)), "an object or null"),
    **dict.fromkeys(SCORES, (NUMBER, "a finite number")),
}
AVERAGE = "average"
LARGEST_LENGTH = 10**15
NUMERAL = re.compile(r"\s*\d{1,200}(\.\d{1,200})?\s*", re.ASCII)
# A user's agent may answer with half a surrogate pair; it is written as its JSON escape.
SURROGATES = "backslashreplace"

Length = int | float | str | None
IntervalOf = Callable[[list[dict], str], Interval]  # of a cell's rows and a metric


@dataclass(frozen=True)
class Cell:
    """One metric of a method on a set at a length."""

    set: str
    length: Length
    method: str
    interval: Interval  # over questions, unless `cells` was given another
    questions: int
    errors: int  # counted in rows: a question has one row per sample
    cut: int  # counted in rows
    document_tokens: float | None  # median over questions; None if no row has it
    rows: int
    sets: tuple[str, ...] = ()  # the sets that an average covers; empty for a single set's cell
    memory: MemoryCounts = MemoryCounts()  # sum over all rows; averages have none

    def numbers(self) -> dict[str, float]:
        """What a summary says of the cell: its score with the interval, and counts."""
        interval = {"score": self.interval.mean, "low": self.interval.low, "high": self.interval.high}
        return {**interval, "questions": self.questions, "errors": self.errors, "cut": self.cut}


def row_key(row: dict) -> tuple:
    """The unique key of a row: set, length, question id, method, sample."""
    return tuple(row[name] for name in KEY)


def read_results(path: str | Path) -> list[dict]:
    """Read the rows of results.jsonl.

    A last line without a line end that is not JSON is left out: the process was killed while writing it.

    Raises:
        ValueError: any other line is not a valid row, or two rows have the same set, length, id, method and sample.
    """
    rows: list[dict] = []
    first_lines: dict[tuple, int] = {}
    for number, row in enumerate(result_rows(path), start=1):
        first = first_lines.setdefault(row_key(row), number)
        if first != number:
            named = ", ".join(f"{name} {row[name]!r}" for name in KEY)
            raise ValueError(f"{path}, line {number} repeats line {first}: {named}")
        rows.append(row)
    return rows


def as_length(length: Length) -> Length:
    """The length in its table form: numbers written as text become numbers, and 8192.0 becomes 8192."""
    if isinstance(length, str) and NUMERAL.fullmatch(length):
        length = float(length) if "." in length else int(length)
    if isinstance(length, float) and length.is_integer() and abs(length) <= LARGEST_LENGTH:
        return int(length)
    return length


def bring_up_to_date(row: dict) -> None:
    """Bring a row of an older run to today's form, in place: numeric lengths as numbers, and the metrics it lacks."""
    row["length"] = as_length(row["length"])
    if missing := [name for name in METRICS if name not in row]:
        wrong = row.get("answer") is None or row["cut"] or row["error"] or not row["answers"]
        scores = {} if wrong else answer_scores(row["answer"], tuple(row["answers"]), row["task"])
        row.update({name: scores.get(name, 0.0) for name in missing})


def result_rows(path: str | Path) -> Iterator[dict]:
    """Yield the rows of results.jsonl one by one. Raises as `read_results`, but does not check for repeated rows."""
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    break
                raise ValueError(f"{where} is not JSON: {error}") from None
            check_row(row, where)
            bring_up_to_date(row)
            yield row


def check_row(row: object, where: str) -> None:
    """Raise a ValueError with place and reason if this is not a valid row of results.jsonl."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} is not a row of results but {type(row).__name__}")
    missing = [name for name in REQUIRED if name not in row and name not in METRICS]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    for name, (types, wanted) in TYPES.items():
        if name in row and not isinstance(row[name], types):
            raise ValueError(f"{where}: {name} must be {wanted}, not {reprlib.repr(row[name])[:100]}")
    if not all(isinstance(answer, str) for answer in row["answers"]):
        raise ValueError(f"{where}: answers must be a list of texts")
    for name in ("set", "length", "method"):  # these are printed and drawn
        if isinstance(row[name], str) and SURROGATE.search(row[name]):
            raise ValueError(f"{where}: {name} is not valid Unicode: it holds half of a surrogate pair")
    if isinstance(row["length"], (int, float)) and not abs(row["length"]) <= LARGEST_LENGTH:  # also true for NaN
        length = reprlib.repr(row["length"])
        raise ValueError(f"{where}: length must be a text or a number up to {LARGEST_LENGTH:.0e}, not {length}")
    for name in (*SCORES, "document_tokens"):
        # An int may be too large for a float.
        if row.get(name) is not None and not abs(row[name]) <= sys.float_info.max:
            raise ValueError(f"{where}: {name} must be a finite number, not {reprlib.repr(row[name])[:100]}")
    if not all(_is_ratio(ratio) for ratio in (row.get("memory_trace") or {}).values()):
        raise ValueError(f"{where}: memory_trace must have pairs of numbers")
    if unknown := set(row.get("memory_trace") or {}).difference(field.name for field in fields(MemoryCounts)):
        raise ValueError(f"{where}: memory_trace has unknown names: {reprlib.repr(sorted(unknown))[:100]}")


def _is_ratio(ratio: object) -> bool:
    return (
        isinstance(ratio, list) and len(ratio) == len(Ratio._fields) and all(isinstance(n, int | float) for n in ratio)
    )


def by_cell(rows: list[dict]) -> dict[tuple[str, Length, str], list[dict]]:
    """The rows of each (set, length, method), sorted by set and length; methods in order of first appearance."""
    methods = method_order(rows)
    groups = defaultdict(list)
    for row in rows:
        groups[row["set"], row["length"], row["method"]].append(row)
    return {key: groups[key] for key in sorted(groups, key=lambda k: (k[0], length_order(k[1]), methods[k[2]]))}


def method_order(rows: list[dict]) -> dict[str, int]:
    """The index of each method in order of first appearance."""
    return {method: place for place, method in enumerate(dict.fromkeys(row["method"] for row in rows))}


def length_order(length: Length) -> tuple:
    """Sort key: first no length, then numbers by size, then names."""
    if length is None:
        return (0,)
    return (1, length) if isinstance(length, (int, float)) else (2, length)


def length_label(length: Length) -> str:
    """The length as printed: 8192 as 8K, 1048576 as 1M, 3670016 as 3.5M; None as "all"; anything else unchanged."""
    if length is None:
        return "all"
    if isinstance(length, (int, float)):
        for unit, letter in ((2**20, "M"), (2**10, "K")):
            if length >= unit and length % (unit // 4) == 0:
                return f"{length / unit:.12g}{letter}"
    return str(length)


def question_scores(rows: list[dict], metric: str = "score") -> dict[str, float]:
    """Each question's mean score over its samples, by question id. The rows must belong to one cell."""
    samples = defaultdict(list)
    for row in rows:
        samples[row["id"]].append(row[metric])
    return {question: math.fsum(scores) / len(scores) for question, scores in samples.items()}


def question_interval(rows: list[dict], metric: str = "score") -> Interval:
    """The mean over questions with its interval. The rows must belong to one cell."""
    return mean_interval(list(question_scores(rows, metric).values()))


def cells(rows: list[dict], metric: str = "score", interval: IntervalOf = question_interval) -> list[Cell]:
    """One cell for each (set, length, method), in the order of `by_cell`."""
    return [cell_of(key, group, metric, interval) for key, group in by_cell(rows).items()]


def cell_of(key: tuple[str, Length, str], rows: list[dict], metric: str, interval: IntervalOf) -> Cell:
    """The cell of the given rows, which all have this (set, length, method)."""
    return Cell(
        *key,
        interval(rows, metric),
        len({row["id"] for row in rows}),
        *counts(rows),
        document_tokens=median_tokens(rows),
        rows=len(rows),
        memory=memory_counts(rows),
    )


def average_cells(rows: list[dict]) -> list[Cell]:
    """For each method and length, the mean of the sets' means as in RULER, if at least two sets have them.

    Sets weigh equally. The interval is a bootstrap of the questions within each set, so a set on which all answers
    score the same adds nothing to its width. `sets` names the sets: averages over different sets do not compare. Rows
    without a length are left out.
    """
    methods = method_order(rows)
    groups: dict[tuple[Length, str], dict[str, list[dict]]] = defaultdict(dict)
    for (name, length, method), group in by_cell([row for row in rows if row["length"] is not None]).items():
        groups[length, method][name] = group
    averages = []
    for length, method in sorted(groups, key=lambda key: (length_order(key[0]), methods[key[1]])):
        of_sets = groups[length, method]
        if len(of_sets) < 2:
            continue
        interval = stratified_mean([list(question_scores(group).values()) for group in of_sets.values()])
        together = [row for group in of_sets.values() for row in group]
        tokens = [median_tokens(group) for group in of_sets.values()]
        averages.append(
            Cell(
                AVERAGE,
                length,
                method,
                interval,
                interval.n,
                *counts(together),
                document_tokens=median(known) if (known := [t for t in tokens if t is not None]) else None,
                rows=len(together),
                sets=tuple(of_sets),
            )
        )
    return averages


def counts(rows: list[dict]) -> tuple[int, int]:
    """The numbers of errors and of cut answers."""
    return sum(row["error"] is not None for row in rows), sum(bool(row["cut"]) for row in rows)


def median_tokens(rows: list[dict]) -> float | None:
    """The median number of document tokens over the questions; None if no row has it."""
    known = {row["id"]: row["document_tokens"] for row in rows if row["document_tokens"] is not None}
    return median(known.values()) if known else None


def memory_counts(rows: list[dict]) -> MemoryCounts:
    """The sum of the rows' memory counts; rows of older runs have none."""
    traces = [trace for row in rows if (trace := row.get("memory_trace"))]
    counted = (MemoryCounts(**{name: Ratio(*ratio) for name, ratio in trace.items()}) for trace in traces)
    return sum(counted, MemoryCounts())


def open_results(path: Path, storage: Storage | None = None) -> tuple[LineFile, list[dict]]:
    """Open results.jsonl for appending, and return its rows.

    A torn last line and rows of errors are removed from the file, so that their questions are asked again.

    Raises:
        ValueError: see `read_results`.
    """
    rows = [row for row in read_results(path) if row["error"] is None] if path.exists() else []
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", errors=SURROGATES) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial.replace(path)
    return LineFile(path, storage), rows
