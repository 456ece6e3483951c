"""The text and summary of a run for people: one line per step, and summary.json at the end."""

from collections import Counter
from collections.abc import Sequence

from pipeline.run.config import TrainingConfig
from pipeline.run.history import RunTotals
from pipeline.run.ledger import DROPPED_STALE
from pipeline.run.validation import cell_label


def step_line(row: dict, steps: int) -> str:
    """The progress line of a step. jobs/support/progress.py reads its first two words for the progress bar."""

    def shown(name: str, form: str) -> str:
        return "-" if row[name] is None else format(row[name], form)

    kept = f"kept {row['kept_fraction']:.2f}  " if row["groups_discarded"] else ""
    mfu = f"mfu {row['learner_mfu']:.2f}  " if row["learner_mfu"] is not None else ""
    return (
        f"step {row['step']}/{steps}  reward {row['reward']:.3f}  {kept}tokens/s {row['tokens_per_second']:.0f}  "
        f"staleness {shown('staleness_mean', '.2f')} (max {shown('staleness_max', 'd')})  version {row['version']}  "
        f"clip {shown('clip_fraction', '.3f')}  entropy {shown('entropy', '.3f')}  grad {shown('grad_norm', '.3g')}  "
        f"mismatch {shown('logprob_mismatch_mean', '.1e')}  {mfu}{row['seconds']:.1f} s"
    )


def validation_line(row: dict) -> str:
    """The progress line of a validation, given its row of validation.jsonl."""
    sets = len({cell["set"] for cell in row["cells"]})
    each = "  ".join(f"{cell_label(cell, sets)}: {cell['score']:.3f}" for cell in row["cells"])
    versions = "-" if row["version_min"] is None else f"{row['version_min']}–{row['version_max']}"
    faults = f"  errors {row['errors']}" if row["errors"] else ""
    return (
        f"· validation after step {row['step']}: score {row['score']:.3f} ({each})  versions {versions}{faults}  "
        f"{row['answers']} answers in {row['seconds']:.0f} s"
    )


def run_summary(
    config: TrainingConfig,
    status: str,
    totals: RunTotals,
    *,
    steps: int = 0,
    seconds: float | None = None,
    failures: Counter[str] | None = None,
    recoveries: dict[str, int] | None = None,
    engine_version: str = "",
    weight_version: int = 0,
    rows_quarantined: int = 0,
    checkpoint: str | None = None,
    wandb_run: str = "",
    validation: Sequence[dict] = (),
    unwritten: dict[str, int] | None = None,
    error: str | None = None,
) -> dict:
    """The content of summary.json. It has the same keys however the run ended.

    Args:
        config: the run's configuration.
        status: completed, interrupted or failed.
        totals: totals over the finished steps whose rows are available.
        steps: number of finished steps.
        seconds: the run's duration.
        failures: numbers of lost groups, by cause.
        recoveries: numbers of other losses that were repaired, by kind.
        engine_version: vLLM's version.
        weight_version: the last weight version.
        rows_quarantined: how many rows of the data were quarantined.
        checkpoint: the last checkpoint; None if there is none.
        wandb_run: the wandb run's URL, or its folder if wandb is offline; empty if there is none.
        validation: the rows of validation.jsonl.
        unwritten: how many lines or files could not be written, by name in the run folder.
        error: why the run failed; None if it did not.
    """
    failures = failures or Counter()
    return {
        "status": status,
        "seconds": seconds,
        "model": config.model.path,
        "dtype": config.model.dtype,
        "engine": "vllm",
        "engine_version": engine_version,
        "zero_stage": 3,
        "learner_ranks": config.learner.ranks,
        "generators": config.generator.count,
        "scorers": config.scorer.count,
        "steps": steps,
        **totals.summary(),
        **(recoveries or {}),
        "weight_version": weight_version,
        "groups_dropped_stale": failures[DROPPED_STALE],
        "groups_failed": failures.total() - failures[DROPPED_STALE],
        "failures": dict(failures),
        "rows_quarantined": rows_quarantined,
        "checkpoint": checkpoint,
        "validation_score_first": validation[0]["score"] if validation else None,
        "validation_score_last": validation[-1]["score"] if validation else None,
        "wandb_run": wandb_run,
        "unwritten": unwritten or {},
        "error": error,
    }
