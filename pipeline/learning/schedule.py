"""The learning-rate schedule."""

import math

from pipeline.sections import LearnerSection

SCHEDULES = ("constant", "cosine")


def learning_rate_factor(update: int, learner: LearnerSection, total: int) -> float:
    """The learning-rate multiplier at optimizer step `update` (from 0) of `total`.

    It rises linearly to 1 over `warmup_steps`, starting above 0. Then it stays at 1 ("constant"), or stays at 1 until
    the last `decay_share` of all steps and follows a half cosine that would reach 0 one step after the end ("cosine").
    """
    if update < learner.warmup_steps:
        return (update + 1) / learner.warmup_steps
    if learner.schedule == "constant":
        return 1.0
    begin = max(learner.warmup_steps, (1 - learner.decay_share) * total)
    progress = (update - begin) / max(1, total - begin)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def learning_rate(learner: LearnerSection, update: int, total: int) -> float:
    """The learning rate at optimizer step `update` (from 0) of `total`."""
    return learner.learning_rate * learning_rate_factor(update, learner, total)
