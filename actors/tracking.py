"""A job's client of its tracker, whose calls never block for long."""

import asyncio
from collections.abc import Callable

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.tracker import METRICS, Tracker
from pipeline.alerts import Alert
from pipeline.errors import reason_of

ANSWER_S = 60.0  # limit for an answer of the tracker; then the job continues


def start_tracker(*arguments) -> ray.actor.ActorHandle:
    """Start a tracker on this node, on which the run folder is, also if no other node has it; return its handle.

    Args:
        arguments: those of `Tracker`.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return Tracker.options(scheduling_strategy=here).remote(*arguments)


class Tracking:
    """A job's client of its tracker. Failures of the tracker neither end the job nor block it for long.

    Args:
        tracker: the actor's handle.
        say: called with each progress line.
    """

    def __init__(self, tracker, say: Callable[[str], None]):
        self.tracker, self._say = tracker, say
        self._late: asyncio.Future | None = None  # a call without an answer in time
        self._unanswered = 0  # number of rows
        self._said = False

    async def begun(self) -> tuple[list[dict], list[dict], str, str]:
        """See `Tracker.begun`, whose errors it raises."""
        *found, news = await self.tracker.begun.remote()
        self._tell(news)
        return tuple(found)

    async def log(self, row: dict) -> None:
        """See `Tracker.log`. Returns when the row is on disk, but after `ANSWER_S` seconds at the latest."""
        news = await self._answer(self.tracker.log.remote(row))
        self._unanswered += news is None
        self._tell(news or [])

    async def validated(self, row: dict, answers: list[dict]) -> None:
        """See `Tracker.validated`."""
        self._tell(await self._answer(self.tracker.validated.remote(row, answers)) or [])

    async def roll_back(self, step: int) -> None:
        """See `Tracker.roll_back`."""
        self._tell(await self._answer(self.tracker.roll_back.remote(step)) or [])

    async def episodes(self, step: int, samples: list, logprobs: list[ray.ObjectRef]) -> None:
        """See `Tracker.episodes`."""
        self._tell(await self._answer(self.tracker.episodes.remote(step, samples, logprobs)) or [])

    def alert(self, alert: Alert) -> None:
        """See `Tracker.alert`. Does not wait; while the tracker does not answer, the alert is dropped."""
        if not self._is_late:
            self.tracker.alert.remote(alert.topic, str(alert))

    def draw(self) -> None:
        """See `Tracker.draw`. Does not wait."""
        self.tracker.draw.remote()

    def abandon(self) -> None:
        """Kill the tracker, so that it writes nothing more: the run folder belongs to another run."""
        ray.kill(self.tracker)

    async def flush(self) -> dict[str, int]:
        """The number of missing rows or files, by file, where there are any; see `Tracker.flush`."""
        unwritten, news = await self._answer(self.tracker.flush.remote()) or ({METRICS: self._unanswered}, [])
        self._tell(news)
        return {file: number for file, number in unwritten.items() if number}

    async def finish(self, summary: dict) -> None:
        """See `Tracker.finish`."""
        self._tell(await self._answer(self.tracker.finish.remote(summary)) or [])

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            self._say(line)

    @property
    def _is_late(self) -> bool:
        return self._late is not None and not self._late.done()

    async def _answer(self, call: ray.ObjectRef):
        """The tracker's answer; None if it fails or takes too long, which is reported once. A late call still runs."""
        if self._is_late:
            return None  # the tracker answers in order, so this call would be late, too
        answer = asyncio.ensure_future(_result(call))
        try:
            if (await asyncio.wait([answer], timeout=ANSWER_S))[0]:
                return answer.result()
            self._late, problem = answer, f"no answer for {ANSWER_S:g} s"
            answer.add_done_callback(lambda late: late.cancelled() or late.exception())
        except RayError as error:
            problem = reason_of(error)
        if not self._said:
            self._said = True
            self._say(f"· the tracker (metrics.jsonl, wandb): {problem}; the run does not wait for it")
        return None


async def _result(call: ray.ObjectRef):
    return await call
