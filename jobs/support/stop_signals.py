"""SIGINT and SIGTERM while a job runs."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Self


class StopSignals:
    """Handles SIGINT and SIGTERM, as a context manager: the first asks the job to stop, the second raises
    KeyboardInterrupt."""

    def __init__(self):
        self.asked = False
        self._answers: list[Callable[[], object]] = []

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def add(self, answer: Callable[[], object]) -> None:
        """Call `answer`, too, at the first signal; at once if it has already come."""
        self._answers.append(answer)
        if self.asked:
            answer()

    def only(self, answer: Callable[[], object]) -> None:
        """Call `answer` and nothing else at the first signal, if it has not yet come."""
        self._answers = [answer]

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        for answer in list(self._answers):
            answer()
