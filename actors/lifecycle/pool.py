"""What the pools of generators and scorers have in common: so many actors, each of which is brought back when it dies.

A pool always asks for all its actors. Those that the cluster has no room for are pending in Ray, which is what its
autoscaler acts on; they join when there is room for them.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable

import ray
from ray.exceptions import RayTaskError

from actors.lifecycle.failures import DIED, Hung, what_happened
from pipeline.errors import RunFailed

DEATHS_IN_A_ROW = 5  # an actor that dies more often while nothing gets done will not get better
LONGEST_BACK_OFF_S = 30


class BusyTime:
    """Measures the seconds during which at least one piece of work was under way."""

    def __init__(self):
        self._under_way, self._since, self._before = 0, 0.0, 0.0

    @contextlib.contextmanager
    def work(self):
        """A piece of work lasts as long as this block."""
        if not self._under_way:
            self._since = time.monotonic()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._before += time.monotonic() - self._since

    @property
    def seconds(self) -> float:
        return self._before + (time.monotonic() - self._since if self._under_way else 0.0)


class Pool:
    """Lives in the actor of the job. A subclass says how an actor is made and what it does as long as it lives.

    Args:
        kind: what the actors are called: generator, scorer.
        count: how many are wanted.
        least: with fewer the job waits.
        say: takes a line for people to read.
    """

    def __init__(self, kind: str, count: int, least: int, say: Callable[[str], None]):
        self._kind, self._count, self._least, self._say = kind, count, least, say
        self._in_service: set[str] = set()
        self._actors: dict[str, object] = {}  # all that were made and not yet ended
        self._changed = asyncio.Condition()
        self._deaths: Counter[str] = Counter()  # in a row, by name
        self._given_up: set[str] = set()
        self._busy = {f"{kind}-{number}": BusyTime() for number in range(count)}
        self._looked_at = (time.monotonic(), 0.0)  # when, and how long all were busy until then
        self._were_ready = False
        self.restarts = 0

    def make(self, number: int):
        """A new actor."""
        raise NotImplementedError

    async def serve(self, name: str, actor) -> str:
        """Put an actor into service once it is up, see to it, and return why it leaves if it does so in good order.

        Raises:
            DIED: it died.
            Hung: it does not move any more.
            RayTaskError: what it raised while it was started.
        """
        raise NotImplementedError

    async def run(self) -> None:
        """Keep all actors alive, for ever.

        Raises:
            RunFailed: too few are left that do not die again and again.
        """
        try:
            async with asyncio.TaskGroup() as lives:
                for number in range(self._count):
                    lives.create_task(self._live(number))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def ready(self) -> None:
        """Wait until the fewest that are needed are in service."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._in_service) >= self._least)
        self._were_ready = True

    @property
    def alive(self) -> int:
        """How many are in service."""
        return len(self._in_service)

    def waited_share(self) -> float:
        """The share of the time since this was last asked that the actors, of which so many are wanted, had no work."""
        (before, busy_before), now = self._looked_at, time.monotonic()
        busy = sum(one.seconds for one in self._busy.values())
        self._looked_at = (now, busy)
        return 1 - (busy - busy_before) / (self._count * (now - before))

    async def close(self) -> None:
        """End all actors; `run` has been cancelled before."""
        for actor in self._actors.values():
            ray.kill(actor)

    def work_done(self) -> None:
        """Something got done, so deaths before it do not count as many in a row."""
        self._deaths.clear()

    async def enter(self, name: str) -> None:
        """An actor is in service from now on."""
        async with self._changed:
            self._in_service.add(name)
            self._changed.notify_all()

    async def leave(self, name: str) -> None:
        """An actor is out of service."""
        async with self._changed:
            self._in_service.discard(name)
            self._changed.notify_all()

    async def _live(self, number: int) -> None:
        """One actor after the other under the same name."""
        name = f"{self._kind}-{number}"
        while True:
            actor = self._actors[name] = self.make(number)
            try:
                why = await self.serve(name, actor)
                self._deaths[name] = 0
            except (*DIED, Hung, RayTaskError) as error:
                if isinstance(error, RayTaskError) and not self._were_ready:
                    raise  # it cannot start, and so can others of its kind
                why = what_happened(error)
                self._deaths[name] += 1
            await self.leave(name)
            ray.kill(actor)
            del self._actors[name]
            if self._deaths[name] > DEATHS_IN_A_ROW:
                self._give_up(name, why)
                return
            self.restarts += 1
            wait_s = min(LONGEST_BACK_OFF_S, 2 ** (self._deaths[name] - 1) - 1) if self._deaths[name] else 0
            self._say(f"· {name} {why}; starting it again{f' in {wait_s} s' if wait_s else ''}")
            await asyncio.sleep(wait_s)

    def _give_up(self, name: str, why: str) -> None:
        self._given_up.add(name)
        said = f"{name} died {self._deaths[name]} times before anything got done, the last time it {why}"
        if self._count - len(self._given_up) < self._least:
            raise RunFailed(f"{said}; see its log in Ray's dashboard")
        self._say(f"· {said}; going on without it")


async def result_of(ref: ray.ObjectRef):
    """The value of a reference, as a coroutine."""
    return await ref
