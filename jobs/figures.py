"""The figures of the embedded model: `python -m jobs.figures [key=value …] [--dry-run]` (`make figures`).

Trains the model in several ways with several seeds, evaluates everything, and draws accuracy against length, the
ablation, and the transfer to other tasks, each as a PNG and a table with intervals. It takes hours on two cores;
stopped, the same command goes on where it was. `--dry-run` lists the steps. The settings are `FiguresConfig`
(pipeline/evaluation/figures.py).
"""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from jobs.progress import JobProgress
from pipeline.config import ConfigError, load_config
from pipeline.evaluation.figures import (
    FiguresConfig,
    Step,
    all_steps,
    check_figures,
    checkpoint_of,
    draw,
    figures,
    is_done,
    steps_of,
)
from pipeline.report import duration


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 completed, 1 a step failed, 2 wrong configuration, 130 interrupted."""
    dry_run = "--dry-run" in arguments
    try:
        config = load_config([a for a in arguments if a != "--dry-run"], FiguresConfig)
        check_figures(config)
        return list_steps(config) if dry_run else make_figures(config)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("· interrupted; the same command goes on", flush=True)
        return 130


def list_steps(config: FiguresConfig) -> int:
    folder = Path(config.folder).resolve()
    for step in all_steps(config):
        done = "done" if is_done(step, folder) else "    "
        print(f"{done}  {step.name:<34} python -m {step.job} {' '.join(step.arguments)}")
    return 0


def make_figures(config: FiguresConfig) -> int:
    """Run what is not done and draw the figures; return the exit status."""
    folder = Path(config.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    missing = [step for step in all_steps(config) if not is_done(step, folder)]
    for name, lines in figures(config).items():
        with JobProgress() as progress:
            for step in steps_of(lines, config):
                if is_done(step, folder):
                    continue
                begin = time.time()
                progress.say(f"step {missing.index(step) + 1} of {len(missing)}: {step.name}")
                status = run_step(step, folder, progress)
                if status != 0:
                    progress.say(f"{step.name} ended with status {status}; its log is {folder / step.name}.log")
                    return status
                progress.say(f"{step.name} took {duration(time.time() - begin)}")
        print(draw(name, lines, folder))
        print(f"· figure {folder / name}.png\n· table {folder / name}.md", flush=True)
    return 0


def run_step(step: Step, folder: Path, progress: JobProgress) -> int:
    """Run a step to its end, showing what it prints, which also goes to its log; return its exit status.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the step has ended.
    """
    if step.job != "jobs.evaluate":
        shutil.rmtree(folder / step.name, ignore_errors=True)  # a training run that was stopped begins anew
    inputs = [f"model.path={checkpoint_of(step.model, folder)}"] if step.model else []
    inputs += [f"data.path={folder / step.data / 'successes.jsonl'}"] if step.data else []
    command = [sys.executable, "-m", step.job, *step.arguments, *inputs]
    command += [f"run.folder={folder}", f"run.name={step.name}"]
    with (folder / f"{step.name}.log").open("a", encoding="utf-8") as log:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        stopped = False

        def stop(signum, frame):
            nonlocal stopped
            stopped = True
            if signum == signal.SIGTERM:
                running.terminate()  # Ctrl-C reaches it by itself

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for line in running.stdout:
                print(line, end="", file=log, flush=True)
                progress.line(line)
            status = running.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if stopped:
        raise KeyboardInterrupt
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
