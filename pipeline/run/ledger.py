"""The ledger: where every group is, and by which transitions it gets there. It makes "no group lost, none trained
twice" a fact that can be checked.

A group is admitted (running on a generator, then with a scorer), buffered (scored, waiting), training, and then
trained; or it fails or is dropped as stale, and its problem is run again as a new group; or, under dynamic sampling
(DAPO, arXiv 2503.14476), it is discarded because its rewards are all equal, and another problem takes its place. It
stays the same group when it moves to another generator, as its own died, and when it was finished, is lost, and is made
again.

A group under which `SUSPECT_DEATHS` generators died is a suspect: a generator is reserved for it, runs nothing else,
and shows whether it was this group.

Steps count what was trained, versions count what generators were given. Both go up by one with every step; after a
rollback to a checkpoint the steps go back, and the weights of the checkpoint get a version that was never used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from pipeline.rollout.episodes import GroupRecord
from pipeline.run.config import TrainSection
from pipeline.run.staleness import choose, feasible

RUNNING, BUFFERED, TRAINING = "running", "buffered", "training"
SUSPECT_DEATHS = 2
DROPPED_STALE = "dropped_stale"  # among the failures of a run: dropped untrained; not a failure


def discard_limit(train: TrainSection) -> int:
    """How many groups of equal rewards one step may discard."""
    return ceil(train.max_discarded * train.groups_per_step) if train.dynamic_sampling else 0


def too_many_failed(failed: int, done: int, train: TrainSection) -> bool:
    """Whether so many groups failed that the run should end, of those that failed or are done.

    Two steps' worth of failures at least, so that a bad start does not end it.
    """
    return failed >= 2 * train.groups_per_step and failed > train.max_failed_share * (failed + done)


@dataclass
class Entry:
    """All that there is of one group but its conversations, which lie in the journal."""

    position: int  # of its problem in the data
    generator: str  # empty while it waits for another one
    first_version: int  # of the generator at admission; no token can be older
    state: str = RUNNING
    record: GroupRecord | None = None  # once it is buffered
    ref: object = None  # to its episodes, as long as there is a record
    deaths: int = 0  # of generators that ran it, since it was last finished
    reserved: str = ""  # the generator that is reserved for it alone


Ended = dict[str, Entry]  # groups that are in the ledger no more, by id


@dataclass
class Ledger:
    """Pure state; actors/groups.py waits for it to change, and clears up behind the groups that it lets go."""

    groups_per_step: int
    max_staleness: int
    steps: int
    max_discarded: int = 0  # groups of equal rewards that one step may discard; 0: no dynamic sampling
    step: int = 0  # steps trained
    version: int = 0  # of the learner's weights
    entries: dict[str, Entry] = field(default_factory=dict)
    generators: Mapping[str, int] = field(default_factory=dict)  # in service, with their weight versions; only read
    admitted: int = 0
    failed: int = 0
    lost: int = 0  # with the node that held them, and made again
    dropped_stale: int = 0
    discarded: int = 0
    discarded_since_take: int = 0

    @property
    def trained(self) -> int:
        """Groups in the history that the weights stand for."""
        return self.step * self.groups_per_step

    def next_generator(self) -> str | None:
        """The generator that would run a group that is admitted now; None if none may start."""
        if len(self.entries) >= (self.steps - self.step) * self.groups_per_step:
            return None  # the steps that remain have their groups
        learner = self._next_version()
        # Those that are too late since learners went back hold nobody up: they are dropped when they come.
        waiting = (entry for entry in self.entries.values() if entry.state != TRAINING)
        deadlines = [max(self._deadline(entry), learner) for entry in waiting]
        for name in self._by_load():
            deadline = self.generators[name] + self.max_staleness
            if feasible([*deadlines, deadline], learner, self.groups_per_step):
                return name
        return None

    def admit(self, group_id: str, position: int) -> str | None:
        """Admit a group and return the generator that shall run it, or None if none may start now."""
        name = self.next_generator()
        if name is not None:
            self.entries[group_id] = Entry(position, name, self.generators[name])
            self.admitted += 1
        return name

    def generator_lost(self, group_id: str, blame: bool) -> Entry:
        """A running group has lost its generator; return its entry, which may now be a suspect.

        Args:
            blame: it died, and nothing but what it ran is known to have killed it.
        """
        entry = self._expect(group_id, RUNNING)
        entry.generator, entry.deaths = "", entry.deaths + blame
        return entry

    def move(self, group_id: str) -> str | None:
        """Give a running group to the generator with the fewest, a suspect to an empty one that is reserved for it;
        return that generator, or None if there is none now."""
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
        """A group has been generated and scored. Returns it if dynamic sampling discards it, else nothing.

        Once the step that is being filled has discarded `max_discarded` groups, the others are kept whatever their
        rewards: a model that has nothing more to learn must not generate for ever.
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
        """A group was lost on a generator or a scorer."""
        self._expect(group_id, RUNNING)
        self.failed += 1
        return self._end([group_id])

    def withdraw(self, group_id: str) -> Ended:
        """A running group is taken back because its problem cannot be run at all; no failure of ours."""
        self._expect(group_id, RUNNING)
        self.admitted -= 1
        return self._end([group_id])

    def drop_stale(self) -> Ended:
        """Drop the groups that are too old by the versions that really wrote their tokens: the bound once more."""
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
        """The groups of the next learner step, or None if it must wait. `drop_stale` comes first."""
        ready = [(self._deadline(e), e.position, i) for i, e in self.entries.items() if e.state == BUFFERED]
        running = [self._deadline(e) for e in self.entries.values() if e.state == RUNNING]
        chosen = choose(ready, running, self.version, self.groups_per_step)
        if chosen:
            self.discarded_since_take = 0
        for group_id in chosen or ():
            self.entries[group_id].state = TRAINING
        return chosen

    def step_done(self) -> Ended:
        """The groups in training have made a new version."""
        self.step += 1
        self.version += 1
        return self._end(self._in_training())

    def lose(self, group_ids: list[str]) -> None:
        """Groups that were to be trained were lost with the node that held them: they run again, and the others of
        their step were not trained."""
        for group_id in group_ids:
            entry = self._expect(group_id, TRAINING)
            entry.state, entry.record, entry.ref = RUNNING, None, None  # on no generator yet
        self.lost += len(group_ids)
        self.put_back()

    def put_back(self) -> None:
        """The groups in training were not trained after all."""
        for group_id in self._in_training():
            self.entries[group_id].state = BUFFERED

    def roll_back(self, step: int) -> None:
        """The weights are those of step `step` again."""
        self.put_back()
        self.step = step
        self.version += 1

    def count(self, state: str) -> int:
        return sum(entry.state == state for entry in self.entries.values())

    def _end(self, group_ids: list[str]) -> Ended:
        return {group_id: self.entries.pop(group_id) for group_id in group_ids}

    def _by_load(self) -> list[str]:
        """The generators that are not reserved for a suspect, those with the fewest running groups first."""
        reserved = {entry.reserved for entry in self.entries.values()}
        load = {name: 0 for name in self.generators if name not in reserved}
        for entry in self.entries.values():
            if entry.state == RUNNING and entry.generator in load:
                load[entry.generator] += 1
        return sorted(load, key=lambda name: (load[name], name))

    def _in_training(self) -> list[str]:
        return [group_id for group_id, entry in self.entries.items() if entry.state == TRAINING]

    def _next_version(self) -> int:
        """The learner's version once the step that runs now, if any, is done."""
        return self.version + (self.count(TRAINING) > 0)

    def _deadline(self, entry: Entry) -> int:
        return entry.first_version + self.max_staleness

    def _expect(self, group_id: str, state: str) -> Entry:
        entry = self.entries.get(group_id)
        if entry is None or entry.state != state:
            raise KeyError(f"group {group_id} is not {state}: {entry.state if entry else 'unknown'}")
        return entry
