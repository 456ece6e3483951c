"""Jobs that run one after the other, each as a command of its own: the steps of `make figures` and `make learn`.

A step that has completed is not repeated, so the same command resumes what was interrupted.
"""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from jobs.support.progress import JobProgress
from jobs.support.run_folder import RunFolder
from jobs.support.stop_signals import StopSignals
from pipeline.errors import ConfigError
from pipeline.files import write_text
from pipeline.lease import LEASE
from pipeline.summary import duration

UNSUITABLE = ("${", " #", ": ")  # in a path, since values of keys are read as YAML


@dataclass(frozen=True)
class Step:
    """A job that runs once, in a folder of the step's name."""

    name: str
    job: str  # module name
    arguments: tuple[str, ...]  # without run.folder and run.name, or a preparation's output
    model: str = ""  # the step whose checkpoint becomes model.path; empty: `arguments` set it
    data: str = ""  # the step whose successes become data.path; empty: `arguments` set it

    @property
    def prepares(self) -> bool:
        return self.job == "jobs.prepare"

    @property
    def resumes(self) -> bool:
        """Whether the job may be started again in the folder that an interrupted one left."""
        return self.prepares or self.job == "jobs.evaluate" or "resume=auto" in self.arguments


def is_done(step: Step, folder: Path) -> bool:
    """Whether the step has completed: its summary.json says so, or the prepare.json of its samples has all counts."""
    try:
        if step.prepares:
            return "quarantined" in json.loads((folder / step.name / "prepare.json").read_text())
        return json.loads((folder / step.name / "summary.json").read_text())["status"] == "completed"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_steps(steps: Sequence[Step], folder: Path) -> None:
    """Check that the folder's steps were made with the same arguments, from the models and data that are there now.

    What their presets and input files hold is not compared.

    Raises:
        ConfigError: a step has other arguments, or is done while one that it needs is not; or the value of a key, which
            is read as YAML, means something else.
    """
    for argument in (f"folder={folder}", *(argument for step in steps for argument in step.arguments)):
        if any(part in f"{argument} " for part in UNSUITABLE):
            raise ConfigError(f"{argument}: choose a path without {', '.join(map(repr, UNSUITABLE))}")
    done = {step.name: is_done(step, folder) for step in steps}
    found = []
    for step in steps:
        there = folder / step.name
        before, now = recorded_arguments(step.name, folder), arguments_of(step)
        if there.exists() and before != now:
            changed = [f"now {line}" for line in now if line not in before]
            changed += [f"no longer {line}" for line in before if line not in now]
            found.append(f"  {there}: {', '.join(changed) or 'another order'}")
        elif missing := [need for need in (step.model, step.data) if done[step.name] and not done.get(need, True)]:
            found.append(f"  {there}: was made from another {missing[0]}")
    if found:
        raise ConfigError("\n".join(["remove these folders to repeat their steps, or choose another folder:", *found]))


def list_steps(steps: Sequence[Step], folder: Path) -> int:
    """Print each step's command, and whether it is done; return the exit status."""
    for step in steps:
        done = "done" if is_done(step, folder) else "    "
        print(f"{done}  {step.name:<36} python -m {step.job} {' '.join(step.arguments)}")
    return 0


def arguments_of(step: Step) -> list[str]:
    needs = [f"{name} of {of}" for name, of in (("model", step.model), ("data", step.data)) if of]
    return [f"python -m {step.job}", *step.arguments, *needs]


def recorded_arguments(name: str, folder: Path) -> list[str]:
    """The arguments with which a step last began; empty if it has not begun."""
    with contextlib.suppress(FileNotFoundError):
        return arguments_file(name, folder).read_text(encoding="utf-8").splitlines()
    return []


def record_arguments(step: Step, folder: Path) -> None:
    if recorded_arguments(step.name, folder) != arguments_of(step):
        write_text(arguments_file(step.name, folder), "\n".join(arguments_of(step)) + "\n")


def arguments_file(name: str, folder: Path) -> Path:
    return folder / f"{name}.arguments"


def checkpoint_of(name: str, folder: Path) -> str:
    """The model folder of a finished training step.

    Raises:
        ConfigError: the step left no checkpoint.
    """
    try:
        return str(Path(json.loads((folder / name / "summary.json").read_text())["checkpoint"]) / "hf")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{name} left no checkpoint: {error}") from None


def run_steps(steps: list[Step], folder: Path, at_once: int, progress: JobProgress) -> int:
    """Run steps to their ends, each after those that it needs; return 0, or the exit status of one that failed.

    Args:
        steps: the steps; what a step needs comes before it or is done.
        folder: the folder with the steps' run folders and logs.
        at_once: how many steps may run at the same time. Their output is shown only if this is 1.
        progress: shows the output.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the running steps have ended.
    """
    left = list(steps)
    running: dict[Future[tuple[int, float]], Step] = {}
    status, show = 0, progress.line if at_once == 1 else None
    with Children() as children, ThreadPoolExecutor(at_once) as pool:
        while True:
            unfinished = {step.name for step in (*left, *running.values())}
            ready = [step for step in left if not unfinished & {step.model, step.data}]
            for step in ready[: at_once - len(running)] if status == 0 and not children.asked else []:
                left.remove(step)
                progress.say(f"step {steps.index(step) + 1} of {len(steps)}: {step.name}")
                running[pool.submit(run_step, step, folder, children, show)] = step
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                ended, seconds = future.result()
                if ended == 0:
                    progress.say(f"{step.name} took {duration(seconds)}")
                else:
                    status = ended
                    progress.say(f"{step.name} ended with status {ended}; its log is {folder / step.name}.log")
    if children.asked:
        raise KeyboardInterrupt
    return status


def run_step(step: Step, folder: Path, children: "Children", show: Callable[[str], None] | None) -> tuple[int, float]:
    """Run a step to its end, with output to its log and to `show`; return its exit status and duration in seconds."""
    inputs = [f"model.path={checkpoint_of(step.model, folder)}"] if step.model else []
    inputs += [f"data.path={folder / step.data / 'successes.jsonl'}"] if step.data else []
    command = [sys.executable, "-m", step.job, *step.arguments, *inputs]
    place = folder / step.name
    command += [f"output={place}"] if step.prepares else [f"run.folder={folder}", f"run.name={step.name}"]
    begin = time.monotonic()
    record_arguments(step, folder)
    with (folder / f"{step.name}.log").open("a", encoding="utf-8") as log:
        if not step.resumes:
            try:
                clear(place, children)
            except ConfigError as error:
                print(error, file=log, flush=True)
                return 2, time.monotonic() - begin
        process = children.start(command)
        for line in cast(IO[str], process.stdout):
            print(line, end="", file=log, flush=True)
            if show:
                show(line)
        return process.wait(), time.monotonic() - begin


def clear(place: Path, signals: StopSignals) -> None:
    """Remove the files of an interrupted training run before it starts over.

    Raises:
        ConfigError: the run is still working in its folder.
    """
    if place.is_dir():
        with RunFolder(place, signals) as run:
            run.call(_empty, place)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LEASE:  # released last
            path.unlink()


class Children(StopSignals):
    """Child processes that also receive SIGTERM. Ctrl-C reaches them without help."""

    def __init__(self) -> None:
        super().__init__()
        self._processes: list[subprocess.Popen] = []

    def start(self, command: list[str]) -> subprocess.Popen:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._processes.append(process)
        if self.asked:  # the signal came during the start
            process.terminate()
        return process

    def _stop(self, number: int, frame: object) -> None:
        self.asked = True
        if number == signal.SIGTERM:
            for process in self._processes:
                process.terminate()
