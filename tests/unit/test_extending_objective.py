"""The example of docs/extending.md: an objective of one's own, from its loss to the row of a step."""

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.learning.objectives import loss_for
from pipeline.learning.token_metrics import Max, Mean
from pipeline.sections import ObjectiveSection
from tests.support.examples import write_examples


@pytest.fixture(autouse=True)
def examples(tmp_path, monkeypatch):
    write_examples(tmp_path, monkeypatch)


def test_the_objective_keeps_the_gradient_of_a_clipped_token_and_counts_it():
    weights = np.array([1.0, 2.0, 0.5])
    logprobs = torch.log(torch.tensor(weights)).requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64)
    losses, metrics = loss_for("my_objective:cispo")(
        logprobs,
        torch.zeros(3),
        advantages,
        torch.ones(3),
        behaviour=torch.zeros(3, dtype=torch.float64),
        proximal=None,
        reference=None,
        objective=ObjectiveSection(clip_high=0.28),
    )
    losses.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([-1.0, -1.28, 1.0])
    sums = {name: metric.kind.of(metric.values) for name, metric in metrics.items()}
    assert sums == {"clip_fraction": Mean(1.0, 3), "weight_max": Max(pytest.approx(2.0))}


@pytest.mark.parametrize(("named", "message"), [("ppo", "is none of dapo"), ("math:pi", "is no function")])
def test_a_name_that_leads_nowhere_is_refused(named, message):
    with pytest.raises(ConfigError, match=message):
        loss_for(named)
