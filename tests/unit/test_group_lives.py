"""Whatever becomes of groups, in any order: none is lost, none is trained twice or too late, and nothing of one that
has ended is left anywhere."""

import asyncio
import gc
import tempfile
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from actors.generation.journal import Journal
from actors.groups import Groups, Step
from pipeline.data.problem_queue import ProblemQueue
from pipeline.data.problem_stream import START
from pipeline.data.quarantine import Quarantine
from pipeline.errors import BadRow
from pipeline.problems import Problem
from pipeline.rollout.replay import Finished
from pipeline.run.config import TrainingConfig
from pipeline.run.ledger import BUFFERED, RUNNING, TRAINING, Entry
from tests.support.groups import random_group, record_of
from tests.support.simulation import Handle, Problems

ROWS, BAD_ROW = 9, 4
MOST_WITHDRAWN = 3  # else the run would end
RECORDS = [record_of(random_group(np.random.default_rng(0)), "", rewards) for rewards in ([1, 0, 1], [1, 1, 1])]


class WithABadRow(Problems):
    def sample(self, index: int) -> Problem:
        if index == BAD_ROW:
            raise BadRow("no question")
        return super().sample(index)

    def row(self, index: int) -> tuple[str, dict]:
        return f"p{index}", {}


class Reference:
    """Stands for one of Ray, and can be found out to be held."""


class GroupLives(RuleBasedStateMachine):
    """The real groups, ledger, queue, quarantine and journal, between generators and learners that only pretend."""

    @initialize(
        per_step=st.integers(1, 3),
        staleness=st.integers(0, 2),
        attempts=st.integers(1, 3),
        discards=st.booleans(),
        steps=st.integers(2, 5),
    )
    def begin(self, per_step: int, staleness: int, attempts: int, discards: bool, steps: int) -> None:
        train = replace(TrainingConfig().train, groups_per_step=per_step, max_staleness=staleness, steps=steps)
        train = replace(
            train, max_attempts=attempts, max_failed_share=1.0, dynamic_sampling=discards, max_discarded=2.0
        )
        self.runner, self.folder = asyncio.Runner(), tempfile.TemporaryDirectory()
        self.versions = {"g0": 0, "g1": 0}
        self.journal = Journal.__ray_metadata__.modified_class()
        quarantine = Quarantine(Path(self.folder.name) / "quarantine.jsonl", 1.0)
        config = replace(TrainingConfig(), train=train)
        self.groups = Groups(config, lambda line: None, Handle(self.journal), quarantine, self.versions)
        self.groups.problems = ProblemQueue(WithABadRow(ROWS), 0, quarantine)
        self.train, self.ledger, self.queue = train, self.groups.ledger, self.groups.problems
        self.history: list[list[int]] = []  # positions, by step
        self.discarded: list[int] = []  # positions
        self.discarded_since = 0  # the last step that was trained
        self.saved = (0, START, 0)  # steps, cursor, discarded groups
        self.attempts: Counter[int] = Counter()  # that failed, by position
        self.step: Step | None = None  # in training
        self.moving: dict[str, asyncio.Task] = {}
        self.admission = self.wait_for_room()
        self.references: list[weakref.ref] = []
        self.ended: list[str] = []
        self.trained_ever, self.generators_ever = 0, 2
        self.withdrawn_running = 0  # groups, not failed

    # What happens to groups.

    @precondition(lambda self: self.ledger.next_generator())
    @rule()
    def admit(self) -> None:
        group_id, generator = self.runner.run(self.groups.admit())
        assert generator in self.versions and self.running()[group_id].generator == generator
        assert not any(group_id == ended for ended in self.ended)

    @precondition(lambda self: self.ledger.next_generator())
    @rule()
    def admit_all(self) -> None:
        while self.ledger.next_generator():
            self.admit()

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def note_a_conversation(self, data) -> None:
        self.journal.add([Finished(data.draw(st.sampled_from(sorted(self.running()))), 0, b"", None)])

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def note_a_conversation_too_late(self, data) -> None:
        self.journal.add([Finished(data.draw(st.sampled_from(self.ended)), 0, b"", None)])

    @precondition(lambda self: self.running())
    @rule(data=st.data(), informative=st.sampled_from([True, True, False]))
    def finish(self, data, informative: bool) -> None:
        self.add(data.draw(st.sampled_from(sorted(self.running()))), informative)

    @precondition(lambda self: self.running())
    @rule(informative=st.booleans())
    def finish_all(self, informative: bool) -> None:
        for group_id in sorted(self.running()):
            self.add(group_id, informative)

    def add(self, group_id: str, informative: bool) -> None:
        entry, reference = self.ledger.entries[group_id], Reference()
        self.references.append(weakref.ref(reference))
        version = entry.first_version
        record = replace(RECORDS[not informative], group_id=group_id, oldest_version=version)
        self.groups.add(group_id, record, reference)
        if group_id not in self.ledger.entries:
            assert not informative and self.train.dynamic_sampling
            self.discarded.append(entry.position)
            self.discarded_since += 1
            self.done_with(group_id, entry)

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def fail(self, data) -> None:
        group_id = data.draw(st.sampled_from(sorted(self.running())))
        entry = self.ledger.entries[group_id]
        last = self.attempts[entry.position] + 1 == self.train.max_attempts
        if last and len(self.queue.withdrawn) >= MOST_WITHDRAWN:
            return
        self.groups.fail(group_id, RuntimeError("it failed"))
        self.attempts[entry.position] += 1
        if last:
            self.withdrawn(group_id, entry)
        else:
            assert entry.position in self.queue.cursor().open
            self.ended.append(group_id)

    @precondition(lambda self: self.running() and len(self.queue.withdrawn) < MOST_WITHDRAWN)
    @rule(data=st.data())
    def find_that_a_problem_cannot_be_run(self, data) -> None:
        group_id = data.draw(st.sampled_from(sorted(self.running())))
        entry = self.ledger.entries[group_id]
        self.withdraw(group_id, entry, "the question is too long")

    def withdraw(self, group_id: str, entry: Entry, reason: str) -> None:
        self.groups.withdraw(group_id, reason)
        self.withdrawn_running += 1
        self.withdrawn(group_id, entry)

    def withdrawn(self, group_id: str, entry: Entry) -> None:
        assert self.id_of(entry.position) in self.queue.withdrawn
        self.done_with(group_id, entry)

    def done_with(self, group_id: str, entry: Entry) -> None:
        self.ended.append(group_id)
        self.attempts.pop(entry.position, None)

    # What happens to generators.

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), blame=st.booleans())
    def lose_any_generator(self, data, blame: bool) -> None:
        self.lose(data.draw(st.sampled_from(sorted(self.versions))), blame)

    @precondition(lambda self: self.running())
    @rule()
    def lose_the_generator_of_the_group_that_has_lost_most(self) -> None:
        self.lose(max(self.running().values(), key=lambda entry: entry.deaths).generator, blame=True)

    def lose(self, name: str, blame: bool) -> None:
        if name not in self.versions or blame and len(self.queue.withdrawn) >= MOST_WITHDRAWN:
            return
        del self.versions[name]
        self.groups.changed()
        for group_id, entry in self.running().items():
            if entry.generator != name:
                continue
            alone, deaths = entry.reserved, entry.deaths
            try:
                self.groups.generator_lost(group_id, blame)
            except BadRow as error:
                assert blame and alone == name and deaths >= 2
                self.withdraw(group_id, entry, str(error))
            else:
                assert not (blame and alone)
                self.move(group_id)

    def move(self, group_id: str) -> None:
        self.moving[group_id] = self.runner.get_loop().create_task(self.groups.move(group_id))

    @precondition(lambda self: len(self.versions) < 3)
    @rule()
    def gain_a_generator(self) -> None:
        self.versions[f"g{self.generators_ever}"] = self.ledger.version
        self.generators_ever += 1
        self.groups.changed()

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def update_a_generator(self, data) -> None:
        self.versions[data.draw(st.sampled_from(sorted(self.versions)))] = self.ledger.version
        self.groups.changed()

    # What learners do.

    @precondition(lambda self: self.step is None and self.ledger.count(BUFFERED))
    @rule()
    def take(self) -> None:
        before = {**self.ledger.entries}
        taking = self.runner.get_loop().create_task(self.groups.take())
        self.settle()
        if taking.done():
            self.step = taking.result()
            assert len(self.step.groups) == self.train.groups_per_step
            for (record, _), position, problem in zip(
                self.step.groups, self.step.positions, self.step.problems, strict=True
            ):
                assert self.ledger.entries[record.group_id].position == position
                assert problem.id == self.id_of(position) == record.group_id.partition("#")[0]
        else:
            taking.cancel()
            self.settle()
        for group_id in before.keys() - self.ledger.entries.keys():
            assert self.ledger.version - before[group_id].record.oldest_version > self.train.max_staleness
            assert before[group_id].position in self.queue.cursor().open
            self.ended.append(group_id)

    @precondition(lambda self: self.step)
    @rule(published=st.booleans())
    def finish_the_step(self, published: bool = False) -> None:
        step, self.step = self.step, None
        assert all(self.ledger.version - r.oldest_version <= self.train.max_staleness for r, _ in step.groups)
        entries = [self.ledger.entries[record.group_id] for record, _ in step.groups]
        self.groups.step_done(step)
        self.history.append(step.positions)
        self.discarded_since -= len(step.discarded)
        self.trained_ever += len(step.groups)
        for (record, _), entry in zip(step.groups, entries, strict=True):
            self.done_with(record.group_id, entry)
        if published:
            self.versions.update(dict.fromkeys(self.versions, self.ledger.version))
            self.groups.changed()

    @precondition(lambda self: self.step)
    @rule(data=st.data())
    def lose_groups_of_the_step(self, data) -> None:
        step, self.step = self.step, None
        indices = data.draw(st.sets(st.integers(0, len(step.groups) - 1), min_size=1))
        lost = self.groups.lose(step, sorted(indices))
        assert lost == [step.groups[index][0].group_id for index in sorted(indices)]
        for group_id in lost:
            self.move(group_id)

    @precondition(lambda self: self.step is None)
    @rule()
    def save(self) -> None:
        self.saved = (self.ledger.step, self.queue.cursor(), len(self.discarded))

    @rule()
    def go_back(self) -> None:
        self.step = None
        saved_step, cursor, discarded = self.saved
        version = self.ledger.version
        self.groups.roll_back(saved_step, cursor)
        assert self.ledger.version == version + 1
        del self.history[saved_step:], self.discarded[discarded:]
        self.discarded_since = 0

    def wait_for_room(self) -> asyncio.Task:
        """What an admission does until it may read its problem."""
        return self.runner.get_loop().create_task(self.groups._until(self.ledger.next_generator))

    # What is true at any time.

    def running(self) -> dict[str, Entry]:
        """The groups that a generator or a scorer has."""
        entries = self.ledger.entries.items()
        return {i: entry for i, entry in entries if entry.state == RUNNING and i not in self.moving}

    def id_of(self, position: int) -> str:
        return f"p{position % ROWS}"

    def settle(self) -> None:
        """Let all that waits do what it can."""

        async def turns() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        self.runner.run(turns())
        for group_id, task in list(self.moving.items()):
            if task.done():
                assert self.ledger.entries[group_id].generator == task.result() in self.versions
                del self.moving[group_id]

    @invariant()
    def nothing_is_left_behind(self) -> None:
        self.settle()
        entries = self.ledger.entries
        assert not set(entries) & set(self.ended)
        assert self.journal._finished.keys() <= entries.keys()
        positions = [entry.position for entry in entries.values()]
        again = self.queue._again
        assert sorted({*positions}) == sorted(positions) and sorted({*again}) == sorted(again)
        assert not {*positions} & {*again} and self.queue._open.keys() <= {*positions, *again}
        assert {*positions} <= self.queue._open.keys()
        failures = {position: problem.failures for position, problem in self.queue._open.items() if problem.failures}
        assert failures == {p: n for p, n in self.attempts.items() if n and p in self.queue._open}
        held = {id(entry.ref) for entry in entries.values() if entry.state in (BUFFERED, TRAINING)}
        assert all(
            (entry.ref is None) == (entry.record is None) == (entry.state == RUNNING) for entry in entries.values()
        )
        self.references = [reference for reference in self.references if reference() is not None]
        if {id(reference()) for reference in self.references} != held:
            gc.collect()
        assert {id(reference()) for reference in self.references} - {id(None)} == held
        assert len(self.groups._discarded) == self.discarded_since

    @invariant()
    def no_group_is_lost_and_no_problem_is_trained_twice(self) -> None:
        trained = [position for step in self.history for position in step]
        opened = self.queue.cursor().open
        done = Counter([*trained, *self.discarded, *opened])
        assert not done or max(done.values()) == 1
        gone = {self.id_of(position) for position in range(self.queue.cursor().position) if position not in done}
        assert gone <= {*self.queue.withdrawn, self.id_of(BAD_ROW)}
        assert {entry.position for entry in self.ledger.entries.values()} <= {*opened}
        le = self.ledger
        ends = le.failed + le.dropped_stale + le.discarded + self.trained_ever + self.withdrawn_running
        assert le.numbered == len(le.entries) + ends
        assert le.trained == len(trained) and le.step == len(self.history)

    @invariant()
    def no_admission_sleeps_while_there_is_room(self) -> None:
        self.settle()
        if self.ledger.next_generator():
            assert self.admission.done()
        elif self.admission.done():
            self.admission = self.wait_for_room()
            self.settle()
            assert not self.admission.done()

    @invariant()
    def the_bound_is_kept(self) -> None:
        assert len(self.ledger.entries) <= (self.train.max_staleness + 2) * self.train.groups_per_step
        assert self.ledger.count(TRAINING) == (len(self.step.groups) if self.step else 0)

    def teardown(self) -> None:
        """From wherever it stopped the run comes to its end, and then there is nothing left."""
        if not hasattr(self, "groups"):
            return
        for _ in range(20 * self.train.steps):
            if self.ledger.step == self.train.steps:
                break
            if not self.versions:
                self.gain_a_generator()
            self.versions.update(dict.fromkeys(self.versions, self.ledger.version))
            self.groups.changed()
            self.settle()  # groups that wait for a generator have it first
            while self.ledger.next_generator():
                self.admit()
            for group_id in list(self.running()):
                self.add(group_id, informative=True)
            if self.step is None:
                self.take()
            if self.step:
                self.finish_the_step()
            self.nothing_is_left_behind()
            self.no_group_is_lost_and_no_problem_is_trained_twice()
            self.no_admission_sleeps_while_there_is_room()
        assert self.ledger.step == self.train.steps and not self.ledger.entries and not self.moving
        assert not self.journal._finished and not self.references
        self.runner.close()
        self.folder.cleanup()


def test_groups_that_live_in_any_way_leave_nothing_behind():
    run_state_machine_as_test(
        GroupLives,
        settings=settings(
            max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
