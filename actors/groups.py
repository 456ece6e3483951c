"""The groups of a run. This module owns everything that belongs to a group, from its problem to its training.

    admit           the next problem ─▶ running, on a generator
    generator_lost  running ─▶ running, on no generator until `move` assigns one; a suspect then runs alone
    add             running ─▶ buffered; or ended, if dynamic sampling discards it
    fail            running ─▶ ended; its problem is run again, or withdrawn after too many attempts
    withdraw        running ─▶ ended; its problem is never run again
    take            buffered ─▶ training; or ended, if it is stale, and its problem is run again
    step_done       training ─▶ ended: the group is trained
    lose            training ─▶ running, to be remade from its conversations; the others of its step ─▶ buffered
    roll_back       training ─▶ buffered

A group has an entry in the ledger (its state, its record, the reference to its episodes), an open problem in the queue,
and conversations in the journal. However it ends, `_end` clears all three.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import ray

from pipeline.alerts import Alert
from pipeline.data.problem_queue import ProblemQueue
from pipeline.data.problem_stream import START, Cursor
from pipeline.data.quarantine import Quarantine
from pipeline.errors import BadRow, RunFailed, reason_of
from pipeline.problems import Problem
from pipeline.rollout.episodes import GroupRecord
from pipeline.run.checkpoints import RunState
from pipeline.run.config import TrainingConfig
from pipeline.run.ledger import DROPPED_STALE, SUSPECT_DEATHS, Ended, Ledger, discard_limit, too_many_failed
from pipeline.run.source import training_source

Result = TypeVar("Result")


@dataclass(frozen=True)
class Step:
    """The groups of one learner step, in the order in which they are trained."""

    groups: list[tuple[GroupRecord, ray.ObjectRef]]
    positions: list[int]  # the problems' positions in the data
    problems: list[Problem]
    discarded: list[GroupRecord]  # by dynamic sampling since the step before


class Groups:
    """Lives in the coordinator. Holds problems, records and references, never tokens.

    Bounded by admission (pipeline/run/staleness.py): groups running, buffered and in training never exceed
    (max_staleness + 2) × groups_per_step.

    Args:
        config: the run's configuration.
        say: called with each progress line.
        journal: the actor that keeps finished conversations.
        quarantine: records withdrawn problems.
        generators: a live view of the generators in service: weight version by name.

    Attributes:
        problems: the queue from which groups get their problems; set by `open_data`.
        failures: number of groups that failed or were dropped as stale, by reason.
    """

    problems: ProblemQueue

    def __init__(
        self,
        config: TrainingConfig,
        say: Callable[[str], None],
        journal,
        quarantine: Quarantine,
        generators: Mapping[str, int],
    ):
        self._config, t = config, config.train
        self.ledger = Ledger(t.groups_per_step, t.max_staleness, t.steps, discard_limit(t), generators=generators)
        self.failures: Counter[str] = Counter()
        self._say, self._journal, self._quarantine = say, journal, quarantine
        self._discarded: list[GroupRecord] = []  # since the last step was trained
        self._numbers = itertools.count()
        self._change = asyncio.Event()

    # Starting.

    async def open_data(self, state: RunState | None, withdrawn: set[str]) -> None:
        """Open the problem queue at a checkpoint's position in the data.

        Args:
            state: the checkpoint's state; None: start from the beginning.
            withdrawn: ids of problems withdrawn earlier in this run folder.

        Raises:
            DataError: the data cannot be used.
        """
        source = await asyncio.to_thread(training_source, self._config)
        if state:
            withdrawn = withdrawn | set(state.withdrawn)
        self._quarantine.resume(withdrawn)
        cursor = state.cursor if state else START
        self.problems = ProblemQueue(source, self._config.run.seed, self._quarantine, cursor, withdrawn)
        # Read one problem now, so that an unusable file is reported before the first generator is up.
        self.problems.again(await asyncio.to_thread(self.problems.next))

    def resume(self, state: RunState) -> None:
        """Continue from a checkpoint."""
        self.failures.update(state.failures)
        self.ledger.step, self.ledger.version = state.step, state.version
        self.ledger.discarded, self.ledger.dropped_stale = state.discarded, self.failures[DROPPED_STALE]
        self.ledger.failed = self.failures.total() - self.ledger.dropped_stale

    # Running.

    async def admit(self) -> tuple[str, str]:
        """Wait until another group may start, and admit it with the next problem.

        Returns:
            The group's id, and the name of the generator that is to run it.

        Raises:
            DataError: see `ProblemQueue.next`.
        """
        while True:
            await self._until(self.ledger.next_generator)
            position = await asyncio.to_thread(self.problems.next)
            group_id = f"{self.problems.problem(position).id}#{next(self._numbers)}"
            if generator := self.ledger.admit(group_id, position):
                return group_id, generator
            self.problems.again(position)  # a generator died in the meantime

    def position(self, group_id: str) -> int:
        """The position of a group's problem in the data."""
        return self.ledger.entries[group_id].position

    def number(self, group_id: str) -> int:
        """A group's place in the order of admission: its age. Moves and losses do not change it."""
        return self.ledger.entries[group_id].number

    def problem(self, group_id: str) -> Problem:
        return self.problems.problem(self.position(group_id))

    def generator_lost(self, group_id: str, blame: bool) -> None:
        """Record that a running group has lost its generator.

        Args:
            group_id: the group's id.
            blame: no cause of the death is known but the generator's work.

        Raises:
            BadRow: the group was to blame and ran alone on the generator.
        """
        entry = self.ledger.generator_lost(group_id, blame)
        self.changed()
        if blame and entry.reserved:
            raise BadRow(f"{entry.deaths} generators died under it, the last one while it ran nothing else")
        if blame and entry.deaths == SUSPECT_DEATHS:
            self._say(f"· {entry.deaths} generators died under group {group_id}; it continues alone on one")

    async def move(self, group_id: str) -> str:
        """Wait for a generator on which a running group can continue, and return its name."""
        return await self._until(lambda: self.ledger.move(group_id))

    def add(self, group_id: str, record: GroupRecord, ref: ray.ObjectRef) -> None:
        """Buffer a running group that was generated and scored. Dynamic sampling may discard it instead; then another
        problem replaces it."""
        if discarded := self.ledger.add(group_id, record, ref):
            self._discarded.append(record)
            self._end(discarded, self.problems.done)
        else:
            self.changed()

    def fail(self, group_id: str, error: Exception) -> None:
        """End a running group that failed. Its problem is run again as a new group, or withdrawn after max_attempts.

        Raises:
            RunFailed: too many groups failed.
            DataError: too many problems are bad.
        """
        reason, attempts = reason_of(error), self.problems.failed(self.position(group_id))
        self.failures[type(error).__name__] += 1
        ended = self.ledger.fail(group_id)
        if attempts < self._config.train.max_attempts:
            self._end(ended, self.problems.again)
            self._say(Alert("group failed", f"· group {group_id} failed and will be run again: {reason}"))
        else:
            self._withdraw(ended, f"given up after {attempts} attempts: {reason}")
        failed = self.failures.total() - self.failures[DROPPED_STALE]
        done = self.ledger.trained + self.ledger.discarded
        if too_many_failed(failed, done, self._config.train):
            raise RunFailed(f"{failed} groups failed and {done} did not; the last failure: {reason}")

    def withdraw(self, group_id: str, reason: str) -> None:
        """End a running group and withdraw its problem, which cannot be run. Raises `DataError` if too many cannot."""
        self._withdraw(self.ledger.withdraw(group_id), reason)

    # Training.

    async def take(self) -> Step:
        """Wait for the groups of the next learner step. Stale groups are dropped, and their problems are run again."""
        return await self._until(self._take)

    def _take(self) -> Step | None:
        if stale := self.ledger.drop_stale():
            self.failures[DROPPED_STALE] += len(stale)
            self._end(stale, self.problems.again)
        chosen = self.ledger.take()
        if chosen is None:
            return None
        self.changed()  # groups in training do not hold up admission
        entries = [self.ledger.entries[group_id] for group_id in chosen]
        positions = [entry.position for entry in entries]
        problems = [self.problems.problem(position) for position in positions]
        return Step(
            [(cast(GroupRecord, entry.record), entry.ref) for entry in entries],
            positions,
            problems,
            list(self._discarded),
        )

    def lose(self, step: Step, indices: list[int]) -> list[str]:
        """Set the lost groups of a step running again; buffer the others.

        Args:
            step: the step, which was not trained.
            indices: the groups that can no longer be fetched, by their index in the step.

        Returns:
            The ids of the lost groups, to be remade from their conversations.
        """
        lost = [step.groups[index][0].group_id for index in indices]
        self.ledger.lose(lost)
        self.changed()
        return lost

    def step_done(self, step: Step) -> None:
        """End the groups last taken: the learner has trained them into a new version."""
        self._end(self.ledger.step_done(), self.problems.done)
        self._discarded = self._discarded[len(step.discarded) :]  # the rest belong to the next step

    def roll_back(self, step: int, cursor: Cursor) -> None:
        """Return to an earlier step, whose weights the learner has again.

        The groups last taken are buffered again, and problems done since then are handed out again.

        Args:
            step: the number of steps trained by then.
            cursor: the run's position in its data at that step.
        """
        self.ledger.roll_back(step)
        self.problems.roll_back(cursor)
        self._discarded = []
        self.changed()

    # Ends.

    def _withdraw(self, ended: Ended, reason: str) -> None:
        for problem in self._end(ended, self.problems.withdraw):
            self._say(f"· quarantined {problem.id}: {reason}")
            row = {"question": problem.question, "answers": problem.answers}
            self._quarantine.add(problem.id, reason, row, withdrawn=True)

    def _end(self, ended: Ended, then: Callable[[int], Result]) -> list[Result]:
        """Clear the journal and the problem queue of groups that have left the ledger.

        Args:
            ended: the groups.
            then: the queue's method for the problem at a position: `again`, `done` or `withdraw`.

        Returns:
            The result of `then` for each group.
        """
        self._journal.drop.remote(list(ended))
        results = [then(entry.position) for entry in ended.values()]
        self.changed()
        return results

    # Waiting.

    def changed(self) -> None:
        """Wake all waiters: a generator joined, left or changed its weights, or a group changed its state."""
        self._change.set()
        self._change = asyncio.Event()

    async def _until(self, attempt: Callable[[], Result | None]) -> Result:
        """The first result of `attempt` that is not None. It is called again after every change."""
        while (result := attempt()) is None:
            await self._change.wait()
        return result
