"""An evaluation's progress line, summary.json, tables and figure."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.questions import Trial
from pipeline.evaluation.results import cells
from pipeline.evaluation.tables import csv_table, markdown_table
from pipeline.rollout.memory_counts import memory_shares
from pipeline.summary import duration

MEANS_SOMETHING_S = 5.0  # before this, the line shows no remaining time


class Progress:
    """The progress of an evaluation and an estimate of its remaining time.

    The remaining tokens are extrapolated from finished answers: those of the same set, length and method, else all of
    the same method. There is no estimate while a method has no answer.

    Args:
        trials: all trials of the evaluation.
    """

    def __init__(self, trials: Iterable[Trial]):
        self.answered = self.errors = self.total = 0
        self.score = 0.0  # sum over all answers
        self._left: Counter[tuple] = Counter()  # remaining work, by cell
        self._work: Counter[tuple] = Counter()  # work of finished answers, by cell and by method
        self._tokens: Counter[tuple] = Counter()  # tokens that they read and wrote
        self._answered_tokens = 0  # tokens of the answers that this run finished
        for trial in trials:
            self.total += 1
            self._left[_cell(trial)] += trial.work

    def add(self, row: dict, trial: Trial) -> None:
        """Count an answer, given as its row of results.jsonl."""
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
        """Mark all answers added so far as those of an earlier run."""
        self._answered_tokens = 0

    def tokens_left(self) -> float | None:
        """Estimated tokens of all unfinished answers, those in progress included; None if there is no estimate."""
        total = 0.0
        for cell, work in self._left.items():
            key = cell if self._work[cell] else cell[:1]
            if work and not self._work[key]:
                return None
            total += work and work * self._tokens[key] / self._work[key]
        return total

    def line(self, tokens: int, seconds: float) -> str:
        """The progress line. jobs/support/progress.py reads its first two words for the progress bar.

        Args:
            tokens: tokens read and written since this run began.
            seconds: time since this run began.
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
    """The content of summary.json. It has the same keys however the evaluation ended.

    Args:
        config: the evaluation's configuration.
        status: completed, interrupted or failed.
        rows: the rows of results.jsonl.
        failures: failed attempts by cause, including those that a later attempt repaired.
        error: why the evaluation failed; None if it did not.
        seconds: duration of this run; an earlier run that it resumed is not counted.
        engine_version: vLLM's version.
        rows_quarantined: how many rows of the data were quarantined.
        wandb_run: the wandb run's URL, or its folder if wandb is offline; empty if there is none.
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
                **cell.numbers(),
                "document_tokens": cell.document_tokens,
                **memory_shares(cell.memory),
            }
            for cell in cells(rows)
        ],
        "wandb_run": wandb_run,
        "error": error,
    }


def write_tables(rows: list[dict], folder: Path) -> None:
    """Write table.md, table.csv and accuracy.png to the run folder."""
    from pipeline.evaluation.plots import accuracy_figure  # imported late: it imports matplotlib

    (folder / "table.md").write_text(markdown_table(rows), encoding="utf-8")
    (folder / "table.csv").write_text(csv_table(rows), encoding="utf-8")
    accuracy_figure({"": rows}, folder / "accuracy.png")
