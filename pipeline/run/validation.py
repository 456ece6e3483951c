"""Validation: held-out questions, answered while a run trains. Its configuration, and the row of validation.jsonl."""

import hashlib
from collections.abc import Iterable, Sequence

from pipeline.evaluation.config import EvaluateSection, EvaluationConfig
from pipeline.evaluation.questions import Trial
from pipeline.evaluation.results import by_cell, cells, length_label, memory_counts
from pipeline.rollout.memory_counts import memory_shares
from pipeline.run.config import TrainingConfig
from pipeline.run.metrics import NOT_IN_NAMES


def validation_config(config: TrainingConfig) -> EvaluationConfig:
    """The evaluation that a run's validation repeats: the run's model, agent, scorers and generators."""
    v = config.validation
    return EvaluationConfig(
        run=config.run,
        model=config.model,
        wandb=config.wandb,
        agent=config.agent,
        generator=config.generator,
        data=v.data,
        scorer=config.scorer,
        evaluate=EvaluateSection(
            methods=[config.train.method], temperature=v.temperature, top_p=v.top_p, samples=v.samples, memories=1
        ),
    )


def digest_of(questions: Sequence[Trial], config: EvaluationConfig) -> str:
    """12 hexadecimal digits that change with the questions (set, length, id, size) and with how they are asked."""
    e = config.evaluate
    asked = [e.methods, e.temperature, e.top_p, *((*trial.key, trial.question.size) for trial in questions)]
    return hashlib.blake2b(repr(asked).encode(), digest_size=6).hexdigest()


def validation_row(step: int, version: int, questions: str, rows: list[dict], seconds: float) -> dict:
    """The row of validation.jsonl for one validation.

    step                 steps trained when it began
    version              version of the weights when it began
    questions            `digest_of` the questions
    version_min          oldest version that wrote an answer or a memory; None: nothing was written
    version_max          the newest one
    score                mean of the cells' scores: each set and length weighs equally
    cells                for each set and length: score with its 95% interval (low, high), questions, errors, cut, and
                         version_mean, over the answers' middles between their oldest and newest version
    answers, errors, cut
    memory_…             as in metrics.jsonl
    tokens_computed      prompt tokens that the engines computed, and response tokens
    seconds              from the first question to the last answer

    Args:
        step, version, questions: see above.
        rows: the answers, as rows of results.jsonl with `versions`.
        seconds: the time that the validation took.
    """
    versions = [row["versions"] for row in rows if row["versions"]]
    found = cells(rows)
    means = [_version_mean(of_cell) for of_cell in by_cell(rows).values()]
    return {
        "step": step,
        "version": version,
        "questions": questions,
        "version_min": min((oldest for oldest, _ in versions), default=None),
        "version_max": max((newest for _, newest in versions), default=None),
        "score": _mean(cell.interval.mean for cell in found),
        "cells": [
            {"set": cell.set, "length": cell.length, **cell.numbers(), "version_mean": version_mean}
            for cell, version_mean in zip(found, means, strict=True)
        ],
        "answers": len(rows),
        "errors": sum(row["error"] is not None for row in rows),
        "cut": sum(row["cut"] for row in rows),
        **memory_shares(memory_counts(rows)),
        "tokens_computed": sum(tokens_computed(row) for row in rows),
        "seconds": seconds,
    }


def tokens_computed(row: dict) -> int:
    """The tokens that engines computed for an answer: of its prompts, those not in the prefix cache; and responses."""
    return row["prompt_tokens_computed"] + row["response_tokens"]


def cell_label(cell: dict, sets: int) -> str:
    """A cell's name in figures and in wandb: its length, after its set if there are several sets."""
    length = length_label(cell["length"])
    return length if sets == 1 else f"{cell['set']} {length}"


def validation_metrics(row: dict) -> dict[str, float]:
    """The numbers of a row of validation.jsonl for wandb and Prometheus: validation_score, validation_score_<cell>, …

    In a cell's name, characters that a metric's name cannot have become _.
    """
    sets = len({cell["set"] for cell in row["cells"]})
    scores = {f"score_{cell_label(cell, sets)}": cell["score"] for cell in row["cells"]}
    others = {name: value for name, value in row.items() if name not in ("step", "questions", "cells")}
    return {
        f"validation_{NOT_IN_NAMES.sub('_', name)}": value
        for name, value in (others | scores).items()
        if value is not None
    }


def score_curves(rows: Iterable[dict]) -> dict[str, list[tuple[float, dict]]]:
    """The cells of validations by label, each with its place among the steps.

    A step makes a version. So a cell that was answered by versions that are 1.5 steps newer, on average, than the one
    with which its validation began stands 1.5 steps after the validation's own. Cells without answers are left out.
    """
    curves: dict[str, list[tuple[float, dict]]] = {}
    for row in rows:
        sets = len({cell["set"] for cell in row["cells"]})
        for cell in row["cells"]:
            if cell["version_mean"] is not None:
                place = row["step"] + cell["version_mean"] - row["version"]
                curves.setdefault(cell_label(cell, sets), []).append((place, cell))
    return curves


def _version_mean(rows: Iterable[dict]) -> float | None:
    return _mean(sum(row["versions"]) / 2 for row in rows if row["versions"])


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
