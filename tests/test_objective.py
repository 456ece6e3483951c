"""The loss against numbers worked by hand and a naive loop; the advantages likewise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.advantages import group_advantages
from pipeline.objective import token_losses

CLIP = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}


def losses(ratio: float, advantage: float) -> tuple[float, bool]:
    loss, clipped = token_losses(torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([advantage]), **CLIP)
    return loss.item(), clipped.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 0.5, -0.5, False),  # on-policy
        (1.2, 0.5, -0.6, False),  # within the upper clip
        (1.5, 0.5, -0.64, True),  # a good token is not pushed beyond 1 + 0.28
        (0.5, 0.5, -0.25, False),  # a good token that became unlikely is pulled back in full
        (0.5, -0.5, 0.4, True),  # a bad token is not pushed below 1 - 0.2
        (1.5, -0.5, 0.75, False),  # a bad token that became likely is pushed down in full
        (9.0, -0.5, 1.5, True),  # … but no further than the dual clip's 3
    ],
)
def test_a_token_by_hand(ratio, advantage, loss, clipped):
    assert losses(ratio, advantage) == (pytest.approx(loss, rel=1e-5), clipped)


@given(st.floats(0.05, 20), st.floats(-2, 2))
def test_the_loss_is_that_of_a_naive_calculation(ratio, advantage):
    inside = min(max(ratio, 1 - CLIP["clip_low"]), 1 + CLIP["clip_high"])
    objective = min(ratio * advantage, inside * advantage)
    if advantage < 0:
        objective = max(objective, CLIP["dual_clip"] * advantage)
    assert losses(ratio, advantage)[0] == pytest.approx(-objective, rel=1e-4, abs=1e-6)


def test_a_clipped_token_has_no_gradient_and_the_others_that_of_the_policy_gradient():
    ratios, advantages = [1.0, 1.5, 9.0, 1.1], torch.tensor([0.5, 0.5, -0.5, 0.0])
    logprobs = torch.log(torch.tensor(ratios)).requires_grad_()
    loss, clipped = token_losses(logprobs, torch.zeros(4), advantages, **CLIP)
    loss.sum().backward()
    assert clipped.tolist() == [False, True, True, False]
    assert logprobs.grad.tolist() == pytest.approx([-0.5, 0.0, 0.0, 0.0])


def test_advantages_are_rewards_less_their_mean_and_are_not_scaled():
    assert group_advantages(np.array([1.0, 0.0, 0.0, 0.0])).tolist() == [0.75, -0.25, -0.25, -0.25]


def test_a_group_of_equal_rewards_has_no_advantage():
    assert group_advantages(np.full(8, 0.1)).tolist() == [0.0] * 8
