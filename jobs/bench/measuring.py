"""Shared by the benchmarks: turns, processes of their own, medians with their spread, tables, the machine in words."""

import contextlib
import json
import os
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import psutil

# Processes of a benchmark compute in one thread. More threads than cores would measure how they wait for each other.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SHOWN = 3000  # characters of a failed process's output

Variant = TypeVar("Variant")
Result = TypeVar("Result")


def take_turns(
    variants: Sequence[Variant], rounds: int, run: Callable[[Variant], Result]
) -> dict[Variant, list[Result]]:
    """Run every variant once per round, in reverse order every second round.

    So a machine that slows down or speeds up over time favours none. A progress line on stderr precedes each turn.

    Returns:
        Each variant's results, one per round, in the order of `variants`.
    """
    results: dict[Variant, list[Result]] = {variant: [] for variant in variants}
    for number in range(rounds):
        for variant in variants if number % 2 == 0 else reversed(variants):
            print(f"· round {number + 1} of {rounds}: {variant}", file=sys.stderr, flush=True)
            results[variant].append(run(variant))
    return results


def in_own_process(claim: str, *arguments: object) -> Any:
    """Call `measure(*arguments)` of a claim's module in a new process with one thread; return what it returns.

    Args:
        claim: the claim's name.
        arguments: values that JSON can hold, as can the result.

    Raises:
        RuntimeError: the process failed; the message has the end of its output.
    """
    return json.loads(output_of(["jobs.bench", claim, "--measure", json.dumps(arguments)]).splitlines()[-1])


def output_of(module: list[str], environment: Mapping[str, str] | None = None) -> str:
    """Run `python -m <module> <arguments>` with one thread; return its standard output.

    Args:
        module: the module's name and its arguments.
        environment: further environment variables.

    Raises:
        RuntimeError: the process failed; the message has the end of its output.
    """
    return finished(started(module, environment))


def started(module: list[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `python -m <module> <arguments>` with one thread, for `finished`."""
    return subprocess.Popen(
        [sys.executable, "-m", *module],
        env=os.environ | ONE_THREAD | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """Wait for a process; return its standard output. Raises `RuntimeError` if it failed."""
    try:
        output, errors = process.communicate()
    except BaseException:
        process.terminate()  # Ctrl-C: what it has started ends with it
        process.wait()
        raise
    if process.returncode:
        said = f"{output[-SHOWN:]}{errors[-SHOWN:]}"
        command = shlex.join(cast(list[str], process.args))
        raise RuntimeError(f"{command} ended with status {process.returncode}:\n{said}")
    return output


def cpu_seconds(
    processes: Iterable[psutil.Process], kind_of: Callable[[psutil.Process], str | None]
) -> dict[str, float]:
    """The CPU seconds that processes have used so far, by their kind; those of kind None are left out."""
    used: defaultdict[str, float] = defaultdict(float)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # the process has ended
            if kind := kind_of(process):
                used[kind] += sum(process.cpu_times()[:2])  # user and system
    return used


def column(results: Mapping[Variant, Sequence[Mapping[str, float]]], key: str) -> dict[Variant, list[float]]:
    """One number of every result, by variant."""
    return {variant: [row[key] for row in rows] for variant, rows in results.items()}


def to_first(numbers: Mapping[Variant, Sequence[float]]) -> dict[Variant, list[float]]:
    """Each number's ratio to the first variant's number of the same round."""
    first = next(iter(numbers.values()))
    return {variant: [x / y for x, y in zip(of, first, strict=True)] for variant, of in numbers.items()}


def spread(numbers: Sequence[float], form: str = ".2f") -> str:
    """The median, and the lowest and highest number if they differ from it as shown: `0.57 (0.55–0.60)`.

    Args:
        numbers: at least one.
        form: the format of a number.
    """
    middle, low, high = (format(x, form) for x in (statistics.median(numbers), min(numbers), max(numbers)))
    return middle if low == middle == high else f"{middle} ({low}–{high})"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def machine() -> str:
    """The machine in words: cores that this process may use, CPU, memory, GPUs. It names no host."""
    cores = len(os.sched_getaffinity(0))
    parts = [f"{cores} core{'s' * (cores > 1)} of {cpu_name()}", f"{psutil.virtual_memory().total / 2**30:.0f} GiB"]
    return ", ".join([*parts, *gpu_names()])


def cpu_name() -> str:
    """The CPU's model; its architecture if the system does not name it."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", info.read_text() if info.exists() else "", re.MULTILINE)
    return named[1].strip() if named else platform.machine()


def gpu_names() -> list[str]:
    """The names of the GPUs that torch can use."""
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def memory_in_use() -> int:
    """Bytes in use: torch's allocation on a GPU, else this process's resident memory. On a GPU, reset the peak."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return psutil.Process().memory_info().rss


def peak_memory() -> int:
    """The peak of `memory_in_use` in bytes; on a CPU, since the process began."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
