"""A training run without engines: the real coordinator, groups, rollouts, accounts, journal and tracker in this
process, between pools that only pretend to generate, score and learn."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from actors import coordinator as coordinator_module
from actors import tracker as tracker_module
from actors.coordinator import Coordinator
from actors.generation.generator_pool import GeneratorLeft, GeneratorLost
from actors.generation.journal import Journal
from actors.tracker import Tracker
from actors.tracking import Tracking
from pipeline.data import problem_stream
from pipeline.data.problem_queue import ProblemQueue
from pipeline.data.samples import sample_rows_here
from pipeline.lease import Lease
from pipeline.problems import Problem
from pipeline.rollout.episodes import RolloutNotes, ScoredGroup
from pipeline.rollout.replay import Finished
from pipeline.run.config import TrainingConfig
from pipeline.weights.transport import Weights
from tests.support.groups import random_group, scored
from tests.support.updates import rank, update


@dataclass(frozen=True)
class Problems:
    """A source of so many problems."""

    count: int

    def __len__(self) -> int:
        return self.count

    def order(self, seed: int, epoch: int) -> np.ndarray:
        return np.arange(self.count)

    def sample(self, index: int) -> Problem:
        return Problem(f"p{index}", "question?", ("answer",), "a document", "qa")


class Done:
    """What a call to an actor returns: can be awaited, and need not be."""

    def __init__(self, value: object):
        self._value = value

    def __await__(self):
        yield from ()
        return self._value


class Handle:
    """Of an actor that lives in this process."""

    def __init__(self, actor: object):
        self.actor = actor

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *arguments: Done(getattr(self.actor, name)(*arguments)))


class Pretended:
    """What the coordinator and its accounts ask of each pool."""

    alive = size = 1
    restarts = waiting = saved_step = 0
    checkpoint = None
    engine_version = device = ""
    model = None
    works = False

    def abandon(self, why: str) -> None:
        pass

    def waited_share(self) -> float:
        return 0.0

    def work_done(self) -> None:
        pass


class Generators(Pretended):
    """Generators that die, with all that they run, under the problems that `deadly` names.

    Args:
        names: of the generators.
        run: the coordinator.
        strike: is called with each problem that is run; may raise.
        deadly: ids of problems.
        seconds: that a group takes.
    """

    def __init__(
        self, names: list[str], run: Coordinator, strike: Callable[[Problem], None], deadly: set[str], seconds: float
    ):
        self.names, self._coordinator, self._strike, self._deadly = names, run, strike, deadly
        self._seconds = seconds
        self._earlier: deque[str] = deque(maxlen=100)  # groups, most of which were dropped since
        self.running: defaultdict[str, dict[str, asyncio.Future]] = defaultdict(dict)  # by generator and group
        self.together: list[tuple[str, list[str]]] = []  # of each death: the generator, and what it ran
        self.priorities: defaultdict[str, list[int]] = defaultdict(list)  # by group
        self.version = 0
        self.versions: dict[str, int] = {}  # of those in service

    def join(self, name: str) -> None:
        self.versions[name] = self.version
        self._coordinator.groups.changed()

    async def publish(self, weights: Weights) -> None:
        self.version = weights.version
        for name in list(self.versions):
            self.join(name)

    async def rollout(self, name: str, group_id: str, problem: Problem, *others) -> tuple[int, RolloutNotes]:
        *_, priority = others
        self.priorities[group_id].append(priority)
        if name not in self.versions:
            raise GeneratorLeft(f"{name} is gone")
        self.running[name][group_id] = lost = asyncio.get_running_loop().create_future()
        self._earlier.append(group_id)
        for noted in (group_id, self._earlier[0]):  # one that has come late
            self._coordinator.groups._journal.actor.add([Finished(noted, 0, b"", None)])
        version = self.version
        await asyncio.sleep(self._seconds)
        if problem.id in self._deadly and not lost.done():
            self._die(name)
        if lost.done():
            raise lost.exception()
        del self.running[name][group_id]
        self._strike(problem)
        return version, RolloutNotes(seconds=1.0, resumed_episodes=0)

    def _die(self, name: str) -> None:
        self.together.append((name, sorted(self.running[name])))
        for lost in self.running.pop(name).values():
            lost.set_exception(GeneratorLost(f"{name} died", blame=True))
        del self.versions[name]
        self._coordinator.groups.changed()
        asyncio.get_running_loop().call_later(0.01, self.join, name)


class Scorers(Pretended):
    def __init__(self, group: ScoredGroup):
        self._group = group

    async def score(self, version: int, *_) -> ScoredGroup:
        return replace(self._group, oldest_version=version)


class Keeper:
    failed = 0

    async def prune(self) -> None:
        pass


class Learners(Pretended):
    states: tuple = ()
    keeper = Keeper()
    weight_bytes_share = None

    async def train(self, step: int, version: int, groups: list) -> list:
        return [update(rank(tokens=5, staleness=[5], same_version_tokens=5), groups=list(range(len(groups))))]

    async def publish(self, version: int, deliver: Callable) -> None:
        await deliver(Weights(version))

    async def sent(self) -> None:
        pass

    async def unless_unsent(self, work: Awaitable):
        return await work

    async def saved(self) -> None:
        pass

    async def save(self, state) -> None:
        self.states, self.saved_step = (state,), state.step

    def can_grow(self) -> bool:
        return False


class SilentTracker(Tracker.__ray_metadata__.modified_class):
    def episodes(self, *_) -> None:
        pass


class SimulatedTracking(Tracking):
    def abandon(self) -> None:
        self.tracker = Handle(None)  # any call is an error


@dataclass
class Simulation:
    """A run and what it is made of."""

    coordinator: Coordinator
    tracker: SilentTracker
    generators: Generators

    async def train(self) -> None:
        """Train all steps."""
        run = self.coordinator
        run.spawn(run.rollouts.run())
        for name in self.generators.names:
            self.generators.join(name)
        try:
            await run.unless_failed(run._train())
        finally:
            run.cancel_all()


async def simulate(
    config: TrainingConfig,
    folder: Path,
    monkeypatch,
    problems: int = 1000,
    generators: int = 2,
    strike: Callable[[Problem], None] = lambda problem: None,
    deadly: set[str] = frozenset(),
    seconds: float = 0.0,
) -> Simulation:
    """A run that is ready to be trained.

    Args:
        config, folder: of the run; its wandb.mode is disabled.
        problems: how many there are.
        generators: how many there are.
        strike: is called with each problem that is run; may raise.
        deadly: ids of problems that kill their generators.
        seconds: that a group takes.
    """
    monkeypatch.setattr(coordinator_module, "was_started_again", lambda: False)
    monkeypatch.setattr(tracker_module, "was_started_again", lambda: False)
    monkeypatch.setattr(tracker_module, "Gauge", lambda *_: SimpleNamespace(set=lambda *_: None))
    monkeypatch.setattr(problem_stream, "sample_rows", lambda source, indices, *_: sample_rows_here(source, indices))
    journal = Journal.__ray_metadata__.modified_class()
    monkeypatch.setattr(coordinator_module, "Journal", SimpleNamespace(remote=lambda: Handle(journal)))
    run = Coordinator.__ray_metadata__.modified_class(config, str(folder), Lease(str(folder), "run", "token"))
    tracker = SilentTracker(config, str(folder))
    run.tracker = SimulatedTracking(Handle(tracker), run.say)
    group = scored(random_group(np.random.default_rng(0)), [1.0, 0.0, 1.0])
    pretended = Generators([f"generator-{n}" for n in range(generators)], run, strike, set(deadly), seconds)
    run.generators = run.accounts.generators = run.rollouts.generators = pretended
    run.groups.ledger.generators = pretended.versions
    run.scorers = run.accounts.scorers = run.rollouts.scorers = Scorers(group)
    run.learners = run.accounts.learners = Learners()
    run.groups.problems = ProblemQueue(Problems(problems), config.run.seed, run.quarantine)
    return Simulation(run, tracker, pretended)
