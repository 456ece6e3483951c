"""successes.jsonl: the conversations that led to right answers, for fine-tuning (rejection sampling).

A line is one conversation, in tokens of the model that wrote it:

    {"set": …, "length": …, "id": …, "method": …, "sample": …, "prompt_tokens": […], "response_tokens": […]}
"""

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.evaluation.results import KEY, row_key
from pipeline.storage import LineFile, Storage


def success_lines(row: dict, transcript: tuple[tuple[list[int], list[int]], ...]) -> Iterator[str]:
    """Yield the lines of an episode, without line ends.

    Args:
        row: the episode's row of results.jsonl.
        transcript: prompt and response of each conversation, in order.
    """
    key = {name: row[name] for name in KEY}
    for prompt, response in transcript:
        yield json.dumps(key | {"prompt_tokens": prompt, "response_tokens": response}, ensure_ascii=False)


def open_successes(path: Path, rows: list[dict], storage: Storage | None = None) -> LineFile:
    """Open successes.jsonl for appending.

    Lines without a row among `rows` of results.jsonl are removed: their questions are asked again.
    """
    if path.exists():
        answered = {row_key(row) for row in rows}
        partial = path.with_suffix(".partial")
        with path.open(encoding="utf-8") as lines, partial.open("w", encoding="utf-8") as kept:
            whole = (line for line in lines if line.endswith("\n"))  # without a torn last line
            kept.writelines(line for line in whole if row_key(json.loads(line)) in answered)
        partial.replace(path)
    return LineFile(path, storage)
