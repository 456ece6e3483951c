"""Faults inside the processes of a run. Python imports this file at its start when it lies on PYTHONPATH; it does
nothing unless CHAOS_FOLDER is set. It also makes these processes start sooner.

A fault strikes when a file of its name with the ending .go is in that folder, at a call of its method: the next one,
or if the file holds a number n, the one after n more in that process. It strikes once; then the file ends in .done. So
it strikes where the run really is, and not when a line was seen that says so.
"""

import asyncio
import functools
import gc
import importlib.abc
import importlib.machinery
import inspect
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

# Name: module, class, method, rank that it strikes (None: any), what it does.
FAULTS = {
    "engine": ("actors.generation.vllm_engine", "VllmEngine", "generate", None, "kill engine"),
    "deadly problem": ("actors.generation.generator", "_Run", "episode", None, "deadly problem"),
    "hold": ("actors.generation.vllm_engine", "VllmEngine", "generate", None, "hold"),
    "coordinator": ("actors.groups", "Groups", "step_done", None, "kill"),
    "coordinator stands still": ("actors.groups", "Groups", "step_done", None, "stop"),
    "forward": ("actors.learning.zero_engine", "ZeroEngine", "forward", 1, "kill"),
    "optimizer": ("actors.learning.zero_engine", "ZeroEngine", "step", 1, "kill"),
    "publish": ("actors.learning.rank", "LearnerRank", "copy_weights", 0, "kill"),
    "send": ("actors.learning.rank", "LearnerRank", "send_weights", 1, "kill"),
    "copy": ("actors.learning.zero_engine", "ZeroEngine", "copy_state", 1, "kill"),
    "write": ("actors.learning.rank", "LearnerRank", "write_checkpoint", 1, "kill"),
    "full": ("actors.learning.zero_engine", "ZeroEngine", "write_model", 0, "disk full"),
    "nan": ("actors.learning.zero_engine", "ZeroEngine", "backward", 1, "nan"),
}


class Fault:
    """One of the faults in this process."""

    calls: Counter[str] = Counter()  # since the file is there

    def __init__(self, name: str, rank: int | None, what: str):
        self.name, self.rank, self.what = name, rank, what
        self.go = Path(os.environ["CHAOS_FOLDER"]) / f"{name}.go"

    def is_due(self, owner) -> bool:
        """Whether it strikes at this call. Then it is done."""
        if self.rank not in (None, getattr(owner, "rank", None)):
            return False
        try:
            wanted = int(self.go.read_text() or 0)
            Fault.calls[self.name] += 1
            if Fault.calls[self.name] <= wanted:
                return False
            self.go.rename(self.go.with_suffix(".done"))
        except FileNotFoundError:  # it is not wanted, or another process was first
            Fault.calls[self.name] = 0
            return False
        return True

    def is_deadly(self, problem: str) -> bool:
        """Whether this is the problem that kills whoever runs it: the first one that is run since the file is there."""
        try:
            deadly = self.go.read_text()
        except FileNotFoundError:
            return False
        if deadly == "0":
            partial = self.go.with_suffix(f".{os.getpid()}")
            partial.write_text(problem)
            partial.rename(self.go)
        return deadly in ("0", problem)

    def strike(self) -> None:
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "stop":
            # Sent to the process, it may be taken by another thread, and this one goes on until then.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        if self.what == "disk full":
            raise OSError(28, "No space left on device")
        if self.what == "kill engine":
            engine_of_this_process().kill()

    def around(self, method):
        """The method with this fault in it."""

        @functools.wraps(method)
        def faulty(owner, *arguments, **named):
            if self.is_due(owner):
                self.strike()
                if self.what == "nan":
                    loss, *arguments = arguments
                    arguments = [loss * float("nan"), *arguments]
            return method(owner, *arguments, **named)

        @functools.wraps(method)
        async def faulty_coroutine(owner, *arguments, **named):
            if self.what == "deadly problem":
                if self.is_deadly(owner._group_id.rpartition("#")[0]):
                    os.kill(os.getpid(), signal.SIGKILL)
            elif self.is_due(owner):
                self.strike()
            while self.what == "hold" and self.go.with_suffix(".done").exists():
                await asyncio.sleep(0.1)
            return await method(owner, *arguments, **named)

        return faulty_coroutine if inspect.iscoroutinefunction(method) else faulty


def engine_of_this_process():
    import psutil

    (engine,) = [p for p in psutil.Process().children() if p.cmdline()[0].startswith("VLLM::EngineCore")]
    return engine


class Loader(importlib.abc.Loader):
    """Loads a module as ever, then puts the faults in."""

    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        for name, (where, owner, method, rank, what) in FAULTS.items():
            if where == module.__name__:
                owner = getattr(module, owner)
                setattr(owner, method, Fault(name, rank, what).around(getattr(owner, method)))


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in {where for where, *_ in FAULTS.values()}:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec and spec.loader:
            spec.loader = Loader(spec.loader)
        return spec


if "CHAOS_FOLDER" in os.environ:
    # Imports are most of what a short job computes. With Python's threshold of 700, a tenth of their time is garbage
    # collection that finds nothing.
    gc.set_threshold(50_000)
    sys.meta_path.insert(0, Finder())
