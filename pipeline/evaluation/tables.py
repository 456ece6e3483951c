"""Tables of results: Markdown to read, CSV to process further."""

import csv
import io
from collections.abc import Iterable

from pipeline.evaluation.answer_scores import METRICS, PRIMARY_METRIC
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.results import (
    SCORES,
    Cell,
    average_cells,
    cells,
    length_label,
    length_order,
    method_order,
)

NOTHING = "–"
CSV_COLUMNS = ("set", "length", "method", "metric", "mean", "low", "high")
CSV_COUNTS = ("questions", "errors", "cut", "document_tokens")
MEMORY_COLUMNS = {
    "written": "Written",
    "kept": "Kept",
    "answered": "Answered",
    "junk": "Junk",
    "tokens": "Memory tokens",
}
MEMORY_CAPTIONS = {
    "written": "Written, in percent: needed facts that enter the memory when the chunk has them and the memory has all "
    "they build on.",
    "kept": "Kept: needed facts of a memory that are in the next one, too.",
    "answered": "Answered: right answers when the last memory has all needed facts.",
    "junk": "Junk: the share of the memories' tokens that belong to no needed fact.",
    "tokens": "Memory tokens: the mean length of a memory.",
}


def markdown_table(rows: list[dict]) -> str:
    """All results in Markdown.

    For each set a table of scores, methods by lengths; the average over sets; the memory's statistics, if any row has
    them; and all metrics of every cell. Scores are in percent with 95% intervals. Errors and cut answers are listed
    below each table.
    """
    if not rows:
        return "No results.\n"
    score_cells, methods = cells(rows), method_order(rows)
    parts = []
    for name in dict.fromkeys(cell.set for cell in score_cells):
        tasks = dict.fromkeys(row["task"] for row in rows if row["set"] == name)
        of_set = [cell for cell in score_cells if cell.set == name]
        parts += [f"## {escaped(name)}", grid(of_set, methods, score_name(list(tasks)))]
    averages = average_cells(rows)
    if averages:
        parts += ["## Average over sets", grid(averages, methods, "mean of the sets' means")]
    if traced := [cell for cell in score_cells if cell.memory.tokens.whole]:
        parts += ["## What the memory did", memory_table(traced)]
    parts += ["## All metrics", metrics_table(rows)]
    return "\n\n".join(parts) + "\n"


def csv_table(rows: list[dict]) -> str:
    """CSV with one line per set, length, method and metric (the score included); scores are in [0, 1]."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*CSV_COLUMNS, *CSV_COUNTS))
    by_metric = [cells(rows, metric) for metric in SCORES]
    for of_cell in zip(*by_metric, strict=True):
        for metric, cell in zip(SCORES, of_cell, strict=True):
            mean, low, high, _ = cell.interval
            numbers = (getattr(cell, name) for name in CSV_COUNTS)
            writer.writerow((cell.set, cell.length, cell.method, metric, mean, low, high, *numbers))
    return text.getvalue()


def grid(of_set: list[Cell], methods: Iterable[str], what: str) -> str:
    """A table of methods by lengths, with a caption above it and errors and cut answers below."""
    lengths = sorted({cell.length for cell in of_set}, key=length_order)
    by_place = {(cell.method, cell.length): cell for cell in of_set}
    one_size = len({(cell.questions, cell.sets) for cell in of_set}) == 1
    caption = f"Score in percent ({what}) with its 95% interval"
    caption += f"; {size(of_set[0])}." if one_size else "; each cell has n, the number of questions."
    lines = [
        [escaped(method)] + [grid_cell(by_place.get((method, length)), one_size) for length in lengths]
        for method in methods
        if any(cell.method == method for cell in of_set)
    ]
    table = markdown_lines(["Method", *(escaped(length_label(length)) for length in lengths)], lines)
    return "\n\n".join([caption, table, faults(of_set)])


def grid_cell(cell: Cell | None, one_size: bool) -> str:
    if cell is None:
        return NOTHING
    return percent(cell.interval) + ("" if one_size else f" ({size(cell)})")


def size(cell: Cell) -> str:
    return f"n = {cell.questions}" + (f" in {len(cell.sets)} sets" if cell.sets else "")


def faults(of_set: list[Cell]) -> str:
    """The numbers of failed and cut answers, cell by cell."""
    errors = [f"{place(cell)} {cell.errors} of {cell.rows}" for cell in of_set if cell.errors]
    cut = [f"{place(cell)} {cell.cut} of {cell.rows}" for cell in of_set if cell.cut]
    return " ".join(
        [
            f"Errors, counted as wrong: {'; '.join(errors)}." if errors else "No errors.",
            f"Cut at their length limit, counted as wrong: {'; '.join(cut)}." if cut else "No cut answers.",
        ]
    )


def place(cell: Cell) -> str:
    return escaped(cell.method) + ("" if cell.length is None else f" at {escaped(length_label(cell.length))}")


def metrics_table(rows: list[dict]) -> str:
    """A table with the means of all metrics and the counts of every cell."""
    by_metric = [cells(rows, metric) for metric in METRICS]
    lines = []
    for of_cell in zip(*by_metric, strict=True):
        cell = of_cell[0]
        means = [f"{100 * c.interval.mean:.1f}" for c in of_cell]
        names = [escaped(cell.set), escaped(length_label(cell.length)), escaped(cell.method)]
        lines.append([*names, *means, str(cell.questions), str(cell.rows), str(cell.errors), str(cell.cut)])
    header = ["Set", "Length", "Method", *METRICS, "n", "Answers", "Errors", "Cut"]
    return "Means in percent over n questions.\n\n" + markdown_lines(header, lines)


def memory_table(traced: list[Cell]) -> str:
    """A table of each cell's memory statistics; a statistic that no cell has gets no column."""
    shares = [cell.memory.shares() for cell in traced]
    known = [name for name in shares[0] if any(share[name] is not None for share in shares)]
    lines = []
    for cell, share in zip(traced, shares, strict=True):
        names = [escaped(cell.set), escaped(length_label(cell.length)), escaped(cell.method)]
        lines.append([*names, *(memory_number(name, share[name]) for name in known)])
    caption = " ".join(MEMORY_CAPTIONS[name] for name in known)
    header = ["Set", "Length", "Method", *(MEMORY_COLUMNS[name] for name in known)]
    return f"{caption}\n\n{markdown_lines(header, lines)}"


def memory_number(name: str, number: float | None) -> str:
    if number is None:
        return NOTHING
    return f"{number:.1f}" if name == "tokens" else f"{100 * number:.1f}"


def score_name(tasks: list[str]) -> str:
    """The names of these tasks' primary metrics."""
    return ", ".join(dict.fromkeys(escaped(PRIMARY_METRIC.get(task, task)) for task in tasks))


def percent(interval: Interval) -> str:
    """The interval in percent, such as 78.9 [71.0, 85.1]."""
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def markdown_lines(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table of texts that are already escaped."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def escaped(name: str) -> str:
    """The name, escaped so that it cannot break out of its table cell."""
    return printable(name).replace("\\", "\\\\").replace("|", "\\|")


def printable(name: str) -> str:
    """The name on one line, without control characters that a terminal would obey."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(name.split()))
