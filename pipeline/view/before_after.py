"""Answers to the same question before and after training: of the evaluation, and of the first and last validation."""

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.run.validation_file import ANSWERS
from pipeline.view.lines import Notes, json_lines, number, rounded, text, texts

MOST_PAIRS = 100  # of a comparison; questions whose score changed come first
MOST_MEMORIES = 8  # last memories of an answer
MOST_CHARACTERS = 2000  # of a text
KEY = ("set", "length", "id", "method", "sample")
RESULTS = "results.jsonl"

Key = tuple[str, ...]


def comparisons(folder: Path, notes: Notes) -> list[dict]:
    """The comparisons that a run folder has.

    Returns:
        For each `title`, `before` and `after` (what answered), `of` (the number of questions that both answered), and
        `pairs`: [set and length, question, gold answers, before, after]. An answer is [text, score, memories].
    """
    found = []
    evaluation = folder / "evaluation"
    # A run that went on has several. Runs of earlier versions name no step.
    last = [evaluation / "after-RL", *_by_step(evaluation, "after-RL-").values()][-1]
    places = [("Evaluation", [("before RL", evaluation / "before-RL"), ("after RL", last)])]
    steps = list(_by_step(folder / ANSWERS, "step-").items())
    if len(steps) > 1:
        places.append(("Validation", [(f"step {step}", path) for step, path in (steps[0], steps[-1])]))
    for title, ((before, old), (after, new)) in places:
        names = [str((path / RESULTS).relative_to(folder)) for path in (old, new)]
        pairs, of = _pairs(old / RESULTS, new / RESULTS, names, notes)
        if pairs:
            found.append({"title": title, "before": before, "after": after, "of": of, "pairs": pairs})
    return found


def _by_step(folder: Path, prefix: str) -> dict[int, Path]:
    """The paths in a folder whose names are `prefix` and a step, by step."""
    named = {path: re.fullmatch(rf"{prefix}(\d+)", path.name) for path in folder.glob(f"{prefix}*")}
    return dict(sorted((int(match[1]), path) for path, match in named.items() if match))


def _pairs(old: Path, new: Path, names: list[str], notes: Notes) -> tuple[list[list], int]:
    """The pairs to show, and the number of questions that both files answer. The files may be large: read in passes."""
    counts = Notes()  # lines are counted in the first pass only
    scores = [
        {key: number(row.get("score")) for key, row in _keyed(path, name, notes)}
        for path, name in zip((old, new), names, strict=True)
    ]
    both = [key for key in scores[0] if key in scores[1]]
    shown = sorted(both, key=lambda key: scores[0][key] == scores[1][key])[:MOST_PAIRS]
    wanted = set(shown)
    rows = [{key: row for key, row in _keyed(path, "", counts) if key in wanted} for path in (old, new)]
    shown = [key for key in shown if all(key in of_file for of_file in rows)]
    return [_pair(rows[0][key], rows[1][key]) for key in shown], len(both)


def _keyed(path: Path, name: str, notes: Notes) -> Iterator[tuple[Key, dict]]:
    for row in json_lines(path, name, notes):
        yield tuple(str(row.get(column)) for column in KEY), row


def _pair(before: dict, after: dict) -> list:
    where = " ".join(str(before[name]) for name in ("set", "length") if before.get(name) is not None)
    gold = [_cut(answer) for answer in texts(before.get("answers"))[:20]]
    return [_cut(where), _cut(text(before.get("question"))), gold, _answer(before), _answer(after)]


def _answer(row: dict) -> list:
    answer = row.get("answer")
    shown = text(answer) if answer is not None else f"no answer: {row.get('error')}"
    memories = [_cut(memory) for memory in texts(row.get("memories"))[-MOST_MEMORIES:]]
    return [_cut(shown), rounded(row.get("score")), memories]


def _cut(shown: str) -> str:
    return shown if len(shown) <= MOST_CHARACTERS else f"{shown[:MOST_CHARACTERS]}…"
