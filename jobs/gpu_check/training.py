"""Twenty steps of reinforcement learning of the embedded model, by `jobs.train` on a Ray of its own."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from jobs.gpu_check.report import Measured, Missed, Report
from jobs.gpu_check.settings import Settings

STEPS = 20
COMPARED = 5  # steps at the beginning and at the end
LEAST_RISE = 0.05  # of the mean reward
COMMON = (
    "preset=tiny",
    f"train.steps={STEPS}",
    f"train.checkpoint_every={STEPS}",
    "train.evaluate_every=0",
    "train.evaluation=none",
    "wandb.mode=disabled",
)
# Engine and learner share the GPU, as in preset=one_gpu.
ON_GPU = (
    "model.dtype=bfloat16",
    "generator.num_gpus=0.5",
    "generator.gpu_memory_share=0.35",
    "generator.gpu_kv_cache_gib=2",
    "learner.ranks=1",
    "learner.num_gpus=0.5",
)


def run(settings: Settings, folder: Path, report: Report) -> None:
    with report.check(f"reward rises in {STEPS} steps") as measured:
        command = [sys.executable, "-m", "jobs.train", *arguments(settings), f"run.folder={folder}", "run.name=run"]
        status = subprocess.run(command, env=os.environ | {"RAY_ADDRESS": "local"}).returncode
        if status != 0:
            raise Missed(f"jobs.train ended with status {status}: its output is in the log of this part")
        lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        judge([json.loads(line) for line in lines], measured)


def arguments(settings: Settings) -> list[str]:
    """The arguments of `jobs.train`, without the run's folder and name."""
    return [*COMMON, *(ON_GPU if settings.on_gpu else ())]


def judge(rows: list[dict], measured: Measured) -> None:
    """Check the rows of metrics.jsonl.

    Raises:
        Missed: the reward has not risen.
    """
    measured.at_least("steps", len(rows), STEPS)
    first, last = (statistics.mean(row["reward"] for row in part) for part in (rows[:COMPARED], rows[-COMPARED:]))
    measured.note(f"mean reward of the first {COMPARED} steps {first:.3f}, of the last {last:.3f}")
    measured.at_most("skipped updates", sum(row["updates_skipped"] for row in rows), 0)
    mismatches = [row["logprob_mismatch_mean"] for row in rows if row["logprob_mismatch_mean"] is not None]
    if mismatches:
        measured.note(f"mean log-prob mismatch {statistics.mean(mismatches):.2g}")
    measured.at_least("rise", last - first, LEAST_RISE)
