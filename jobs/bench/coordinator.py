"""The coordinator's CPU time with many generators, as a share of a step; and its memory from step to step.

Everything that the coordinator does is real: groups, ledger, buffer, pools, plans of the learner step, metrics. So are
the journal, the scorers, the tracker, the data stream and Ray's object store. What needs GPUs is replaced. An engine is
a clock: after a group's time it returns a group of the preset's size with random tokens. Learner ranks take a part of
the step's time and train nothing. One actor stands for up to 64 generators and one for all ranks, but the coordinator
calls it once for each of them, as often as it would call theirs, heartbeats included.

Groups come at the rate of `preset=memagent_7b` with one H100 per generator, estimated as follows. The section comes
first in the prompt, which is the faster layout and so the harder for the coordinator.

    prompts     16 episodes × (28,000 tokens of document, and 7 × 700 of memory and question): 526K
                a fifth is computed: 105K, at 15 GFLOP each and 500 TFLOP/s: 3 s
    responses   16 episodes × 7 conversations × 512 tokens: 57K
                125 at a time, as many conversations as the KV cache holds: 15 GB of weights and
                45 GB of cache, read at 2.3 TB/s for 125 tokens: 26 ms, in all 12 s
    a group     15 s of an engine: 64 engines make 4.3 groups/s, 256 make 17 (the preset's 8: 0.5)

A step trains four groups per generator, and two steps are in flight (train.max_staleness=1): eight groups, 128
conversations, for each engine. So a step takes 60 s at any size. There are three learner ranks per generator and
per group of an update, as in the preset.

The simulated clock runs as fast as this machine can make and score groups, and periodic calls such as heartbeats keep
its pace. Shares are a process's CPU time, in all its threads, over the simulated time of all steps but the first two.
The journal and the scorer are single processes too. Memory is what no other process shares.
"""

import asyncio
import functools
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
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
from jobs.bench.measuring import in_own_process, spread, table, take_turns
from jobs.support.driver import follow
from jobs.support.ray_token import private_folder, require_token
from jobs.support.run_folder import RunFolder
from jobs.support.stop_signals import StopSignals
from pipeline.errors import ConfigError
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
from pipeline.run.config import TrainingConfig, load_training_config
from pipeline.weights.transport import FROM_DISK, Weights

PRESET = "memagent_7b"
EPISODES = 16
SECTIONS = (5000, 5000, 5000, 5000, 5000, 3000)  # tokens
QUESTION, MEMORY = 188, 512  # tokens: the question with the template's text; a response
GROUP_S = 15.0  # of an engine
GROUPS_PER_STEP = 4  # per generator
RANKS = 3  # per generator
STEP_S = GROUP_S * GROUPS_PER_STEP
TRAINING_SHARE = 0.5  # of a step's time, in which the ranks train
PAUSE_S = 1.0  # in which a generator loads weights
BUCKETS = 227  # of 64 MiB: 15.2 GB of weights
ENGINES_PER_ACTOR = 64
VOCABULARY = 100  # token ids: the embedded model's tokenizer, which the tracker loads, knows them
ROWS = 10_000  # of the data; each names 200 passages
WARM_UP = 2  # steps that are not counted


@dataclass
class Settings:
    generators: list[int] = field(default_factory=lambda: [64, 256])  # numbers to compare
    groups: int = 8192  # per run, from which follows the number of steps
    groups_per_second: float = 12.0  # at which groups really come: as many as this machine can make and score
    rounds: int = 2  # runs per number of generators


@dataclass(frozen=True)
class Load:
    """What a simulated run has to do."""

    generators: int
    steps: int
    speed: float  # simulated seconds per second

    @classmethod
    def of(cls, settings: Settings, generators: int) -> "Load":
        speed = settings.groups_per_second / (generators / GROUP_S)
        return cls(generators, settings.groups // (GROUPS_PER_STEP * generators), speed)

    def seconds(self, simulated: float) -> float:
        """Real seconds of simulated ones."""
        return simulated / self.speed


def run(settings: Settings) -> str:
    """Simulate all runs; return the table. Raises `ConfigError` if a run would have too few steps."""
    fewest = (WARM_UP + 1) * GROUPS_PER_STEP * max(settings.generators, default=0)
    if not settings.generators or min(settings.generators) < 1 or settings.rounds < 1:
        raise ConfigError("generators must be a list of numbers above 0, and rounds at least 1")
    if settings.groups < fewest or settings.groups_per_second <= 0:
        raise ConfigError(f"groups must be at least {fewest} ({WARM_UP + 1} steps), and groups_per_second above 0")
    return tables(
        take_turns(settings.generators, settings.rounds, lambda n: in_own_process("coordinator", n, asdict(settings)))
    )


def tables(turns: dict[int, list[dict]]) -> str:
    """The table of all runs.

    Args:
        turns: by number of generators, the results of `measure`.
    """
    rows = []
    for generators, of in turns.items():
        cpu = [statistics.mean(result["cpu"]) for result in of]
        first, last = ([result["memory"][place] for result in of] for place in (0, -1))
        rows.append(
            [
                generators,
                f"{generators / GROUP_S:.1f}",
                len(of[0]["cpu"]),
                spread([seconds / STEP_S for seconds in cpu], ".1%"),
                f"{spread([1000 * seconds / (GROUPS_PER_STEP * generators) for seconds in cpu], '.1f')} ms",
                f"{spread(first, '.0f')} → {spread(last, '.0f')} MiB",
                *(spread([result[kind] for result in of], ".1%") for kind in ("journal", "scorer")),
            ]
        )
    head = [
        "generators",
        "groups/s",
        "steps",
        "coordinator's CPU time ÷ time",
        "per group",
        "its memory, first → last step",
    ]
    return table([*head, "journal", "scorer"], rows)


# One run, in a process of its own.


def measure(generators: int, given: dict) -> dict:
    """Simulate one run.

    Args:
        generators: their number.
        given: the fields of `Settings`.

    Returns:
        `cpu`, the coordinator's CPU seconds of each step that counts; `memory` in MiB after each of them and the one
        before; `journal` and `scorer`, their CPU time as a share of the simulated time.

    Raises:
        RuntimeError: the run did not complete, or groups failed.
    """
    load = Load.of(Settings(**given), generators)
    require_token()
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(load, Path(folder))
        ray.init(address="local", _temp_dir=str(private_folder() / "ray"), log_to_driver=False, logging_level="ERROR")
        try:
            return _simulated(load, config, Path(folder) / "run")
        finally:
            ray.shutdown()


def config_of(load: Load, folder: Path) -> TrainingConfig:
    """The run's configuration. Its data are written to `folder`."""
    rng = random.Random(0)
    rows = (
        {"id": f"q{n}", "question": f"question {n}?", "answers": ["yes"], "passage_file": "passages.arrow"}
        | {"passages": [rng.randrange(100_000) for _ in range(200)]}
        for n in range(ROWS)
    )
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_training_config(
        [
            f"preset={PRESET}",
            "model.path=configs/models/tiny",
            f"data.path={folder / 'samples.jsonl'}",
            f"generator.count={load.generators}",
            f"learner.ranks={RANKS * load.generators}",
            *(f"{section}.num_{kind}=0" for section in ("generator", "learner") for kind in ("cpus", "gpus")),
            f"train.groups_per_step={GROUPS_PER_STEP * load.generators}",
            f"train.updates_per_step={GROUPS_PER_STEP}",  # three ranks per group of an update, as in the preset
            f"train.steps={load.steps}",
            "wandb.mode=disabled",
        ]
    )


def _simulated(load: Load, config: TrainingConfig, folder: Path) -> dict:
    others = OtherProcesses()

    def show(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        if line.startswith("step "):
            others.look()

    with StopSignals() as signals, RunFolder(folder, signals) as place:
        coordinator = SimulatedCoordinator.remote(config, str(folder), place.lease, load)
        summary = follow(coordinator, signals, show)
    if isinstance(summary, str) or summary["status"] != "completed" or summary["failures"]:
        raise RuntimeError(f"the simulated run did not complete: {summary}")
    usage = ray.get(coordinator.usage.remote())[WARM_UP - 1 :]
    return {
        "cpu": [after.cpu - before.cpu for before, after in itertools.pairwise(usage)],
        "memory": [one.memory / 2**20 for one in usage],
        "real_seconds": [after.time - before.time for before, after in itertools.pairwise(usage)],
    } | others.shares(STEP_S * (load.steps - WARM_UP))


class OtherProcesses:
    """CPU seconds of the journal and the scorer after each step, as Ray's driver sees its processes."""

    KINDS = ("journal", "scorer")

    def __init__(self):
        self._used: list[Counter[str]] = []

    def look(self) -> None:
        """Note the CPU time so far."""
        used: Counter[str] = Counter()
        for process in psutil.Process().children(recursive=True):
            kind = next((k for k in self.KINDS if process.name().startswith(f"ray::{k.capitalize()}")), None)
            if kind:
                used[kind] += sum(process.cpu_times()[:2])  # type: ignore[assignment]  # seconds
        self._used.append(used)

    def shares(self, seconds: float) -> dict[str, float]:
        """CPU time after the warm-up over this time, by kind."""
        first, last = self._used[WARM_UP - 1], self._used[-1]
        return {kind: (last[kind] - first[kind]) / seconds for kind in self.KINDS}


class Usage(NamedTuple):
    """Of the coordinator's process, so far."""

    time: float  # seconds of the monotonic clock
    cpu: float  # seconds, of all threads
    memory: int  # bytes that no other process shares


WithoutRay: Any = Coordinator.__ray_metadata__.modified_class.__ray_actor_class__  # type: ignore[attr-defined]


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
        cpu = time.process_time()
        self._usage.append(Usage(time.monotonic(), cpu, psutil.Process().memory_full_info().uss))

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

    async def start(self) -> tuple[str, str]:
        return "simulated", ray.get_runtime_context().get_node_id()

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
        return await self.publish(version) if version else FROM_DISK


class SimulatedGang(LearnerGang):
    """The gang, all of whose ranks are one actor."""

    def __init__(self, config: TrainingConfig, load: Load):
        self.config, self.size, self._placement = config, config.learner.ranks, None
        self.ranks = [cast(Any, SimulatedRanks).remote(load)] * self.size


@ray.remote(num_cpus=0, max_concurrency=10_000)
class SimulatedRanks:
    """Stands for all learner ranks (actors/learning/learner.py). They train nothing."""

    def __init__(self, load: Load):
        self._load, self._published = load, 0

    async def progress(self) -> int:
        return time.monotonic_ns()

    async def fetch(self, refs: dict[int, list]) -> list[int]:
        return []

    async def train(self, version: int, updates: list[Update], advantages: dict, rewards: dict) -> list[dict]:
        await asyncio.sleep(self._load.seconds(TRAINING_SHARE * STEP_S))
        return [result_of(update) for update in updates]

    async def publish(self, version: int, transport: str) -> list[ray.ObjectRef]:
        """References of the weights' buckets, from the first rank only; the buckets are empty."""
        if version <= self._published:
            return []
        self._published = version
        return [ray.put(b"") for _ in range(BUCKETS)]

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
