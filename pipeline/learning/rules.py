"""Configuration rules of jobs with learners."""

import re
from typing import Any

from pipeline.learning.attention_choice import FLASH, VALUES
from pipeline.learning.environment import environment_rules
from pipeline.learning.schedule import SCHEDULES
from pipeline.rules import Rules, at_most, one_of, own_resources, positive


def learner_rules(c: Any) -> Rules:
    """The rules of every job with learners. `c` has the sections `model` and `learner`."""
    yield from one_of(c, "model", "attention", VALUES)
    flash = c.model.attention in FLASH
    yield (
        not flash or c.learner.num_gpus > 0,
        f"model.attention={c.model.attention} needs GPUs: set learner.num_gpus, or choose auto or padded",
    )
    yield (
        not flash or c.model.dtype != "float32",
        f"model.attention={c.model.attention} needs model.dtype=bfloat16, or choose auto or padded",
    )
    yield (
        not c.learner.liger or c.learner.num_gpus > 0,
        "learner.liger=true needs GPUs: set learner.num_gpus, or learner.liger=false",
    )
    yield from own_resources("learner", c.learner.resources)
    yield from environment_rules(c.learner.environment)
    yield from positive(
        c, "learner", "ranks", "micro_batch_tokens", "learning_rate", "muon_learning_rate", "bucket_mib", "stall_s"
    )
    yield from at_most(c, "learner", "min_ranks", "ranks")
    yield from one_of(c, "learner", "optimizer", ("adamw", "muon"))
    yield from one_of(c, "learner", "schedule", SCHEDULES)
    layers = c.learner.checkpoint_layers
    yield (
        layers in ("all", "auto") or re.fullmatch(r"[0-9]{1,6}", layers) is not None,
        f"learner.checkpoint_layers={layers} must be a number of layers, all or auto",
    )
    yield (
        0 < c.learner.decay_share <= 1,
        f"learner.decay_share={c.learner.decay_share} is a share of the run, above 0 and up to 1",
    )
    yield (
        c.learner.optimizer != "muon" or c.learner.max_grad_norm == 0,
        "learner.optimizer=muon needs learner.max_grad_norm=0: Muon sets the length of its steps, and DeepSpeed would "
        "clip it",
    )
