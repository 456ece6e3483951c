"""The claims: their names, what they say in one line, and their results, which outlive the run in runs/bench/."""

import ast
import importlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.files import write_text

# In the order of docs/performance.md. Each is a module of this package.
CLAIMS = ("sharing", "pipeline", "peers", "asynchrony", "coordinator", "loss", "length")

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "runs" / "bench"


@dataclass(frozen=True)
class Result:
    """What a claim's last run measured."""

    command: str
    machine: str
    tables: str  # Markdown


def load(claim: str) -> Any:
    """A claim's module: `Settings`, a dataclass of its keys; `run(settings) -> str`, which returns tables in Markdown;
    and `measure`, if it uses `in_own_process` (jobs/bench/measuring.py)."""
    return importlib.import_module(f"jobs.bench.{claim}")


def text_of(claim: str) -> str:
    """The docstring of a claim's module, which is not imported: some need seconds for that."""
    source = (Path(__file__).parent / f"{claim}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def summary_of(claim: str) -> str:
    """A claim in one line: the first of its docstring."""
    return text_of(claim).partition("\n")[0]


def keep(claim: str, result: Result) -> Path:
    """Write a claim's result, instead of that of its last run; return the file."""
    file = RESULTS / f"{claim}.json"
    write_text(file, json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n")
    return file


def kept(claim: str) -> Result | None:
    """The result of a claim's last run; None if it was not run here."""
    file = RESULTS / f"{claim}.json"
    return Result(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None
