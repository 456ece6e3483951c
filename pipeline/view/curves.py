"""The curves of a run: its metrics by step, and the scores of its validations."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.evaluation.results import length_label
from pipeline.view.lines import Notes, json_lines, number, rounded

MOST_STEPS = 1000  # steps of a curve; of more, evenly spread ones are shown
MOST_METRICS = 200
MOST_CELLS = 100  # sets and lengths of the validations
METRICS, VALIDATION = "metrics.jsonl", "validation.jsonl"


def metric_curves(folder: Path, notes: Notes) -> dict:
    """The metrics by step, from metrics.jsonl.

    Returns:
        `steps`, a list of S numbers, and `metrics`: for each metric that is a number in some row, a list of S numbers,
        None where a row lacks it.
    """
    rows = {}
    for row in json_lines(folder / METRICS, METRICS, notes):
        step = number(row.get("step"))
        if step is None:
            notes.bad_lines[METRICS] = notes.bad_lines.get(METRICS, 0) + 1
            continue
        rows[step] = {name: short for name, value in row.items() if (short := rounded(value)) is not None}
    steps = spread(sorted(rows), MOST_STEPS)
    if len(steps) < len(rows):
        notes.add(f"The curves show {len(steps)} of {len(rows)} steps, evenly spread.")
    names = dict.fromkeys(name for step in steps for name in rows[step] if name != "step")
    kept = list(names)[:MOST_METRICS]
    return {"steps": steps, "metrics": {name: [rows[step].get(name) for step in steps] for name in kept}}


def validation_curves(folder: Path, notes: Notes) -> dict[str, list[list[float | None]]]:
    """The scores on held-out questions, from validation.jsonl.

    Returns:
        For `all` and for each set and length a list of [place among the steps, score, low, high]; the last two are the
        95% interval, None if unknown. The place is that of the versions that answered (`score_curves`).
    """
    points: dict[str, list[list[float | None]]] = {}
    rows = list(json_lines(folder / VALIDATION, VALIDATION, notes))
    # A resumed run may ask other questions than before: scores that do not compare make no line.
    comparable = [row for row in rows if row.get("questions") == rows[-1].get("questions")]
    if len(comparable) < len(rows):
        notes.add(f"{len(rows) - len(comparable)} validations asked other questions than the last one: not shown.")
    for row in comparable:
        step, score = number(row.get("step")), rounded(row.get("score"))
        if step is None or score is None:
            notes.bad_lines[VALIDATION] = notes.bad_lines.get(VALIDATION, 0) + 1
            continue
        points.setdefault("all", []).append([step, score, None, None])
        for label, cell in _cells(row):
            mean, begun, of_cell = (number(x) for x in (cell.get("version_mean"), row.get("version"), cell["score"]))
            place = step if mean is None or begun is None else rounded(step + mean - begun)
            if of_cell is not None and (label in points or len(points) <= MOST_CELLS):
                points.setdefault(label, []).append([place, *(rounded(cell.get(n)) for n in ("score", "low", "high"))])
    if len(points) == 2:  # one cell is the same as all
        del points["all"]
    return points


def _cells(row: dict) -> Iterator[tuple[str, dict]]:
    cells = [c for c in row.get("cells") or () if isinstance(c, dict) and {"set", "length", "score"} <= c.keys()]
    sets = {str(cell["set"]) for cell in cells}
    for cell in cells:
        length = cell["length"]
        length = length_label(length) if isinstance(length, (str, int, float)) else "-"
        yield length if len(sets) == 1 else f"{cell['set']} {length}", cell


def spread(items: list, most: int) -> list:
    """At most `most` items, evenly spread, with the first and the last one."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
