"""Writes the page of a run: one HTML file with its style, script and data, that asks the network for nothing.

Data are JSON in elements that no browser runs, and the script shows them as text only. The page's security policy
forbids all but its own style and script, named by their hashes.
"""

import base64
import hashlib
import json
import time
from pathlib import Path

from pipeline.files import write_bytes
from pipeline.view.before_after import comparisons
from pipeline.view.curves import metric_curves, validation_curves
from pipeline.view.episodes import sampled_episodes
from pipeline.view.lines import Notes, json_object, number, text

PAGE = "view.html"
HERE = Path(__file__).parent
SCRIPTS = ("elements.js", "curves.js", "difference.js", "tokens.js", "episodes.js", "before_after.js", "page.js")
# The numbers of summary.json at the top of the page.
SHOWN = ("model", "steps", "seconds", "weight_version", "reward_first", "reward_last")
LISTED = ("step", "reward", "task", "question")  # of an episode, known before it is opened
MOST_LISTED = 200  # characters of a text in a list


def write_page(folder: Path, path: Path) -> list[str]:
    """Write the page of a run folder.

    Args:
        folder: the run folder.
        path: the file to write.

    Returns:
        What the page does not show, in words.

    Raises:
        OSError: the page cannot be written.
    """
    notes = Notes()
    write_bytes(path, page_of(run_data(folder, notes)))
    return notes.texts()


def run_data(folder: Path, notes: Notes, summary: dict | None = None) -> dict:
    """All data of the page, from the files that a run has left so far.

    Args:
        folder: the run folder.
        notes: receives what the page does not show.
        summary: the run's summary, if summary.json is not written yet.

    Returns:
        `run` (name, status, numbers, notes), `curves`, `validation`, `episodes` and `comparisons`.
    """
    summary = summary or json_object(folder / "summary.json", "summary.json", notes)
    curves, validation = metric_curves(folder, notes), validation_curves(folder, notes)
    episodes, compared = sampled_episodes(folder, notes), comparisons(folder, notes)
    if not summary:
        notes.add("There is no summary.json: the run is not over, or it was stopped by force.")
    if not compared:
        notes.add("There is nothing to compare: no evaluation, and no two validations.")
    run = {
        "name": folder.resolve().name,
        "status": text(summary.get("status")) or "without a summary",
        "error": text(summary.get("error"))[-2000:],
        "numbers": [[name, value] for name in SHOWN if (value := _shown(summary.get(name))) is not None],
        "written": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "notes": notes.texts(),
    }
    return {"run": run, "curves": curves, "validation": validation, "episodes": episodes, "comparisons": compared}


def _shown(value: object) -> str | float | int | None:
    return value[:300] if isinstance(value, str) else number(value)


def page_of(data: dict) -> bytes:
    """The page of `run_data`, as UTF-8. Episodes and pairs are elements of their own, read when they are opened."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    code = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{code}\n}})();\n'
    episodes, compared = data["episodes"], data["comparisons"]
    index = {
        **{name: data[name] for name in ("run", "curves", "validation")},
        "episodes": {name: [_short(episode[name]) for episode in episodes] for name in LISTED},
        "comparisons": [{**one, "pairs": [_listed(*pair) for pair in one["pairs"]]} for one in compared],
    }
    elements = [_data("data", index)]
    elements += [_data(f"episode-{i}", episode) for i, episode in enumerate(episodes)]
    for c, one in enumerate(compared):
        elements += [_data(f"pair-{c}-{p}", pair) for p, pair in enumerate(one["pairs"])]
    parts = {
        "{style hash}": _digest(style),
        "{script hash}": _digest(script),
        "{style}": style,
        "{data}": "\n".join(elements),
        "{script}": script,
    }
    page = (HERE / "page.html").read_text(encoding="utf-8")
    pieces = []
    for slot, content in parts.items():  # in the order of the page: what fills a slot is not searched for others
        before, _, page = page.partition(slot)
        pieces += [before, content]
    return "".join([*pieces, page]).encode(errors="backslashreplace")


def _listed(where: str, question: str, gold: list[str], before: list, after: list) -> list:
    """What a pair is named and filtered by: set and length, question, the two scores."""
    return [where, _short(question), before[1], after[1]]


def _short(value: object) -> object:
    return value[:MOST_LISTED] if isinstance(value, str) else value


def _data(name: str, value: object) -> str:
    """An element with data: as JSON, in which no `<` can end the element. A lone surrogate becomes JSON's escape."""
    content = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{content}</script>'


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
