"""What an objective of one's own may do wrong: it is refused before anything starts, or spoils no gradient."""

import math

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.learning.objective import TokenLosses
from pipeline.learning.objectives import check_loss
from pipeline.learning.packing import Item, Update
from pipeline.learning.token_metrics import Max, Mean, TokenMetric
from pipeline.rollout.episodes import Completion, Conversation, Episode, pack_group
from pipeline.run.metric_names import is_taken
from pipeline.run.rules import check_config
from pipeline.sections import ObjectiveSection
from tests.unit.test_config import sound


def with_metric(name: str, metric):
    def loss(logprobs, entropy, advantages, rewards, **others):
        return TokenLosses(-advantages * logprobs, {name: metric(logprobs)})

    return loss


def good(logprobs, entropy, advantages, rewards, *, behaviour, proximal, reference, objective):
    weights = torch.exp(logprobs.detach() - behaviour)
    return TokenLosses(-weights * advantages * logprobs, {"weight": TokenMetric(Max, weights)})


def bare(logprobs, entropy, advantages, rewards, **others):
    return -advantages * logprobs


def without_gradient(logprobs, entropy, advantages, rewards, **others):
    return TokenLosses(-advantages * logprobs.detach(), {})


def without_metrics(logprobs, entropy, advantages, rewards, **others):
    return TokenLosses(-advantages * logprobs, None)


def takes_less(logprobs, advantages):
    return TokenLosses(-advantages * logprobs, {})


def of_none(logprobs):
    return TokenMetric(Mean, None)


LOSSES = {
    "bare": (bare, r"must return TokenLosses\(losses, metrics\), not Tensor"),
    "without_gradient": (without_gradient, "losses without a gradient"),
    "without_metrics": (without_metrics, "a dict of metrics by name, not NoneType"),
    "takes_less": (takes_less, "failed on a few tokens: TypeError"),
    "raw": (with_metric("x", lambda x: x.detach()), r"'x', which must be a TokenMetric\(kind, values\), not Tensor"),
    "short": (
        with_metric("x", lambda x: TokenMetric(Mean, x[:1].detach())),
        r"a value for each token, \(4,\), not \(1",
    ),
    "none": (with_metric("x", of_none), r"a value for each token, \(4,\), not NoneType"),
    "graph": (with_metric("x", lambda x: TokenMetric(Mean, x)), "'x', whose values have a gradient; detach them"),
    "kind": (with_metric("x", lambda x: TokenMetric("mean", x.detach())), "whose kind must be a class like Mean"),
    "taken": (with_metric("seconds", lambda x: TokenMetric(Mean, x.detach())), "'seconds', which is one of"),
    "turn": (with_metric("turn_reward_x", lambda x: TokenMetric(Mean, x.detach())), "'turn_reward_x', which is one of"),
    "spelling": (with_metric("a/b", lambda x: TokenMetric(Mean, x.detach())), "'a/b', whose name must be a letter"),
}


chosen = None


@pytest.mark.parametrize("name", LOSSES)
def test_a_wrong_objective_is_refused_before_anything_starts(name, monkeypatch):
    loss, message = LOSSES[name]
    monkeypatch.setattr(f"{__name__}.chosen", loss)
    with pytest.raises(ConfigError, match=message):
        check_loss(ObjectiveSection(loss=f"{__name__}:chosen"), is_taken)


@pytest.mark.parametrize("coefficients", [{}, {"kl_coefficient": 0.1, "entropy_coefficient": -0.05}])
def test_a_right_one_is_accepted(coefficients):
    check_loss(ObjectiveSection(loss=f"{__name__}:good", **coefficients), is_taken)


def test_an_objective_of_ones_own_may_need_no_advantages():
    with pytest.raises(ConfigError, match="objective.advantage=none trains nothing"):
        check_config(sound(objective={"advantage": "none"}))
    check_config(sound(objective={"advantage": "none", "loss": "my_objective:cispo"}))


class Engine:
    """Log-probs that are one weight, and its gradient."""

    device = "cpu"

    def __init__(self):
        self.weight = torch.nn.Parameter(torch.tensor(-1.0))

    def reference(self, *inputs):
        return None

    def forward(self, tokens, positions, predict_at, targets, forest):
        return self.weight.expand(len(targets)) * 1.0, torch.ones(len(targets))

    def backward(self, loss, last):
        loss.backward()

    def step(self):
        return float(self.weight.grad.abs()), 0.1


def trained(loss, monkeypatch) -> tuple[dict, float]:
    """The row of an update of two groups' conversations and a placeholder, and the gradient."""
    from actors.learning import step as module

    def episode(tokens):
        response = Completion(tokens, [-1.0] * len(tokens), [0] * len(tokens), "stop")
        return Episode([Conversation("answer", [1, 2], response)], "a")

    monkeypatch.setattr(module, "loss_for", lambda name: loss)
    engine, group = Engine(), pack_group("p", [episode([4, 5]), episode([6])])
    numbers = ({0: group}, {0: np.array([1, -3], np.float32)}, {0: np.array([1, 0], np.float32)})
    trainer = module.StepTrainer(engine, ObjectiveSection(loss="mine:loss"), *numbers, lambda: None)
    (row,) = trainer.train(0, [Update([[Item(0, 0), Item(0, 1)], []], 3)])
    return row, float(engine.weight.grad)


def normalized(logprobs, entropy, advantages, rewards, **others):
    """0 / 0 of a placeholder, whose only advantage is 0."""
    return TokenLosses(-advantages / advantages.abs().mean() * logprobs, {"seen": TokenMetric(Mean, advantages)})


def test_a_placeholder_cannot_spoil_the_gradient(monkeypatch):
    row, gradient = trained(normalized, monkeypatch)
    assert gradient == pytest.approx(-(1 + 1 - 3) / (5 / 3) / 3)
    assert row["not_finite"] == [] and math.isfinite(row["loss"])
    assert row["metrics"]["seen"] == Mean(-1.0, 3)


def changes_its_input(logprobs, entropy, advantages, rewards, *, behaviour, **others):
    behaviour -= 5
    return TokenLosses(-advantages * logprobs, {})


def test_what_the_learner_reports_is_of_the_inputs_as_they_were(monkeypatch):
    row, _ = trained(changes_its_input, monkeypatch)
    assert row["metrics"]["logprob_mismatch_max"].value == 0
