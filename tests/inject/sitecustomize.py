"""Faults inside the processes of a run, for tests/chaos.py. Python imports this file at its start when it lies on
PYTHONPATH; it does nothing unless CHAOS_FOLDER is set.

A fault strikes once: when a file of its name with the ending .go appears in that folder, at the next call of its
method.
"""

import functools
import importlib.abc
import importlib.machinery
import os
import signal
import sys
from pathlib import Path

# Name: module, class, method, rank that it strikes (None: any), what it does.
FAULTS = {
    "forward": ("actors.zero_engine", "ZeroEngine", "forward", 1, "kill"),
    "optimizer": ("actors.zero_engine", "ZeroEngine", "step", 1, "kill"),
    "publish": ("actors.learner_rank", "LearnerRank", "publish", 0, "kill"),
    "copy": ("actors.zero_engine", "ZeroEngine", "copy_state", 1, "kill"),
    "write": ("actors.learner_rank", "LearnerRank", "write_checkpoint", 1, "kill"),
    "full": ("actors.zero_engine", "ZeroEngine", "write_model", 0, "disk full"),
    "nan": ("actors.zero_engine", "ZeroEngine", "backward", 1, "nan"),
}


def wrapped(method, name: str, rank: int | None, what: str):
    go = Path(os.environ["CHAOS_FOLDER"]) / f"{name}.go"

    @functools.wraps(method)
    def faulty(self, *arguments, **named):
        if rank not in (None, self.rank) or not go.exists():
            return method(self, *arguments, **named)
        go.rename(go.with_suffix(".done"))
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "disk full":
            raise OSError(28, "No space left on device")
        loss, *rest = arguments
        return method(self, loss * float("nan"), *rest, **named)

    return faulty


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
                found = getattr(getattr(module, owner), method)
                setattr(getattr(module, owner), method, wrapped(found, name, rank, what))


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in {where for where, *_ in FAULTS.values()}:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec and spec.loader:
            spec.loader = Loader(spec.loader)
        return spec


if "CHAOS_FOLDER" in os.environ:
    sys.meta_path.insert(0, Finder())
