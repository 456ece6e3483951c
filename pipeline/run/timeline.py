"""timeline.json: what each actor did when, in Chrome's trace event format, which https://ui.perfetto.dev shows.

The array is never closed, so that a run of any length can append to it; the format allows that.
"""

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator

from pipeline.storage import LineFile


class Timeline:
    """Writes spans. Those of an actor that overlap get rows of their own; each life of a run has a group of rows.

    Args:
        file: the file. Spans wait for `write`.
    """

    def __init__(self, file: LineFile):
        self.file = file
        self._life = int(time.time())
        self._lines: list[str] = []
        self._ends: dict[str, list[float]] = defaultdict(list)  # by actor: the end of the last span of each of its rows
        self._rows: dict[tuple[str, int], int] = {}  # number of each row of an actor

    def begin(self, continues: bool) -> None:
        """Begin the file, or continue one that is there."""
        self._lines += [] if continues else ["["]
        shown = time.strftime("from %Y-%m-%d %H:%M:%S", time.localtime(self._life))
        named = {"name": "process_name", "ph": "M", "pid": self._life, "args": {"name": shown}}
        self._lines.append(json.dumps(named) + ",")

    def write(self) -> None:
        """Have the waiting spans written, without waiting for it."""
        if self._lines:
            self.file.put(*self._lines)
            self._lines = []

    @contextlib.contextmanager
    def span(self, actor: str, name: str, **details: object) -> Iterator[None]:
        """Context manager whose duration is a span, however it ends."""
        begin = time.time()
        try:
            yield
        finally:
            self.add(actor, name, begin, time.time(), **details)

    def add(self, actor: str, name: str, begin: float, end: float, **details: object) -> None:
        """Add a span.

        Args:
            actor: who did it.
            name: what it did.
            begin, end: times in seconds since the epoch.
            details: shown with the span.
        """
        ends = self._ends[actor]
        place = next((place for place, last in enumerate(ends) if last <= begin), len(ends))
        ends[place : place + 1] = [end]
        if (actor, place) not in self._rows:
            self._rows[actor, place] = len(self._rows) + 1
            shown = f"{actor} ({place + 1})" if place else actor
            self._put("thread_name", "M", actor, place, args={"name": shown})
        at = {"ts": round(begin * 1e6), "dur": round((end - begin) * 1e6)}
        self._put(name, "X", actor, place, **at, args=details)

    def _put(self, name: str, phase: str, actor: str, place: int, **fields: object) -> None:
        event = {"name": name, "ph": phase, "pid": self._life, "tid": self._rows[actor, place], **fields}
        self._lines.append(json.dumps(event) + ",")
