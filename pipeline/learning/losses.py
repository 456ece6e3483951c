"""The objectives by name, without importing torch for who only wants to know whether there is one."""

from collections.abc import Callable

from pipeline.errors import ConfigError
from pipeline.named_code import load_named
from pipeline.sections import ObjectiveSection

# The loss of each is constant for a group without advantages, unless the KL or the entropy term is on. Such a group is
# not computed.
LOSSES = {"dapo": "pipeline.learning.objective:token_losses"}


def loss_for(named: str) -> Callable:
    """The function of an objective, with the signature of `pipeline.learning.objective.token_losses`.

    Args:
        named: a name in `LOSSES`, or module:function for a user's own.

    Raises:
        ConfigError: there is no such objective.
    """
    try:
        loss = load_named(LOSSES.get(named, named))
    except ConfigError as error:
        raise ConfigError(
            f"objective.loss={named!r} must be one of {', '.join(LOSSES)}, or a module:function that can be loaded: "
            f"{error}"
        ) from None
    if not callable(loss):
        raise ConfigError(f"objective.loss={named} is no function")
    return loss


def check_loss(objective: ObjectiveSection, is_taken: Callable[[str], bool]) -> None:
    """Load an objective of the user's own, and call it once on a few tokens on the CPU.

    Args:
        objective: names it.
        is_taken: whether a metric cannot have this name.

    Raises:
        ConfigError: there is none of this name, or it cannot be trained.
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
