"""What an evaluation amounts to: the line of its progress, its summary.json, its tables and its figure."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.results import cells
from pipeline.evaluation.tables import csv_table, markdown_table
from pipeline.memory_trace import memory_shares
from pipeline.report import duration


@dataclass
class Progress:
    """How far an evaluation is."""

    total: int  # answers
    work: int  # of all of them, as `Task.work`
    answers: int = 0
    work_done: int = 0
    errors: int = 0
    score: float = 0.0  # of all answers together

    def add(self, row: dict, work: int) -> None:
        self.answers += 1
        self.work_done += work
        self.errors += row["error"] is not None
        self.score += row["score"]

    def line(self, tokens_per_second: float, seconds_left: float | None) -> str:
        """One line; jobs/progress.py reads its first two words for its bar."""
        score = f"score {self.score / self.answers:.3f}  " if self.answers else ""
        faults = f"errors {self.errors}  " if self.errors else ""
        left = "" if seconds_left is None or self.answers == self.total else f"  {duration(seconds_left)} left"
        return f"question {self.answers}/{self.total}  {score}{faults}tokens/s {tokens_per_second:.0f}{left}"


def evaluation_summary(
    config: EvaluationConfig,
    status: str,
    rows: list[dict],
    *,
    failures: Counter[str],
    error: str | None,
    seconds: float | None = None,
    engine_version: str = "",
    rows_quarantined: int = 0,
    wandb_run: str = "",
) -> dict:
    """What summary.json holds; the same keys however the evaluation ended.

    Args:
        config: of the evaluation.
        status: completed, interrupted or failed.
        rows: of results.jsonl.
        failures: how many attempts failed of what, those that were made good included.
        error: why the evaluation failed.
        seconds: that this run took; an earlier one that was taken up is not counted.
    """
    return {
        "status": status,
        "seconds": seconds,
        "model": config.model.path,
        "engine": "vllm",
        "engine_version": engine_version,
        "data": config.data.path or config.data.source,
        "methods": config.evaluate.methods,
        "answers": len(rows),
        "errors": sum(row["error"] is not None for row in rows),
        "cut": sum(row["cut"] for row in rows),
        "failures": dict(failures),
        "rows_quarantined": rows_quarantined,
        "cells": [
            {
                "set": cell.set,
                "length": cell.length,
                "method": cell.method,
                "score": cell.interval.mean,
                "low": cell.interval.low,
                "high": cell.interval.high,
                "questions": cell.questions,
                "errors": cell.errors,
                "cut": cell.cut,
                "document_tokens": cell.document_tokens,
                **memory_shares(cell.memory),
            }
            for cell in cells(rows)
        ],
        "wandb_run": wandb_run,
        "error": error,
    }


def write_tables(rows: list[dict], folder: Path) -> None:
    """Write table.md, table.csv and accuracy.png into the run's folder."""
    from pipeline.evaluation.plots import accuracy_figure  # imported late: it brings matplotlib

    (folder / "table.md").write_text(markdown_table(rows), encoding="utf-8")
    (folder / "table.csv").write_text(csv_table(rows), encoding="utf-8")
    accuracy_figure({"": rows}, folder / "accuracy.png")
