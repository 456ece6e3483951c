"""The trajectory buffer: groups by reference, the ledger of where each one is, and who may start or must wait."""

import asyncio

import ray

from pipeline.config import Config
from pipeline.episodes import GroupRecord
from pipeline.ledger import BUFFERED, RUNNING, Ledger, discard_limit


@ray.remote(num_cpus=0)
class TrajectoryBuffer:
    """Holds object references and records, never tokens. Bounded by admission (pipeline/staleness.py): groups
    running, buffered and in training never exceed (max_staleness + 2) × groups_per_step."""

    def __init__(self, config: Config):
        t = config.train
        self._ledger = Ledger(t.groups_per_step, t.max_staleness, t.steps, discard_limit(t))
        self._refs: dict[str, ray.ObjectRef] = {}
        self._pauses: list[float] = []
        self._changed = asyncio.Condition()

    async def generator_has(self, name: str, version: int, pause_s: float | None = None) -> None:
        """A generator reports the weight version that it samples with from now on, and how long the update held
        its generation up."""
        async with self._changed:
            self._pauses += [] if pause_s is None else [pause_s]
            self._ledger.generators[name] = version
            self._changed.notify_all()

    async def generator_gone(self, name: str) -> None:
        """A generator died; it is given no more groups until it reports again."""
        async with self._changed:
            self._ledger.generators.pop(name, None)

    async def admit(self, group_id: str) -> str:
        """Wait until one more group may start; return the generator that shall run it."""
        async with self._changed:
            while (generator := self._ledger.admit(group_id)) is None:
                await self._changed.wait()
            return generator

    async def add(self, group_id: str, record: GroupRecord, ref: list[ray.ObjectRef]) -> bool:
        """A group is generated and scored. `ref` is a list, so that Ray hands the reference on unresolved.

        Returns:
            Whether it is kept; False if dynamic sampling discards it.
        """
        async with self._changed:
            kept = self._ledger.add(group_id, record)
            if kept:
                (self._refs[group_id],) = ref
            self._changed.notify_all()
            return kept

    async def fail(self, group_id: str) -> None:
        """A running group is lost."""
        async with self._changed:
            self._ledger.fail(group_id)
            self._changed.notify_all()

    async def withdraw(self, group_id: str) -> None:
        """A running group's problem cannot be run."""
        async with self._changed:
            self._ledger.withdraw(group_id)
            self._changed.notify_all()

    async def take(self) -> tuple[list[tuple[GroupRecord, list[ray.ObjectRef]]] | None, list[str]]:
        """Wait for the groups of the next learner step.

        Returns:
            The groups, as records and references; or None, with the ids of groups that were dropped as too old
            and whose problems must be run again.
        """
        async with self._changed:
            while True:
                chosen, dropped = self._ledger.take()
                for group_id in dropped:
                    del self._refs[group_id]
                if dropped:
                    self._changed.notify_all()
                if chosen is not None or dropped:
                    break
                await self._changed.wait()
            taken = chosen and [(self._ledger.entries[i].record, [self._refs.pop(i)]) for i in chosen]
            return taken, dropped

    async def step_done(self) -> None:
        """The learner has made a new version of the groups last taken."""
        async with self._changed:
            self._ledger.step_done()
            self._changed.notify_all()

    async def counts(self) -> dict[str, int | float | None]:
        """Where the groups are, and the longest pause of a weight update since this was last asked."""
        ledger, pauses, self._pauses = self._ledger, self._pauses, []
        return {
            "update_pause_max": max(pauses, default=None),
            "running": ledger.count(RUNNING),
            "buffered": ledger.count(BUFFERED),
            "admitted": ledger.admitted,
            "trained": ledger.trained,
            "failed": ledger.failed,
            "dropped_stale": ledger.dropped_stale,
            "discarded": ledger.discarded,
        }
