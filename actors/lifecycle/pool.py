"""The base class of the generator and scorer pools: a fixed number of actors, each restarted when it dies.

A pool always requests all its actors. Those without room in the cluster are pending in Ray, which makes its autoscaler
act; they join when there is room.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable

import ray
from ray.exceptions import RayTaskError

from actors.lifecycle.failures import DIED, Hung, what_happened
from pipeline.alerts import Alert
from pipeline.errors import RunFailed

DEATHS_IN_A_ROW = 5  # after more deaths without any work done, give up the actor
LONGEST_BACK_OFF_S = 30


class BusyTime:
    """Measures the seconds during which at least one piece of work was in progress."""

    def __init__(self):
        self._under_way, self._since, self._before = 0, 0.0, 0.0

    @contextlib.contextmanager
    def work(self):
        """Context manager that spans one piece of work."""
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
    """A pool of actors, owned by the job actor. A subclass defines how to make an actor and how to serve it.

    Args:
        kind: the actors' name: generator or scorer.
        count: number of actors wanted.
        least: number of actors needed; with fewer the job waits.
        say: called with each progress line.
    """

    def __init__(self, kind: str, count: int, least: int, say: Callable[[str], None]):
        self._kind, self._count, self._least, self._say = kind, count, least, say
        self._in_service: set[str] = set()
        self._actors: dict[str, object] = {}  # all actors made and not yet killed
        self._changed = asyncio.Condition()
        self._deaths: Counter[str] = Counter()  # in a row, by name
        self._given_up: set[str] = set()
        self._busy = {f"{kind}-{number}": BusyTime() for number in range(count)}
        self._looked_at = (time.monotonic(), 0.0)  # last call of `waited_share`: time, and busy seconds of all actors
        self._were_ready = False
        self.restarts = 0

    def make(self, number: int):
        """Start a new actor and return its handle."""
        raise NotImplementedError

    async def serve(self, name: str, actor) -> str:
        """Put an actor into service once it is ready and watch it; return the reason if it leaves in an orderly way.

        Raises:
            DIED: the actor died.
            Hung: the actor no longer responds.
            RayTaskError: the actor raised an error while starting.
        """
        raise NotImplementedError

    async def run(self) -> None:
        """Keep all actors alive, forever.

        Raises:
            RunFailed: so many actors were given up that fewer than `least` are left.
        """
        try:
            async with asyncio.TaskGroup() as lives:
                for number in range(self._count):
                    lives.create_task(self._live(number))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def ready(self) -> None:
        """Wait until at least `least` actors are in service."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._in_service) >= self._least)
        self._were_ready = True

    @property
    def alive(self) -> int:
        """The number of actors in service."""
        return len(self._in_service)

    def waited_share(self) -> float:
        """The idle share of the `count` actors' time since the last call, from 0 to 1."""
        (before, busy_before), now = self._looked_at, time.monotonic()
        busy = sum(one.seconds for one in self._busy.values())
        self._looked_at = (now, busy)
        return 1 - (busy - busy_before) / (self._count * (now - before))

    async def close(self) -> None:
        """Kill all actors. `run` must have been cancelled before."""
        for actor in self._actors.values():
            ray.kill(actor)

    def work_done(self) -> None:
        """Report that work was completed: deaths before it no longer count as deaths in a row."""
        self._deaths.clear()

    async def enter(self, name: str) -> None:
        """Mark an actor as in service."""
        async with self._changed:
            self._in_service.add(name)
            self._changed.notify_all()

    async def leave(self, name: str) -> None:
        """Mark an actor as out of service."""
        async with self._changed:
            self._in_service.discard(name)
            self._changed.notify_all()

    async def _live(self, number: int) -> None:
        """Run one actor after the other under the same name."""
        name = f"{self._kind}-{number}"
        while True:
            actor = self._actors[name] = self.make(number)
            try:
                why = await self.serve(name, actor)
                self._deaths[name] = 0
            except (*DIED, Hung, RayTaskError) as error:
                if isinstance(error, RayTaskError) and not self._were_ready:
                    raise  # it cannot start, and neither can the others
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
            line = f"· {name} {why}; starting it again{f' in {wait_s} s' if wait_s else ''}"
            again = self._deaths[name] > 1  # a first death is part of life on spot nodes
            self._say(Alert(f"a {self._kind} keeps dying", line) if again else line)
            await asyncio.sleep(wait_s)

    def _give_up(self, name: str, why: str) -> None:
        self._given_up.add(name)
        said = f"{name} died {self._deaths[name]} times without completing any work; the last time, it {why}"
        if self._count - len(self._given_up) < self._least:
            raise RunFailed(f"{said}; see its log in Ray's dashboard")
        self._say(Alert(f"a {self._kind} was given up", f"· {said}; continuing without it"))


async def result_of(ref: ray.ObjectRef):
    """Wait for a reference's value: a coroutine, as tasks need one."""
    return await ref
