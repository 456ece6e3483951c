"""The objectives by name. Checking a built-in name does not import torch."""

from collections.abc import Callable

from pipeline.errors import ConfigError
from pipeline.named_code import load_named

# For a group whose advantages are 0, these losses are constant unless the KL or the entropy term is on; such a group is
# skipped.
LOSSES = {"dapo": "pipeline.learning.objective:token_losses"}


def loss_for(named: str) -> Callable:
    """Return the function of an objective; its signature is that of `pipeline.learning.objective.token_losses`.

    Args:
        named: a name in `LOSSES`, or module:function for your own.

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


def check_loss(named: str) -> None:
    """Check that there is an objective with this name; else raises `ConfigError`."""
    if named not in LOSSES:
        loss_for(named)
