"""Breaks a training run on purpose, and checks from what it leaves that nothing was lost and nothing trained twice."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import ray

from jobs.train import NAMESPACE
from pipeline.run.checkpoints import Checkpoints

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "preset=tiny train.groups_per_step=4 train.group_size=4 train.checkpoint_every=2 generator.max_sequences=64 "
    "train.evaluation=none train.evaluate_every=0 wandb.mode=disabled generator.timeout_s=600"
).split()

LIMIT_S = 900  # for what takes seconds on a quiet machine: tests wait for events, and time only ends what is broken


def inject(name: str, after: int = 0, folder: Path | None = None) -> Path:
    """Let a fault of tests/support/inject strike in the processes that have CHAOS_FOLDER; return the file that is its
    trace.

    Args:
        name: of the fault.
        after: at which call of its method: how many are let pass.
        folder: CHAOS_FOLDER of these processes; by default that of the tests.
    """
    go = (folder or Path(os.environ["CHAOS_FOLDER"])) / f"{name}.go"
    go.with_suffix(".done").unlink(missing_ok=True)
    partial = go.with_suffix(".partial")
    partial.write_text(str(after))
    partial.rename(go)
    return go.with_suffix(".done")


def until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait for what no line tells."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"in vain for {limit_s} s"
        time.sleep(0.05)


class Run:
    """A job in a process of its own, whose lines are read as they come. As a context, it leaves nothing running.

    Args:
        job: its module.
        arguments: of its command.
        environment: beside that of the tests; RAY_ADDRESS names the Ray that it joins, else it has one of its own.
    """

    def __init__(self, job: str, *arguments: str, environment: dict[str, str] | None = None):
        self.lines: list[str] = []
        self._joined = "RAY_ADDRESS" in (environment or {})
        self._came = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", job, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | (environment or {}),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        self.kill_all()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._came:
                self.lines.append(line.rstrip("\n"))
                self._came.notify_all()
        with self._came:
            self._came.notify_all()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str, limit_s: float = LIMIT_S, after: int = 0) -> int:
        """The number of the first line from `after` on that contains the text, plus one."""
        deadline = time.monotonic() + limit_s
        with self._came:
            while True:
                for number in range(after, len(self.lines)):
                    if text in self.lines[number]:
                        return number + 1
                left = deadline - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self._came.wait(2)):
                    raise AssertionError(f"{text!r} did not come:\n{self.output}")
                self._came.wait(min(left, 1))

    def end(self, limit_s: float = LIMIT_S) -> int:
        """Wait for the end; return the exit status."""
        try:
            status = self.process.wait(limit_s)
            self._reader.join(30)  # until its last line is read
            return status
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run did not end:\n{self.output}") from None

    def processes(self, kind: str) -> list[psutil.Process]:
        """The processes of an actor class, or EngineCore, of this run's own Ray."""
        return processes(self.root, kind)

    @property
    def root(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def kill(self, kind: str, how: int = signal.SIGKILL) -> None:
        """Kill, or send another signal to, the oldest process of a kind."""
        found = self.processes(kind)
        assert found, f"there is no {kind}"
        found[0].send_signal(how)

    def kill_all(self) -> None:
        """Kill whatever there still is of it, all at once."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*self.root.children(recursive=True), self.process]:
                process.kill()
        self.process.wait()
        if self._joined and ray.is_initialized():  # in the tests' own Ray, its coordinator outlives its driver
            for named in ray.util.list_named_actors(all_namespaces=True):
                if named["namespace"] == NAMESPACE:
                    with contextlib.suppress(ValueError):
                        ray.kill(ray.get_actor(**named))


def run_job(job: str, *arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a job to its end; return its exit status and what it printed."""
    with Run(job, *arguments, environment=environment) as run:
        return run.end(), run.output


def training(*arguments: str, environment: dict[str, str] | None = None) -> Run:
    """A training run, small enough to be broken in seconds."""
    return Run("jobs.train", *SMALL, *arguments, environment=environment)


def processes(root: psutil.Process, kind: str) -> list[psutil.Process]:
    """The processes below `root` of an actor class, or EngineCore."""
    found = []
    for process in root.children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if command and command[0].startswith((f"ray::{kind}", f"VLLM::{kind}")):
            found.append(process)
    return sorted(found, key=lambda p: p.create_time())


def busy_engine(root: psutil.Process, limit_s: float = 60) -> psutil.Process:
    """An engine process below `root` that is generating just now."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        for engine in processes(root, "EngineCore"):
            with contextlib.suppress(psutil.Error):
                if engine.cpu_percent(interval=0.2) > 15:
                    return engine
    raise AssertionError("no engine is busy")


def rows_of(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl; a last line that is being written is none."""
    *lines, last = (folder / "metrics.jsonl").read_text().split("\n")
    return [json.loads(line) for line in lines]


def check_rows(rows: list[dict], groups_per_step: int, max_staleness: int | None = None) -> list[int]:
    """All steps are there in order, each with its groups, no problem twice; return the positions that were trained."""
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    trained = [position for row in rows for position in row["positions"]]
    assert len(trained) == len(rows) * groups_per_step
    assert [position for position, times in Counter(trained).items() if times > 1] == []
    versions = [row["version"] for row in rows]
    assert versions == sorted(set(versions))
    assert max_staleness is None or all((row["staleness_max"] or 0) <= max_staleness for row in rows)
    return trained


def check_history(folder: Path, groups_per_step: int, max_staleness: int, steps: int | None = None) -> dict:
    """What a run left agrees with itself: every group once, none missing; return its summary.

    With `steps` the run was to complete so many; without, it was interrupted at whatever step.

    From metrics.jsonl alone: all steps in order, each with its groups, no problem twice. From the ledger's checkpoint:
    what was read is trained or open.
    """
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == ("completed" if steps else "interrupted"), summary
    rows = rows_of(folder)
    assert len(rows) == summary["steps"] and len(rows) == (steps or len(rows))
    trained = check_rows(rows, groups_per_step, max_staleness)
    base, _, step = summary["checkpoint"].rpartition("/")
    checkpoint = Checkpoints(base).read(int(step))
    assert checkpoint.step == len(rows)
    cursor = checkpoint.state.cursor
    discarded = sum(row["groups_discarded"] for row in rows)
    read = set(range(cursor.position)) - set(cursor.open)
    assert set(trained) <= read and len(read) - len(trained) == discarded + summary["rows_quarantined"]
    return summary
