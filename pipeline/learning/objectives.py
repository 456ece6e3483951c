"""The objectives by name. Checking a built-in name does not import torch."""

from collections.abc import Callable

from pipeline.errors import ConfigError
from pipeline.named_code import load_function
from pipeline.sections import ObjectiveSection

# For a conversation whose advantage is 0, these losses are constant unless the KL or the entropy term is on; such a
# conversation is not computed.
LOSSES = {"dapo": "pipeline.learning.objective:token_losses"}


def loss_for(named: str) -> Callable:
    """Return the function of an objective; its signature is that of `pipeline.learning.objective.token_losses`.

    Args:
        named: a name in `LOSSES`, or module:function for your own.

    Raises:
        ConfigError: there is no such objective.
    """
    return load_function("objective.loss", named, LOSSES)


def check_loss(objective: ObjectiveSection, is_taken: Callable[[str], bool]) -> None:
    """Load a user's own objective and call it once on a few tokens on the CPU.

    Args:
        objective: the section that names it.
        is_taken: tells whether another metric has a name.

    Raises:
        ConfigError: there is no objective with this name, or it cannot be trained.
    """
    if objective.loss in LOSSES:
        return
    loss = loss_for(objective.loss)
    from pipeline.learning.returned import try_loss  # imported late: it imports torch

    try:
        try_loss(loss, objective, is_taken)
    except Exception as error:  # a user's function may raise anything
        raise ConfigError(
            f"objective.loss={objective.loss} failed on a few tokens: {type(error).__name__}: {error}"
        ) from error
