"""Leases of run folders that another process takes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from pipeline import lease as module
from pipeline.lease import LEASE
from tests.support.faults import ROOT

STALE_S = 0.6


def from_elsewhere(folder: Path, **changes) -> None:
    """Let the lease in a folder be of a process on another machine, which cannot be looked at."""
    there = module._look(folder / LEASE)
    holder = replace(there.holder, host="elsewhere", machine="another", pid=4711)
    (folder / LEASE).write_bytes(replace(there, holder=holder, **changes).bytes())


def taking_process(folder: Path) -> None:
    """A process takes the lease, and is gone."""
    code = f"from pathlib import Path; from pipeline.lease import take_lease; take_lease(Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
