"""Check a machine before a run, in about ten minutes on one GPU: `python -m jobs.gpu_check [key=value …]`.

machine    device and memory, packages, the compiler
learner    a Qwen2.5-0.5B of random weights: a ZeRO-3 step against a plain one, resuming from a checkpoint, MFU
attention  the kernels against float32, and their times: padded, varlen, FA3, FA4, trees
engine     the same model in vLLM: weights change while requests run, log-probs against the learner's
training   20 steps of reinforcement learning of the embedded model, whose reward rises

Each part runs in a process of its own, so the others run if one crashes. A table of all checks is printed at the end.
`parts=[machine,learner,attention]` needs neither Ray nor vLLM. `device=cpu` runs the same checks without a GPU.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import IO, NoReturn, cast

from jobs.bench.measuring import ONE_THREAD, machine
from jobs.gpu_check.report import FAILED, Report, Result, counts, received, table_of
from jobs.gpu_check.settings import Settings, check
from jobs.support.driver import asks_for_help, show_help
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.files import write_text
from pipeline.learning.environment import rank_environment
from pipeline.run.config import load_training_config

END_S = 20.0  # a part that has to end gets so many seconds before it is killed
PART = "--part"  # in the process of a part


def main(arguments: list[str]) -> int:
    """Run the checks; return the exit status: 0 none failed, 1 some failed, 2 wrong configuration, 130 interrupted."""
    if asks_for_help(arguments):
        return show_help(__doc__ or "", Settings)
    if arguments[:1] == [PART]:
        return run_part(*arguments[1:])
    try:
        settings = load_config(arguments, Settings)
        check(settings)
        if settings.on_gpu:
            check_gpu()
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, interrupt)
    try:
        return run_all(settings)
    except KeyboardInterrupt:
        print("· interrupted", file=sys.stderr)
        return 130


def interrupt(number: int, frame: object) -> NoReturn:
    """End at SIGTERM as at Ctrl-C, with the part that runs."""
    raise KeyboardInterrupt


def check_gpu() -> None:
    """Raise `ConfigError` if torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise ConfigError(
            f"torch sees no GPU (torch {torch.__version__} {built}). Install the GPU packages (make setup GPU=1) on a "
            "machine whose nvidia-smi shows one; or choose device=cpu, which runs the same checks on a small model "
            "(engine and training need vLLM's packages for CPUs)"
        )


def run_all(settings: Settings) -> int:
    """Run the parts one after the other, print the table and write it; return the exit status."""
    output = Path(settings.output).resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    begin, results = time.monotonic(), list[Result]()
    for part in settings.parts:
        print(f"· {part}; its log is {log_of(part, output)}", flush=True)
        with contextlib.closing(results_of(part, settings, output)) as found_in_part:
            for result in found_in_part:
                results.append(result)
                print(f"  {result.state}: {result.check}, {result.seconds:.1f} s: {result.measured}", flush=True)
    found = counts(results)
    seconds, where = round(time.monotonic() - begin, 1), machine()
    content = {"machine": where, "settings": asdict(settings), "seconds": seconds, "results": list(map(vars, results))}
    write_text(output, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    print(f"\n{table_of(results)}\n\nMeasured on {where}.")
    summary = ", ".join(f"{number} {state}" for state, number in found.items())
    print(f"· {summary} in {seconds:.0f} s; also in {output}", flush=True)
    return 1 if found[FAILED] else 0


def log_of(part: str, output: Path) -> Path:
    return output.with_name(f"{part}.log")


def results_of(part: str, settings: Settings, output: Path) -> Generator[Result, None, None]:
    """Run a part in a process of its own and yield its results.

    If the process fails or takes too long, the last one says so. The process ends if the generator is closed.
    """
    begin, running, failed = time.monotonic(), "", False
    with (
        log_of(part, output).open("w", encoding="utf-8") as log,
        tempfile.TemporaryDirectory(dir=output.parent) as folder,
    ):
        process = subprocess.Popen(
            command_of(part, folder, settings),
            env=os.environ | environment(settings, part),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # it can be ended with all that it has started
        )
        late = threading.Event()

        def end_late() -> None:
            late.set()
            end(process)

        timer = threading.Timer(settings.limit_s, end_late)
        timer.start()
        try:
            for line in cast(IO[str], process.stdout):
                sent = received(line)
                if isinstance(sent, Result):
                    running, failed = "", sent.state == FAILED
                    yield sent
                else:
                    running, failed = sent, False
                    print(f"  {running} …", flush=True)
            status = process.wait()
        finally:
            timer.cancel()
            end(process)
    if late.is_set():
        reason = f"the part took longer than limit_s={settings.limit_s:g}"
    elif status and not failed:  # an error that a check has raised is known
        reason = f"the part's process ended with status {status}: see {log_of(part, output)}"
    else:
        return
    yield Result(part, running or "to its end", FAILED, time.monotonic() - begin, reason)


def command_of(part: str, folder: str, settings: Settings) -> list[str]:
    """The command of a part, which may keep files in the folder."""
    return [sys.executable, "-m", "jobs.gpu_check", PART, part, folder, json.dumps(asdict(settings))]


def environment(settings: Settings, part: str) -> dict[str, str]:
    """Environment variables of a part's process."""
    offline = {"HF_HUB_OFFLINE": "1"}  # the models are made here
    if settings.on_gpu and part == "learner":
        learner = load_training_config(["preset=one_gpu"]).learner
        return offline | rank_environment(learner, os.environ)
    # The learner's code computes on a GPU if it sees one.
    return offline if settings.on_gpu else {**offline, **ONE_THREAD, "CUDA_VISIBLE_DEVICES": ""}


def end(process: subprocess.Popen) -> None:
    """End a process that leads a session, and what it has started there."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + END_S
        there = reached(process, number)
        while there and time.monotonic() < deadline:
            time.sleep(0.1)
            there = reached(process, 0)
        if not there:
            return


def reached(process: subprocess.Popen, number: int) -> bool:
    """Send a signal to the session that a process leads; whether anything is left of it."""
    process.poll()  # a process that has ended is left until somebody asks
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def run_part(part: str, folder: str, settings: str) -> int:
    """Run a part in this process and write its results to standard output; return the exit status."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as lines:
        os.dup2(2, 1)  # what libraries print belongs in the log
        module = importlib.import_module(f"jobs.gpu_check.{part}")
        module.run(Settings(**json.loads(settings)), Path(folder), Report(part, lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
