"""The figures of the embedded model: `python -m jobs.figures [key=value …] [--dry-run]` (`make figures`).

Trains the model in several ways with several seeds, evaluates all models, and draws accuracy against length, the
ablation, the transfer to other tasks, and the comparison of prompt layouts, each as a PNG and a table with intervals.
It takes hours on two cores; after an interruption, the same command resumes. `only=[layout]` makes one of them.
`at_once=4` runs four steps at the same time. `--dry-run` lists the steps.
The configuration is `FiguresConfig` (jobs/figures/recipe.py).
"""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, cast

from jobs.figures.drawing import draw
from jobs.figures.recipe import (
    FiguresConfig,
    Step,
    all_steps,
    check_figures,
    checkpoint_of,
    figures,
    is_done,
    steps_of,
)
from jobs.support.driver import asks_for_help, show_help
from jobs.support.progress import JobProgress
from jobs.support.run_folder import RunFolder
from jobs.support.stop_signals import StopSignals
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.lease import LEASE
from pipeline.summary import duration


def main(arguments: list[str]) -> int:
    """Run the job; return the exit status: 0 completed, 1 a step failed, 2 wrong configuration, 130 interrupted."""
    if asks_for_help(arguments):
        return show_help(__doc__, FiguresConfig)
    dry_run = "--dry-run" in arguments
    try:
        config = load_config([a for a in arguments if a != "--dry-run"], FiguresConfig)
        check_figures(config)
        return list_steps(config) if dry_run else make_figures(config)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("· interrupted; the same command resumes", flush=True)
        return 130


def list_steps(config: FiguresConfig) -> int:
    folder = Path(config.folder).resolve()
    for step in all_steps(config):
        done = "done" if is_done(step, folder) else "    "
        print(f"{done}  {step.name:<36} python -m {step.job} {' '.join(step.arguments)}")
    return 0


def make_figures(config: FiguresConfig) -> int:
    """Run the steps that are not done and draw the figures; return the exit status.

    Raises:
        ConfigError: another process makes them in this folder, or it cannot be written.
    """
    folder = Path(config.folder).resolve()
    with RunFolder(folder):
        if config.at_once > 1:
            print(f"· {config.at_once} steps at once; their output is in {folder}/*.log", flush=True)
        for name, lines in figures(config).items():
            missing = [step for step in steps_of(lines, config) if not is_done(step, folder)]
            with JobProgress() as progress:
                progress.say(f"figure {name}: {len(missing)} steps")
                status = run_steps(missing, folder, config.at_once, progress)
            if status != 0:
                return status
            table, drawn = draw(name, lines, folder)
            print(table)
            for path in drawn:
                print(f"· figure {path}")
            print(f"· table {folder / name}.md", flush=True)
    return 0


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
    command += [f"run.folder={folder}", f"run.name={step.name}"]
    begin = time.monotonic()
    with (folder / f"{step.name}.log").open("a", encoding="utf-8") as log:
        if step.job != "jobs.evaluate":
            try:
                clear(folder / step.name, children)
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
