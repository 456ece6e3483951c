"""The trajectory buffer: groups by reference, the ledger of where each one is, and who may start or must wait.

Lives in the coordinator. The groups themselves lie in Ray's object store, on the nodes that generated them.
"""

import asyncio

import ray

from pipeline.rollout.episodes import GroupRecord
from pipeline.run.config import TrainingConfig
from pipeline.run.ledger import Entry, Ledger, discard_limit


class TrajectoryBuffer:
    """Holds object references and records, never tokens. Bounded by admission (pipeline/run/staleness.py): groups
    running, buffered and in training never exceed (max_staleness + 2) × groups_per_step."""

    def __init__(self, config: TrainingConfig):
        t = config.train
        self.ledger = Ledger(t.groups_per_step, t.max_staleness, t.steps, discard_limit(t))
        self._refs: dict[str, ray.ObjectRef] = {}
        self._change = asyncio.Event()

    def generator_has(self, name: str, version: int) -> None:
        """A generator samples with this weight version from now on."""
        self.ledger.generators[name] = version
        self._changed()

    def generator_gone(self, name: str) -> None:
        """A generator is given no more groups until it reports again."""
        self.ledger.generators.pop(name, None)
        self._changed()

    async def room(self) -> None:
        """Wait until one more group may start."""
        await self._until(self.ledger.next_generator)

    def admit(self, group_id: str, position: int) -> str | None:
        """Start one more group; return the generator that shall run it, or None if there is no room any more."""
        return self.ledger.admit(group_id, position)

    def generator_lost(self, group_id: str, blame: bool) -> Entry:
        """See `Ledger.generator_lost`."""
        entry = self.ledger.generator_lost(group_id, blame)
        self._changed()
        return entry

    async def move(self, group_id: str) -> str:
        """Wait for a generator that a running group can go on with, and return it."""
        return await self._until(lambda: self.ledger.move(group_id))

    def add(self, group_id: str, record: GroupRecord, ref: ray.ObjectRef) -> bool:
        """A group is generated and scored. Returns whether it is kept; False if dynamic sampling discards it."""
        kept = self.ledger.add(group_id, record)
        if kept:
            self._refs[group_id] = ref
        self._changed()
        return kept

    def fail(self, group_id: str) -> None:
        """A running group is lost."""
        self.ledger.fail(group_id)
        self._changed()

    def withdraw(self, group_id: str) -> None:
        """A running group's problem cannot be run."""
        self.ledger.withdraw(group_id)
        self._changed()

    async def take(self) -> tuple[list[tuple[GroupRecord, ray.ObjectRef]] | None, list[str]]:
        """Wait for the groups of the next learner step.

        Returns:
            The groups, as records and references; or None, with the ids of groups that were dropped as too old
            and whose problems must be run again.
        """

        def take():
            chosen, dropped = self.ledger.take()
            return (chosen, dropped) if chosen is not None or dropped else None

        chosen, dropped = await self._until(take)
        self._forget(dropped)
        return chosen and [(self.ledger.entries[i].record, self._refs[i]) for i in chosen], dropped

    def lose(self, group_ids: list[str]) -> None:
        """Of the groups last taken these are lost and have to be made again; the others wait to be taken again."""
        self.ledger.lose(group_ids)
        self._forget(group_ids)

    def step_done(self) -> None:
        """The learner has made a new version of the groups last taken."""
        before = set(self.ledger.entries)
        self.ledger.step_done()
        self._forget(before - set(self.ledger.entries))

    def roll_back(self, step: int) -> None:
        """The learner has the weights of step `step` again; the groups last taken wait to be taken again."""
        self.ledger.roll_back(step)
        self._changed()

    def _forget(self, group_ids) -> None:
        for group_id in group_ids:
            self._refs.pop(group_id)
        self._changed()

    async def _until(self, attempt):
        """The first result of `attempt` that is not None; it is made again whenever something has changed."""
        while (result := attempt()) is None:
            await self._change.wait()
        return result

    def _changed(self) -> None:
        """Wake all that wait."""
        self._change.set()
        self._change = asyncio.Event()
