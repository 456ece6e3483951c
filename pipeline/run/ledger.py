"""The ledger: the state of every group and its transitions. It makes "no group lost, none trained twice" checkable.

A group is running (admitted: on a generator, then with a scorer), buffered (scored, waiting), training, and finally
trained. A group that fails or is dropped as stale ends, and its problem is run again as a new group. Under dynamic
sampling (DAPO, arXiv 2503.14476), a group whose rewards are all equal is discarded and replaced by another problem's. A
group remains the same when its generator dies and it moves to another, and when it is lost after scoring and generated
again.

A group under which `SUSPECT_DEATHS` generators died is a suspect. It gets a generator of its own that runs nothing
else, which shows whether the group is the cause.

Steps count what was trained; versions count what generators were given. Both grow by one with every step. A rollback to
a checkpoint lowers the step and gives the checkpoint's weights a new version that was never used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from pipeline.rollout.episodes import GroupRecord
from pipeline.run.config import TrainSection
from pipeline.run.staleness import choose, feasible

RUNNING, BUFFERED, TRAINING = "running", "buffered", "training"
SUSPECT_DEATHS = 2
DROPPED_STALE = "dropped_stale"  # listed with a run's failures: dropped untrained; not a failure


def discard_limit(train: TrainSection) -> int:
    """The most groups of equal rewards that one step may discard; 0 without dynamic sampling."""
    return ceil(train.max_discarded * train.groups_per_step) if train.dynamic_sampling else 0


def too_many_failed(failed: int, done: int, train: TrainSection) -> bool:
    """Whether the share of failed groups, among those that failed or are done, should end the run.

    At least two steps' worth of groups must have failed, so that a bad start does not end the run.
    """
    return failed >= 2 * train.groups_per_step and failed > train.max_failed_share * (failed + done)


@dataclass
class Entry:
    """The state of one group. Its conversations are in the journal."""

    position: int  # position of its problem in the data
    generator: str  # empty while it waits for another generator
    first_version: int  # the generator's version at admission; no token can be older
    number: int = 0  # place in the order of admission, from 1
    state: str = RUNNING
    record: GroupRecord | None = None  # set once the group is buffered
    ref: object = None  # reference to its episodes, while there is a record
    deaths: int = 0  # generators that died under it since it was last scored
    reserved: str = ""  # the generator reserved for it alone


Ended = dict[str, Entry]  # groups that left the ledger, by id


@dataclass
class Ledger:
    """Pure state. actors/groups.py waits for its changes and cleans up after groups that leave."""

    groups_per_step: int
    max_staleness: int
    steps: int
    max_discarded: int = 0  # most groups of equal rewards that one step may discard; 0: no dynamic sampling
    step: int = 0  # steps trained
    version: int = 0  # version of the learner's weights
    entries: dict[str, Entry] = field(default_factory=dict)
    generators: Mapping[str, int] = field(default_factory=dict)  # generators in service: weight version; only read
    numbered: int = 0  # the last group's number
    failed: int = 0
    lost: int = 0  # lost with the node that held them, and generated again
    dropped_stale: int = 0
    discarded: int = 0
    discarded_since_take: int = 0

    @property
    def trained(self) -> int:
        """Number of groups that the current weights were trained on."""
        return self.step * self.groups_per_step

    def reserved(self) -> set[str]:
        """The generators that are reserved for suspects."""
        return {entry.reserved for entry in self.entries.values() if entry.reserved}

    def next_generator(self) -> str | None:
        """The generator that would run a group admitted now; None if no group may start."""
        if len(self.entries) >= (self.steps - self.step) * self.groups_per_step:
            return None  # the remaining steps have all their groups
        learner = self._next_version()
        # Groups that missed their deadline after a rollback do not block others; they are dropped once buffered.
        waiting = (entry for entry in self.entries.values() if entry.state != TRAINING)
        deadlines = [max(self._deadline(entry), learner) for entry in waiting]
        versions = {  # hundreds of generators have a few of them
            version
            for version in set(self.generators.values())
            if feasible([*deadlines, version + self.max_staleness], learner, self.groups_per_step)
        }
        if not versions:
            return None
        return next((name for name in self._by_load() if self.generators[name] in versions), None)

    def admit(self, group_id: str, position: int) -> str | None:
        """Admit a group and return its generator, or None if no group may start now."""
        name = self.next_generator()
        if name is not None:
            self.numbered += 1
            self.entries[group_id] = Entry(position, name, self.generators[name], self.numbered)
        return name

    def generator_lost(self, group_id: str, blame: bool) -> Entry:
        """Record that a running group lost its generator; return its entry, which may now be a suspect.

        Args:
            group_id: the group's id.
            blame: whether the generator died without a known cause other than the groups that it ran.
        """
        entry = self._expect(group_id, RUNNING)
        entry.generator, entry.deaths = "", entry.deaths + blame
        return entry

    def move(self, group_id: str) -> str | None:
        """Give a running group to the generator with the fewest groups, and return it; None if there is none now.

        A suspect gets the generator reserved for it, once that has no other running group.
        """
        entry = self._expect(group_id, RUNNING)
        if entry.deaths < SUSPECT_DEATHS:
            entry.generator = next(iter(self._by_load()), "")
        else:
            if entry.reserved not in self.generators:
                entry.reserved = next(iter(self._by_load()), "")
            runs = any(other.state == RUNNING and other.generator == entry.reserved for other in self.entries.values())
            entry.generator = "" if runs else entry.reserved
        return entry.generator or None

    def add(self, group_id: str, record: GroupRecord, ref: object = None) -> Ended:
        """Buffer a group that has been generated and scored. Returns it if dynamic sampling discards it, else nothing.

        Once `max_discarded` groups have been discarded for the coming step, further groups are kept whatever their
        rewards. Otherwise a model that has nothing left to learn would generate forever.
        """
        entry = self._expect(group_id, RUNNING)
        if not record.is_informative and self.discarded_since_take < self.max_discarded:
            self.discarded += 1
            self.discarded_since_take += 1
            return self._end([group_id])
        entry.state, entry.record, entry.ref = BUFFERED, record, ref
        entry.generator, entry.deaths, entry.reserved = "", 0, ""
        return {}

    def fail(self, group_id: str) -> Ended:
        """End a running group that failed on a generator or a scorer."""
        self._expect(group_id, RUNNING)
        self.failed += 1
        return self._end([group_id])

    def withdraw(self, group_id: str) -> Ended:
        """Remove a running group whose problem cannot be run at all. It does not count as failed."""
        self._expect(group_id, RUNNING)
        return self._end([group_id])

    def drop_stale(self) -> Ended:
        """Drop the buffered groups that are too old by the versions that actually wrote their tokens."""
        dropped = [
            group_id
            for group_id, entry in self.entries.items()
            if entry.record
            and entry.state == BUFFERED
            and self.version - entry.record.oldest_version > self.max_staleness
        ]
        self.dropped_stale += len(dropped)
        return self._end(dropped)

    def take(self) -> list[str] | None:
        """Choose the groups of the next learner step, or return None if it must wait. Call `drop_stale` first."""
        ready = [(self._deadline(e), e.position, i) for i, e in self.entries.items() if e.state == BUFFERED]
        running = [self._deadline(e) for e in self.entries.values() if e.state == RUNNING]
        chosen = choose(ready, running, self.version, self.groups_per_step)
        if chosen:
            self.discarded_since_take = 0
        for group_id in chosen or ():
            self.entries[group_id].state = TRAINING
        return chosen

    def step_done(self) -> Ended:
        """End the groups in training: they have been trained and made a new version."""
        self.step += 1
        self.version += 1
        return self._end(self._in_training())

    def lose(self, group_ids: list[str]) -> None:
        """Run groups in training again, because they were lost with the node that held them.

        The other groups of their step were not trained and return to the buffer.
        """
        for group_id in group_ids:
            entry = self._expect(group_id, TRAINING)
            entry.state, entry.record, entry.ref = RUNNING, None, None  # not on a generator yet
        self.lost += len(group_ids)
        self.put_back()

    def put_back(self) -> None:
        """Return the groups in training to the buffer: they were not trained."""
        for group_id in self._in_training():
            self.entries[group_id].state = BUFFERED

    def roll_back(self, step: int) -> None:
        """Return to the weights of step `step`."""
        self.put_back()
        self.step = step
        self.version += 1

    def count(self, state: str) -> int:
        return sum(entry.state == state for entry in self.entries.values())

    def _end(self, group_ids: list[str]) -> Ended:
        return {group_id: self.entries.pop(group_id) for group_id in group_ids}

    def _by_load(self) -> list[str]:
        """The generators that are not reserved for a suspect, fewest running groups first."""
        reserved = {entry.reserved for entry in self.entries.values()}
        load = {name: 0 for name in self.generators if name not in reserved}
        for entry in self.entries.values():
            if entry.state == RUNNING and entry.generator in load:
                load[entry.generator] += 1
        return sorted(load, key=lambda name: (load[name], name))

    def _in_training(self) -> list[str]:
        return [group_id for group_id, entry in self.entries.items() if entry.state == TRAINING]

    def _next_version(self) -> int:
        """The learner's version once the running step, if any, is done."""
        return self.version + (self.count(TRAINING) > 0)

    def _deadline(self, entry: Entry) -> int:
        return entry.first_version + self.max_staleness

    def _expect(self, group_id: str, state: str) -> Entry:
        entry = self.entries.get(group_id)
        if entry is None or entry.state != state:
            raise KeyError(f"group {group_id} is not {state}: {entry.state if entry else 'unknown'}")
        return entry
