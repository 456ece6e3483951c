"""What asynchrony buys: the same training run with several staleness bounds, side by side.

    python -m jobs.bench.asynchrony max_staleness=[0,1,4] steps=20 preset=tiny

The variants take turns, so that all run under the same machine load; ratios are to the first one. Each turn is a
separate run. Its first steps are not counted, because the pools are not yet all busy.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from jobs.support.driver import asks_for_help, show_help
from pipeline.config import load_config
from pipeline.errors import ConfigError

WARM_UP = 4  # steps


@dataclass
class Settings:
    max_staleness: list[int] = field(default_factory=lambda: [0, 1, 4])  # the bounds to compare
    steps: int = 20  # per turn
    turns: int = 2  # per staleness bound
    preset: str = "tiny"  # of the runs
    arguments: str = "generator.count=1"  # further arguments of jobs.train


def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        return show_help(__doc__, Settings)
    try:
        settings = load_config(arguments, Settings)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    if not settings.max_staleness or settings.steps <= WARM_UP or settings.turns < 1:
        print(
            f"configuration error:\nsteps must be above {WARM_UP}, turns at least 1, and max_staleness not empty",
            file=sys.stderr,
        )
        return 2
    rows: dict[int, list[dict]] = {bound: [] for bound in settings.max_staleness}
    for turn in range(settings.turns):
        for bound in settings.max_staleness:
            print(f"· turn {turn + 1} of {settings.turns}: max_staleness {bound}", flush=True)
            rows[bound] += run(settings, bound)
    print(table(rows))
    return 0


def run(settings: Settings, bound: int) -> list[dict]:
    """The rows of one turn's metrics.jsonl, without the first steps. Raises `RuntimeError` if the run failed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jobs.train", f"preset={settings.preset}", f"train.max_staleness={bound}"]
        command += [f"train.steps={settings.steps}", "train.evaluation=''", "wandb.mode=disabled"]
        command += [*settings.arguments.split(), f"run.folder={folder}", "run.name=bench"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"max_staleness={bound} ended with status {done.returncode}:\n{done.stdout[-3000:]}")
        lines = (Path(folder) / "bench" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[WARM_UP:]]


def table(rows: dict[int, list[dict]]) -> str:
    """A Markdown table with one row per staleness bound.

    Seconds and pause are medians over steps, shares of waiting are means; staleness is its mean and its maximum.
    """
    lines = [
        "| max_staleness | seconds per step | ratio | generators waited | scorers waited | learners waited | "
        "pause per weight update | staleness, mean and max |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    first = None
    for bound, of in rows.items():
        seconds = statistics.median(row["seconds"] for row in of)
        first = first or seconds
        shares = (
            statistics.mean(row[f"{pool}_waited"] for row in of) for pool in ("generators", "scorers", "learners")
        )
        pauses = [row["update_pause_max"] for row in of if row["update_pause_max"] is not None]
        pause = f"{1000 * statistics.median(pauses):.0f} ms" if pauses else "-"
        stale = [row for row in of if row["staleness_mean"] is not None]
        mean = f"{statistics.mean(row['staleness_mean'] for row in stale):.2f}" if stale else "-"
        most = max((row["staleness_max"] for row in stale), default="-")
        waited = " | ".join(f"{share:.0%}" for share in shares)
        lines.append(f"| {bound} | {seconds:.2f} | {seconds / first:.2f} | {waited} | {pause} | {mean}, {most} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
