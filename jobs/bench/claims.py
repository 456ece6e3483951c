"""The claims: their names, what they say in one line, and their results, which are kept in runs/bench/."""

import ast
import importlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.files import write_text

# In the order of docs/performance.md. Each is a module of this package.
CLAIMS = (
    *("sharing", "pipeline", "peers", "asynchrony", "coordinator", "deltas", "broadcast", "loss", "length"),
    "serving",
)

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "runs" / "bench"


@dataclass(frozen=True)
class Result:
    """What a command measured."""

    command: str
    machine: str  # empty: the tables are computed, not measured
    tables: str  # Markdown


def load(claim: str) -> Any:
    """A claim's module: `Settings`, a dataclass of its keys; `run(settings) -> str`, which returns tables in Markdown;
    `measure`, if it uses `in_own_process` (jobs/bench/measuring.py); and `SIMULATED`, if it measures nothing."""
    return importlib.import_module(f"jobs.bench.{claim}")


def text_of(claim: str) -> str:
    """The docstring of a claim's module, which is not imported: some need seconds for that."""
    source = (Path(__file__).parent / f"{claim}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def summary_of(claim: str) -> str:
    """A claim in one line: the first of its docstring."""
    return text_of(claim).partition("\n")[0]


def keep(claim: str, result: Result) -> Path:
    """Add a result to those of its claim, in the place of an earlier one of the same command; return the file."""
    file, others = _file(claim), [other for other in kept(claim) if other.command != result.command]
    text = json.dumps([asdict(each) for each in [*others, result]], indent=2, ensure_ascii=False)
    write_text(file, text + "\n")
    return file


def kept(claim: str) -> list[Result]:
    """The results of a claim, one per command, in the order of their commands: that without keys comes first."""
    file = _file(claim)
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return sorted((Result(**result) for result in results), key=lambda result: result.command)


def _file(claim: str) -> Path:
    return RESULTS / f"{claim}.json"
