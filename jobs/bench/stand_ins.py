"""The stand-ins of the coordinator's benchmark: engines that are clocks, and learner ranks that train nothing."""

import asyncio
import functools
import random
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import psutil
import ray

from actors import job_actor
from actors.coordinator import Coordinator
from actors.generation import generator_pool
from actors.generation.generator import gather_or_cancel
from actors.generation.generator_pool import GeneratorPool
from actors.generation.journal import JournalWriter
from actors.groups import Step
from actors.learning import gang
from actors.learning.gang import LearnerGang
from actors.learning.supervisor import LearnerSupervisor
from pipeline.learning.packing import Update
from pipeline.learning.token_metrics import Max, Mean, Total
from pipeline.lease import Lease
from pipeline.problems import Problem
from pipeline.rollout.episodes import (
    Completion,
    Conversation,
    Episode,
    EpisodeGroup,
    RolloutNotes,
    Sampling,
    pack_group,
)
from pipeline.rollout.replay import Finished
from pipeline.run.config import TrainingConfig
from pipeline.weights.bucket_transport import Sent
from pipeline.weights.transport import FROM_DISK, Weights

EPISODES = 16
SECTIONS = (5000, 5000, 5000, 5000, 5000, 3000)  # tokens
QUESTION, MEMORY = 188, 512  # tokens: the question with the template's text; a response
GROUP_S = 15.0  # of an engine
SEQUENCES = 125  # that an engine decodes together
GROUPS_PER_STEP = 4  # per generator
RANKS = 3  # per generator
STEP_S = GROUP_S * GROUPS_PER_STEP
TRAINING_SHARE = 0.5  # of a step's time, in which the ranks train
PAUSE_S = 1.0  # in which a generator loads weights
BUCKETS = 227  # of 64 MiB: 15.2 GB of weights
ENGINES_PER_ACTOR = 64
VOCABULARY = 100  # token ids: the embedded model's tokenizer, which the tracker loads, knows them


@dataclass(frozen=True)
class Load:
    """What a simulated run has to do."""

    generators: int
    steps: int
    speed: float  # simulated seconds per second

    @classmethod
    def of(cls, generators: int, groups: int, groups_per_second: float) -> "Load":
        """That of so many groups, which really come at this rate."""
        speed = groups_per_second / (generators / GROUP_S)
        return cls(generators, groups // (GROUPS_PER_STEP * generators), speed)

    def seconds(self, simulated: float) -> float:
        """Real seconds of simulated ones."""
        return simulated / self.speed


class Usage(NamedTuple):
    """Of the coordinator's process, so far."""

    cpu: float  # seconds, of all threads
    memory: int  # bytes that no other process shares


WithoutRay: Any = cast(Any, Coordinator).__ray_metadata__.modified_class.__ray_actor_class__


@ray.remote(num_cpus=0, max_concurrency=100)
class SimulatedCoordinator(WithoutRay):
    """The coordinator, between pools that start no engines and no learners. It notes its usage after each step."""

    def __init__(self, config: TrainingConfig, folder: str, lease: Lease, load: Load):
        for module, name in ((generator_pool, "HEARTBEAT_S"), (generator_pool, "DRAINING_S"), (gang, "PROGRESS_S")):
            setattr(module, name, load.seconds(getattr(module, name)))
        job_actor.BEAT_S = load.seconds(job_actor.BEAT_S)
        self.GENERATORS = functools.partial(SimulatedGenerators, load)
        self.LEARNERS = functools.partial(SimulatedLearners, load)
        super().__init__(config, folder, lease)
        self._usage: list[Usage] = []

    async def _train_on(self, step: Step) -> None:
        await super()._train_on(step)
        self._usage.append(Usage(time.process_time(), psutil.Process().memory_full_info().uss))

    def usage(self) -> list[Usage]:
        """The usage after each step."""
        return self._usage


class SimulatedGenerators(GeneratorPool):
    """The generator pool. Up to `ENGINES_PER_ACTOR` of its generators are one actor."""

    def __init__(self, load: Load, *arguments):
        super().__init__(*arguments)
        self._load = load
        self._engines: dict[int, Any] = {}

    def make(self, number: int):
        number //= ENGINES_PER_ACTOR
        if number not in self._engines:
            engines = min(ENGINES_PER_ACTOR, self._load.generators - number * ENGINES_PER_ACTOR)
            self._engines[number] = cast(Any, SimulatedEngines).remote(self._load, engines, self._journal)
        return self._engines[number]


@ray.remote(num_cpus=0, max_concurrency=100_000)
class SimulatedEngines:
    """Stands for several generators (actors/generation/generator.py), whose engines are clocks.

    The groups of an engine share its time, so the more groups it has, the longer each takes.
    """

    def __init__(self, load: Load, engines: int, journal):
        self._load, self._engines, self._journal = load, engines, JournalWriter(journal)
        self._group, self._responses = random_group()
        self._running = self._version = 0
        self._random = random.Random(0)

    async def start(self, check_room: bool = False) -> tuple[str, str]:
        return "simulated", ray.get_runtime_context().get_node_id()

    async def max_sequences(self) -> int:
        return SEQUENCES

    async def rollout(
        self,
        group_id: str,
        problem: Problem,
        method: str,
        episodes: int,
        sampling: Sampling,
        seed: tuple[int, ...] | None = None,
        resumed: bool = False,
        priority: int = 0,
    ) -> tuple[EpisodeGroup, RolloutNotes]:
        begin, version = time.monotonic(), self._version
        self._running += 1
        for response in self._responses:
            share = max(1.0, self._running / self._engines)
            await asyncio.sleep(
                self._load.seconds(GROUP_S / len(self._responses) * share) * self._random.uniform(0.8, 1.2)
            )
            finished = (Finished(group_id, episode, b"a digest of bytes", response) for episode in range(episodes))
            await gather_or_cancel([self._journal.write(one) for one in finished])
        self._running -= 1
        group = replace(
            self._group,
            problem_id=problem.id,
            versions=np.full_like(self._group.versions, version),
            cache_versions=np.full_like(self._group.cache_versions, version),
            episode_answers=tuple(f"\\boxed{{{self._random.choice(('yes', 'no'))}}}" for _ in range(episodes)),
        )
        return group, RolloutNotes(seconds=time.monotonic() - begin)

    async def load_weights(self, weights: Weights) -> float:
        pause_s = self._load.seconds(PAUSE_S)
        await asyncio.sleep(pause_s)
        self._version = max(self._version, weights.version)
        return pause_s

    async def heartbeat(self) -> None:
        pass

    async def until_death(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


def random_group() -> tuple[EpisodeGroup, list[Completion]]:
    """A group of the preset's size with random tokens, and the responses of one of its episodes."""
    rng = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return rng.integers(0, VOCABULARY, count).tolist()

    question, sections = tokens(QUESTION), [tokens(section) for section in SECTIONS]

    def conversation(role: str, section: list[int]) -> Conversation:
        response = Completion(tokens(MEMORY), (-rng.exponential(1.0, MEMORY)).tolist(), [0] * MEMORY, "stop", 0, 1024)
        return Conversation(role, question + section + tokens(MEMORY), response)

    episodes = [
        Episode([*(conversation("memory", section) for section in sections), conversation("answer", [])])
        for _ in range(EPISODES)
    ]
    return pack_group("", episodes), [conversation.response for conversation in episodes[0].conversations]


class SimulatedLearners(LearnerSupervisor):
    """The supervisor of a gang that needs no room."""

    def __init__(self, load: Load, *arguments):
        super().__init__(*arguments)
        self._load = load

    async def start(self, version: int) -> Weights:
        self.placed.set()
        self._gang = SimulatedGang(self.config, self._load)
        self.works = True
        if not version:
            return FROM_DISK
        await self._gang.copy_weights(version, "")
        return await self._gang.send_weights()


class SimulatedGang(LearnerGang):
    """The gang, all of whose ranks are one actor."""

    def __init__(self, config: TrainingConfig, load: Load):
        self.config, self.size, self._placement = config, config.learner.ranks, None
        self.ranks = [cast(Any, SimulatedRanks).remote(load, self.size)] * self.size


@ray.remote(num_cpus=0, max_concurrency=10_000)
class SimulatedRanks:
    """Stands for all learner ranks (actors/learning/learner.py). They train nothing."""

    def __init__(self, load: Load, ranks: int):
        self._load, self._buckets = load, -(-BUCKETS // ranks)

    async def progress(self) -> int:
        return time.monotonic_ns()

    async def fetch(self, refs: dict[int, list]) -> list[int]:
        return []

    async def train(
        self, version: int, updates: list[Update], advantages: dict, rewards: dict, trace: str, shown: list[int]
    ) -> list[dict]:
        await asyncio.sleep(self._load.seconds(TRAINING_SHARE * STEP_S))
        return [result_of(update) for update in updates]

    async def copy_weights(self, version: int, transport: str) -> None:
        pass

    async def send_weights(self) -> list[Sent]:
        """A rank's share of the buckets, which are empty."""
        return [Sent(place, 0, ray.put(b"")) for place in range(self._buckets)]

    async def copy_checkpoint(self, folder: str) -> None:
        pass

    async def write_checkpoint(self) -> list:
        return []

    async def close(self) -> None:
        pass


def result_of(update: Update) -> dict:
    """What a rank says of an update (`Learner.train`)."""
    tokens = update.tokens
    means = ("clip_fraction", "ratio_mean", "importance_mean", "importance_capped", "entropy", "kl")
    metrics = {name: Mean(0.01 * tokens, tokens) for name in (*means, "logprob_mismatch_mean")}
    return {
        "loss": 0.0,
        "metrics": metrics
        | {"importance_max": Max(1.0), "logprob_mismatch_max": Max(0.01), "logprob_mismatch_tokens": Total(tokens)},
        "grad_norm": 0.5,
        "learning_rate": 1e-6,
        "micro_batches": len(update.micro_batches),
        "not_finite": [],
        "proximal_seconds": 0.0,
    }
