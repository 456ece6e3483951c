"""What the checks found: one result per check, sent from a part's process as it is known, and the table of all."""

import contextlib
import json
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from jobs.bench.measuring import table
from pipeline.errors import reason_of

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
HEAD = ("part", "check", "result", "seconds", "measured")


@dataclass(frozen=True)
class Result:
    part: str
    check: str
    state: str  # PASSED, FAILED or SKIPPED
    seconds: float
    measured: str  # numbers with their tolerances; the reason if it is not passed


class Missed(Exception):
    """A check found something wrong. The message says what."""


class Skipped(Exception):
    """A check does not apply here. The message says why."""


class Measured:
    """Collects what a check measures.

    Attributes:
        said: the numbers, in words.
    """

    def __init__(self) -> None:
        self.said: list[str] = []
        self._missed = False

    def note(self, text: str) -> None:
        self.said.append(text)

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Note a number, which must not be above its limit. A NaN is."""
        self._compare(name, value, "≤" if value <= limit else ">", limit)

    def at_least(self, name: str, value: float, limit: float) -> None:
        """Note a number, which must not be below its limit. A NaN is."""
        self._compare(name, value, "≥" if value >= limit else "<", limit)

    def _compare(self, name: str, value: float, sign: str, limit: float) -> None:
        self.said.append(f"{name} {value:.3g} {sign} {limit:g}")
        self._missed |= sign in "<>"

    def settle(self) -> None:
        """Raise `Missed` if a number was beyond its limit."""
        if self._missed:
            raise Missed


class Report:
    """Sends a part's results.

    Args:
        part: the part's name.
        lines: where each check is announced, and its result written, as a line of JSON.
    """

    def __init__(self, part: str, lines: TextIO):
        self.part, self._lines = part, lines

    @contextlib.contextmanager
    def check(self, name: str) -> Iterator[Measured]:
        """Context manager of one check, which is passed if its body ends.

        `Missed` and `Skipped` end the body, and the part continues. Any other exception is a failure and is raised
        again: what follows in the part may depend on the check.
        """
        self._send(begins=name)
        measured, begin = Measured(), time.perf_counter()

        def send(state: str, *more: str) -> None:
            seconds = time.perf_counter() - begin
            self._send(result=vars(Result(self.part, name, state, seconds, ", ".join([*more, *measured.said]))))

        try:
            yield measured
            measured.settle()
        except Missed as missed:
            send(FAILED, *filter(None, [str(missed)]))
        except Skipped as skipped:
            send(SKIPPED, str(skipped))
        except Exception as error:
            traceback.print_exc()  # in the part's log
            send(FAILED, reason_of(error))
            raise
        else:
            send(PASSED)

    def _send(self, **line: object) -> None:
        print(json.dumps(line), file=self._lines, flush=True)


def received(line: str) -> Result | str:
    """What a line of a `Report` says: the name of a check that begins, or its result."""
    sent = json.loads(line)
    return Result(**sent["result"]) if "result" in sent else sent["begins"]


def table_of(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    return table(HEAD, [(r.part, r.check, r.state, f"{r.seconds:.1f}", r.measured) for r in results])


def counts(results: Sequence[Result]) -> dict[str, int]:
    """The number of results of each state."""
    return {state: sum(r.state == state for r in results) for state in (PASSED, FAILED, SKIPPED)}
