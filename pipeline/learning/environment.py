"""The environment variables of learner ranks."""

import re
from collections.abc import Mapping

from pipeline.credentials import names_credential
from pipeline.rules import Rules
from pipeline.sections import LearnerSection

# torch reads either when it is imported.
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
# Micro-batches differ in length, so blocks of torch's allocator seldom fit the next one. Segments that grow leave no
# such holes.
GROWING_SEGMENTS = "expandable_segments:True"
NOT_YOURS = frozenset({"CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "RANK", "WORLD_SIZE"})  # set by Ray or by the rank


def environment_rules(environment: Mapping[str, str]) -> Rules:
    """The rules of `learner.environment`."""
    for name, value in environment.items():
        yield (
            re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is not None and "\0" not in value,
            f"learner.environment: {name!r} cannot be an environment variable",
        )
        yield (
            name not in NOT_YOURS and not name.startswith("RAY_"),
            f"learner.environment.{name} is set by Ray or by the rank itself; leave it out",
        )
        yield (
            not names_credential(name),
            f"learner.environment.{name} may be a credential, and config.yaml, wandb and Ray's dashboard would show "
            "it; set it on each node before `ray start`",
        )


def rank_environment(learner: LearnerSection, present: Mapping[str, str]) -> dict[str, str]:
    """The variables to set for a rank: `learner.environment`, and on GPUs the allocator's if nobody has set it.

    Args:
        learner: the learner section.
        present: the environment of the process that starts the ranks, in which a job's own variables are.
    """
    given = learner.environment
    automatic = learner.num_gpus > 0 and not any(name in given or name in present for name in ALLOCATOR)
    return {**({ALLOCATOR[0]: GROWING_SEGMENTS} if automatic else {}), **given}
