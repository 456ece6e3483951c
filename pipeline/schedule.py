"""The learning rate of every optimizer step, and the table of a run's steps, updates and learning rates."""

import math
from dataclasses import dataclass

from pipeline.config import Config

SCHEDULES = ("constant", "cosine")


def learning_rate_factor(update: int, schedule: str, warmup: int, total: int) -> float:
    """What the learning rate is multiplied with in the optimizer step number `update`, from 0.

    A line up to 1 over `warmup` optimizer steps, the first of which is not at 0; then 1 ("constant"), or a half cosine
    from 1 that would reach 0 at the optimizer step after the last, number `total` ("cosine").
    """
    if update < warmup:
        return (update + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (update - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def learning_rate(config: Config, update: int) -> float:
    """The learning rate of the run's optimizer step number `update`, from 0."""
    le, t = config.learner, config.train
    total = t.steps * t.updates_per_step
    return le.learning_rate * learning_rate_factor(update, le.schedule, le.warmup_steps, total)


@dataclass(frozen=True)
class ScheduledStep:
    """A step as metrics.jsonl will show it, if no update is skipped."""

    step: int  # from 1
    updates_total: int  # optimizer steps done at its end
    learning_rate: float  # of its last optimizer step


def schedule_table(config: Config) -> list[ScheduledStep]:
    """One row for each step of the run."""
    t = config.train
    ends = [step * t.updates_per_step for step in range(1, t.steps + 1)]
    return [ScheduledStep(step, end, learning_rate(config, end - 1)) for step, end in enumerate(ends, 1)]
