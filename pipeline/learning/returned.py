"""What an objective returned, checked: of a few tokens before anything starts, then of every micro-batch."""

import re
from collections.abc import Callable

import torch

from pipeline.learning.token_metrics import TokenMetric
from pipeline.sections import ObjectiveSection

METRIC_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PARTS = ("none", "of", "__add__", "value")  # of a kind of metric


def check_returned(
    named: str, returned: object, logprobs: torch.Tensor, is_taken: Callable[[str], bool]
) -> tuple[torch.Tensor, dict[str, TokenMetric]]:
    """What an objective returned, if it can be trained and shown.

    Args:
        named: the objective.
        returned: by it.
        logprobs: that it was given; the losses need a gradient if these have one.
        is_taken: whether the row of a step has this name already.

    Raises:
        ValueError: it returned no losses and metrics, there is not a loss for each response token, the losses have no
            gradient, or a metric cannot be shown.
    """
    where = f"objective.loss={named}"
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ValueError(f"{where} must return TokenLosses(losses, metrics), not {type(returned).__name__}")
    losses, metrics = returned
    if not isinstance(losses, torch.Tensor) or losses.shape != logprobs.shape:
        raise ValueError(f"{where} must return a loss for each token, {tuple(logprobs.shape)}, not {_shape(losses)}")
    if logprobs.requires_grad and not losses.requires_grad:
        raise ValueError(f"{where} returned losses without a gradient: they do not depend on logprobs")
    if not isinstance(metrics, dict):
        raise ValueError(f"{where} must return a dict of metrics by name, not {type(metrics).__name__}")
    for name, metric in metrics.items():
        if fault := _fault(name, metric, logprobs.shape, is_taken):
            raise ValueError(f"{where} has a metric {name!r}, {fault}")
    return losses, metrics


def _fault(name: object, metric: object, shape: torch.Size, is_taken: Callable[[str], bool]) -> str:
    """What is wrong with a metric; empty if nothing is."""
    if not isinstance(name, str) or not METRIC_NAME.fullmatch(name):
        return "whose name must be a letter or _, then letters, digits and _"
    if is_taken(name):
        return "which is one of the learner's or the step's own; rename it"
    if not isinstance(metric, TokenMetric):
        return f"which must be a TokenMetric(kind, values), not {type(metric).__name__}"
    if not isinstance(metric.kind, type) or not all(hasattr(metric.kind, part) for part in PARTS):
        return f"whose kind must be a class like Mean (pipeline/learning/token_metrics.py), not {metric.kind!r}"
    if not isinstance(metric.values, torch.Tensor) or metric.values.shape != shape:
        return f"which must have a value for each token, {tuple(shape)}, not {_shape(metric.values)}"
    return "whose values have a gradient; detach them" if metric.values.requires_grad else ""


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def try_loss(loss: Callable, objective: ObjectiveSection, is_taken: Callable[[str], bool]) -> None:
    """Call an objective on a few tokens, as in the first update of a step, and check what it returns.

    Raises:
        Exception: what it raised, or that of `check_returned`.
    """
    logprobs = torch.tensor([-0.5, -1.0, -2.0, -0.1]).requires_grad_()
    entropy = torch.tensor([0.5, 1.0, 0.2, 0.1])
    returned = loss(
        logprobs,
        entropy.requires_grad_() if objective.entropy_coefficient else entropy,
        torch.tensor([1.0, 1.0, -1.0, -1.0]),
        torch.tensor([1.0, 1.0, 0.0, 0.0]),
        behaviour=torch.tensor([-0.6, -1.0, -1.8, -0.1]),
        proximal=None,
        reference=torch.tensor([-0.4, -1.1, -2.0, -0.2]) if objective.kl_coefficient else None,
        objective=objective,
    )
    _, metrics = check_returned(objective.loss, returned, logprobs, is_taken)
    for name, metric in metrics.items():
        try:
            _ = (metric.kind.none() + metric.kind.of(metric.values)).value
        except Exception as error:
            raise ValueError(f"the metric {name!r} cannot be summed up: {type(error).__name__}: {error}") from error
