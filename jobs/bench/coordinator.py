"""The coordinator's CPU time with many generators, as a share of a step; and its memory from step to step.

Everything that the coordinator does is real: groups, ledger, buffer, pools, plans of the learner step, metrics. So are
the journal, the scorers, the tracker, the data stream and Ray's object store. What needs GPUs is replaced. An engine is
a clock: after a group's time it returns a group of the preset's size with random tokens. Learner ranks take a part of
the step's time and train nothing. One actor stands for up to 64 generators and one for all ranks, but the coordinator
calls it once for each of them, as often as it would call theirs, heartbeats included.

Groups come at the rate of `preset=memagent_7b` with one H100 per generator, estimated as follows. Unlike in the preset,
the section comes first in the prompt: that is the faster layout, and so the harder one for the coordinator.

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

import itertools
import json
import random
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import ray

from jobs.bench.measuring import cpu_seconds, in_own_process, spread, table, take_turns
from jobs.bench.stand_ins import GROUP_S, GROUPS_PER_STEP, RANKS, STEP_S, Load, SimulatedCoordinator
from jobs.support.driver import follow, stop_ray
from jobs.support.ray_token import private_folder, require_token
from jobs.support.run_folder import RunFolder
from jobs.support.stop_signals import StopSignals
from pipeline.errors import ConfigError
from pipeline.run.config import TrainingConfig, load_training_config

PRESET = "memagent_7b"
ROWS = 10_000  # of the data; each names 200 passages
WARM_UP = 2  # steps that are not counted


@dataclass
class Settings:
    generators: list[int] = field(default_factory=lambda: [64, 256])  # numbers to compare
    groups: int = 8192  # per run, from which follows the number of steps
    groups_per_second: float = 12.0  # at which groups really come: as many as this machine can make and score
    rounds: int = 2  # runs per number of generators


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
    settings = Settings(**given)
    load = Load.of(generators, settings.groups, settings.groups_per_second)
    require_token()
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(load, Path(folder))
        ray.init(address="local", _temp_dir=str(private_folder() / "ray"), log_to_driver=False, logging_level="ERROR")
        try:
            return _simulated(load, config, Path(folder) / "run")
        finally:
            stop_ray()


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
    } | others.shares(STEP_S * (load.steps - WARM_UP))


class OtherProcesses:
    """CPU seconds of the journal and the scorer after each step, as Ray's driver sees its processes."""

    KINDS = ("journal", "scorer")

    def __init__(self):
        self._used: list[dict[str, float]] = []

    def look(self) -> None:
        """Note the CPU time so far."""

        def kind_of(process: psutil.Process) -> str | None:
            return next((k for k in self.KINDS if process.name().startswith(f"ray::{k.capitalize()}")), None)

        self._used.append(cpu_seconds(psutil.Process().children(recursive=True), kind_of))

    def shares(self, seconds: float) -> dict[str, float]:
        """CPU time after the warm-up over this time, by kind."""
        first, last = self._used[WARM_UP - 1], self._used[-1]
        return {kind: (last[kind] - first[kind]) / seconds for kind in self.KINDS}
