"""What asynchrony buys: the same training run with several staleness bounds, side by side.

Each turn is a run of its own, whose first steps are not counted because the pools are not yet all busy. Ratios are to
the first bound in the same round. The time of a step is the median over its run; shares of waiting are means.
"""

import json
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from jobs.bench.measuring import output_of, spread, table, take_turns, to_first
from pipeline.errors import ConfigError

WARM_UP = 4  # steps
POOLS = ("generators", "scorers", "learners")


@dataclass
class Settings:
    max_staleness: list[int] = field(default_factory=lambda: [0, 1, 4])  # the bounds to compare
    steps: int = 20  # per run
    rounds: int = 2  # runs per staleness bound
    preset: str = "tiny"  # of the runs
    arguments: str = "generator.count=1"  # further arguments of jobs.train


def run(settings: Settings) -> str:
    """Measure all bounds; return the table. Raises `ConfigError` if nothing would be measured."""
    if not settings.max_staleness or settings.steps <= WARM_UP or settings.rounds < 1:
        raise ConfigError(f"steps must be above {WARM_UP}, rounds at least 1, and max_staleness not empty")
    return tables(take_turns(settings.max_staleness, settings.rounds, lambda bound: train(settings, bound)))


def train(settings: Settings, bound: int) -> list[dict]:
    """The rows of one run's metrics.jsonl, without the first steps. Raises `RuntimeError` if the run failed."""
    with tempfile.TemporaryDirectory() as folder:
        job = ["jobs.train", f"preset={settings.preset}", f"train.max_staleness={bound}", "run.name=bench"]
        job += ["train.evaluation=none", "train.evaluate_every=0", "wandb.mode=disabled", f"run.folder={folder}"]
        job += [f"train.steps={settings.steps}"]
        output_of([*job, *settings.arguments.split()])
        lines = (Path(folder) / "bench" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[WARM_UP:]]


def tables(turns: dict[int, list[list[dict]]]) -> str:
    """A table with one row per staleness bound.

    Args:
        turns: by bound, the rows of each of its runs.
    """
    seconds = {bound: [statistics.median(row["seconds"] for row in rows) for rows in of] for bound, of in turns.items()}
    ratios = to_first(seconds)
    lines = []
    for bound, of in turns.items():
        rows = [row for run in of for row in run]
        shares = [f"{statistics.mean(row[f'{pool}_waited'] for row in rows):.0%}" for pool in POOLS]
        pauses = [1000 * row["update_pause_max"] for row in rows if row["update_pause_max"] is not None]
        pause = f"{statistics.median(pauses):.0f} ms" if pauses else "-"
        ages = [row for row in rows if row["staleness_mean"] is not None]
        mean = f"{statistics.mean(row['staleness_mean'] for row in ages):.2f}" if ages else "-"
        most = max((row["staleness_max"] for row in ages), default="-")
        lines.append([bound, f"{spread(seconds[bound])} s", spread(ratios[bound]), *shares, pause, mean, most])
    waited = [f"{pool} waited" for pool in POOLS]
    head = ["max_staleness", "step", "ratio", *waited, "pause per new version", "mean staleness", "highest"]
    return table(head, lines)
