"""What an evaluation amounts to: the line of its progress, its summary.json, its tables and its figure."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.questions import Trial
from pipeline.evaluation.results import cells
from pipeline.evaluation.tables import csv_table, markdown_table
from pipeline.rollout.memory_counts import memory_shares
from pipeline.summary import duration

MEANS_SOMETHING_S = 5.0  # before, the time that is left is not told


class Progress:
    """How far an evaluation is, and how long the rest takes.

    The tokens that are left are told from the answers that are there: from those to questions of the same set and
    length by the same method, else from all of that method. As long as a method has none, nothing is told.

    Args:
        trials: all that is to be answered.
    """

    def __init__(self, trials: Iterable[Trial]):
        self.answered = self.errors = self.total = 0
        self.score = 0.0  # of all answers together
        self._left: Counter[tuple] = Counter()  # work, by cell
        self._work: Counter[tuple] = Counter()  # of the answers that are there, by cell and by method
        self._tokens: Counter[tuple] = Counter()  # that these have read and written
        self._answered_tokens = 0  # since it begins
        for trial in trials:
            self.total += 1
            self._left[_cell(trial)] += trial.work

    def add(self, row: dict, trial: Trial) -> None:
        """Count an answer, a row of results.jsonl."""
        self.answered += 1
        self.errors += row["error"] is not None
        self.score += row["score"]
        self._left[_cell(trial)] -= trial.work
        tokens = row["prompt_tokens"] + row["response_tokens"]
        self._answered_tokens += tokens
        if tokens:
            for key in (_cell(trial), (trial.method,)):
                self._work[key] += trial.work
                self._tokens[key] += tokens

    def begins(self) -> None:
        """What was added so far was answered by an earlier run."""
        self._answered_tokens = 0

    def tokens_left(self) -> float | None:
        """Of all answers that are not there, what is under way included; None if it cannot be told."""
        total = 0.0
        for cell, work in self._left.items():
            key = cell if self._work[cell] else cell[:1]
            if work and not self._work[key]:
                return None
            total += work and work * self._tokens[key] / self._work[key]
        return total

    def line(self, tokens: int, seconds: float) -> str:
        """One line; jobs/support/progress.py reads its first two words for its bar.

        Args:
            tokens: that were read and written since it begins.
            seconds: since then.
        """
        score = f"score {self.score / self.answered:.3f}  " if self.answered else ""
        faults = f"errors {self.errors}  " if self.errors else ""
        tokens_left = self.tokens_left()
        left = ""
        if tokens and tokens_left and seconds >= MEANS_SOMETHING_S:
            under_way = tokens - self._answered_tokens
            left = f"  {duration(max(0.0, tokens_left - under_way) * seconds / tokens)} left"
        return f"question {self.answered}/{self.total}  {score}{faults}tokens/s {tokens / seconds:.0f}{left}"


def _cell(trial: Trial) -> tuple:
    return trial.method, trial.question.set, trial.question.length


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
    unwritten: dict[str, int] | None = None,
) -> dict:
    """What summary.json holds; the same keys however the evaluation ended.

    Args:
        config: of the evaluation.
        status: completed, interrupted or failed.
        rows: of results.jsonl.
        failures: how many attempts failed of what, those that were made good included.
        error: why the evaluation failed.
        seconds: that this run took; an earlier one that was taken up is not counted.
        unwritten: how many lines could not be written, by file.
    """
    return {
        "status": status,
        "seconds": seconds,
        "model": config.model.path,
        "dtype": config.model.dtype,
        "engine": "vllm",
        "engine_version": engine_version,
        "data": config.data.path or config.data.source,
        "methods": config.evaluate.methods,
        "answers": len(rows),
        "errors": sum(row["error"] is not None for row in rows),
        "cut": sum(row["cut"] for row in rows),
        "failures": dict(failures),
        "rows_quarantined": rows_quarantined,
        "unwritten": unwritten or {},
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
