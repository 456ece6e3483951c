"""The learning rate of every optimizer step."""

import math

from pipeline.sections import LearnerSection

SCHEDULES = ("constant", "cosine")


def learning_rate_factor(update: int, learner: LearnerSection, total: int) -> float:
    """What the learning rate is multiplied with in the optimizer step number `update`, from 0, of `total`.

    A line up to 1 over `warmup_steps`, the first of which is not at 0; then 1 ("constant"), or 1 and, in the last
    `decay_share` of all steps, a half cosine that would reach 0 at the optimizer step after the last ("cosine").
    """
    if update < learner.warmup_steps:
        return (update + 1) / learner.warmup_steps
    if learner.schedule == "constant":
        return 1.0
    begin = max(learner.warmup_steps, (1 - learner.decay_share) * total)
    progress = (update - begin) / max(1, total - begin)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def learning_rate(learner: LearnerSection, update: int, total: int) -> float:
    """The learning rate of the optimizer step number `update`, from 0, of a run of `total`."""
    return learner.learning_rate * learning_rate_factor(update, learner, total)
