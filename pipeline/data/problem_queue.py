"""Which problem runs next, and which are unfinished: the part of the data's state that a checkpoint keeps."""

import heapq
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.data.problem_stream import START, Cursor, problem_at, problem_stream
from pipeline.data.quarantine import Quarantine
from pipeline.errors import BadRow, DataError
from pipeline.problems import Problem


@dataclass
class OpenProblem:
    """One that is handed out and not done with."""

    problem: Problem
    failures: int = 0  # of attempts at it


class ProblemQueue:
    """Hands out problems in the order of their positions in the data; problems to be run again come first.

    `next` reads, so call it in a thread; all other methods are quick.

    Args:
        source: the problems' source (`training_source` in pipeline/run/source.py).
        seed: the seed of their order.
        quarantine: receives the bad rows.
        cursor: where the run resumes.
        withdrawn: the ids of problems that were withdrawn before.
    """

    def __init__(
        self, source, seed: int, quarantine: Quarantine, cursor: Cursor = START, withdrawn: Iterable[str] = ()
    ):
        self._source, self._seed = source, seed
        self._stream = problem_stream(source, seed, quarantine, cursor)
        self._position = cursor.position
        self._unread = set(cursor.open)  # open positions that the stream has not reached
        self._open: dict[int, OpenProblem] = {}  # handed out and unfinished, by position
        self._again: list[int] = []  # a heap of positions
        self._reading: int | None = None  # taken off the heap, not yet in `_open`
        self._withdrawn = set(withdrawn)
        self._lock = threading.Lock()

    def next(self) -> int:
        """The position of the next problem, which is read if necessary.

        Raises:
            DataError: too many rows are bad, or all problems of a whole pass were withdrawn.
        """
        passed = 0
        while passed < len(self._source):
            with self._lock:
                position = self._reading = heapq.heappop(self._again) if self._again else None
            if position is None:
                position, problem = next(self._stream)
            elif position in self._open:
                problem = self._open[position].problem
            else:
                try:
                    problem = problem_at(self._source, self._seed, position)
                except BadRow:
                    continue  # the stream has quarantined it
            with self._lock:
                self._reading = None
                self._unread.discard(position)
                self._position = max(self._position, position + 1)
                if problem.id not in self._withdrawn:
                    self._open.setdefault(position, OpenProblem(problem))
                    return position
                self._open.pop(position, None)
            passed += 1
        raise DataError("all problems were withdrawn; their reasons are in quarantine.jsonl")

    def problem(self, position: int) -> Problem:
        return self._open[position].problem

    def failed(self, position: int) -> int:
        """An attempt at this problem has failed; return how many have by now."""
        self._open[position].failures += 1
        return self._open[position].failures

    def again(self, position: int) -> None:
        """Queue this problem to be run again."""
        with self._lock:
            heapq.heappush(self._again, position)

    def done(self, position: int) -> Problem:
        """Finish this problem, trained or discarded; return it."""
        with self._lock:
            return self._open.pop(position).problem

    def withdraw(self, position: int) -> Problem:
        """Withdraw this problem, by its id: it is never run again, whatever happens. Return it."""
        problem = self.done(position)
        self._withdrawn.add(problem.id)
        return problem

    @property
    def withdrawn(self) -> list[str]:
        """The ids of the withdrawn problems, sorted."""
        return sorted(self._withdrawn)

    def cursor(self) -> Cursor:
        """Where the run stands. All unfinished problems are open."""
        with self._lock:
            return Cursor(self._position, tuple(sorted(self._not_done())))

    def roll_back(self, cursor: Cursor) -> None:
        """Hand out again the problems that were finished since the run stood at `cursor`."""
        with self._lock:
            since = {*cursor.open, *range(cursor.position, self._position)}
            since -= self._not_done()  # `next` skips withdrawn ones
            self._again = sorted({*self._again, *since})  # a sorted list is a heap

    def _not_done(self) -> set[int]:
        reading = set() if self._reading is None else {self._reading}
        return {*self._open, *self._again, *self._unread, *reading}
