"""The objective against numbers worked by hand and a naive calculation."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learning.objective import k3, token_losses
from pipeline.sections import ObjectiveSection

PPO = ObjectiveSection(clip_low=0.2, clip_high=0.28, dual_clip=3.0, decoupled=False)
DECOUPLED = replace(PPO, decoupled=True, importance_cap=2.0)
ratio = st.floats(0.05, 20)


def losses(advantages, objective, *, now=1.0, proximal=None, behaviour=1.0, reference=None, entropy=0.0, reward=1.0):
    """The losses of tokens with these probabilities (of any common scale), and their gradient by the log-prob."""

    def logs(values):
        return None if values is None else torch.log(torch.as_tensor(values, dtype=torch.float64)).expand(len(a))

    a = torch.as_tensor(advantages, dtype=torch.float64).reshape(-1)
    logprobs = logs(now).clone().requires_grad_()
    tokens = token_losses(
        logprobs,
        torch.full_like(a, entropy),
        a,
        torch.full_like(a, reward),
        behaviour=logs(behaviour),
        proximal=logs(proximal),
        reference=logs(reference),
        objective=objective,
    )
    tokens.losses.sum().backward()
    return tokens, logprobs.grad.tolist()


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
@pytest.mark.parametrize("decoupled", [True, False])
def test_clipping_by_hand(ratio, advantage, loss, clipped, decoupled):
    """The same clip around the sampling policy, and around the proximal policy where that is the sampling one."""
    tokens, _ = losses(advantage, replace(PPO, decoupled=decoupled), now=ratio, proximal=1.0)
    assert tokens.losses.item() == pytest.approx(loss) and tokens.metrics["clip_fraction"].values.item() == clipped


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [-300.0, 300.0])
def test_a_ratio_beyond_all_numbers_has_a_finite_loss_and_no_gradient(log_ratio, advantage):
    """exp(300) is no float32: its gradient would be not a number, and the whole update would be skipped."""
    logprobs = torch.tensor([log_ratio - 400.0], requires_grad=True)
    sampled, a = torch.tensor([-400.0]), torch.tensor([advantage])
    tokens = token_losses(logprobs, a, a, a, behaviour=sampled, proximal=sampled, reference=None, objective=DECOUPLED)
    tokens.losses.sum().backward()
    clipped_loss = {(1, 1): -1.28, (1, -1): 0.0, (-1, 1): 3.0, (-1, -1): 0.8}  # by hand, of the advantage and the ratio
    assert tokens.losses.item() == pytest.approx(clipped_loss[advantage, math.copysign(1, log_ratio)], abs=1e-6)
    assert logprobs.grad.item() == 0 and torch.isfinite(tokens.metrics["ratio_mean"].values).all()


@pytest.mark.parametrize(
    ("now", "proximal", "behaviour", "advantage", "loss"),
    [
        (0.6, 0.5, 0.4, 1.0, -1.25 * 1.2),  # w = 0.5 / 0.4, ρ = 0.6 / 0.5
        (0.6, 0.5, 0.1, 1.0, -2.0 * 1.2),  # w = 5 is cut at the cap
        (0.9, 0.5, 0.4, 1.0, -1.25 * 1.28),  # ρ = 1.8 is clipped around the proximal policy
        (0.1, 0.5, 0.4, -1.0, 1.25 * 0.8),
        (0.5, None, 0.4, 1.0, -1.25),  # in the first update π is the proximal policy itself
    ],
)
def test_decoupled_by_hand(now, proximal, behaviour, advantage, loss):
    tokens, _ = losses(advantage, DECOUPLED, now=now, proximal=proximal, behaviour=behaviour)
    assert tokens.losses.item() == pytest.approx(loss)


@pytest.mark.parametrize(("entropy_weight", "weigh"), [("one", lambda reward: 1.0), ("reward", lambda reward: reward)])
@given(
    now=ratio,
    proximal=ratio,
    behaviour=ratio,
    reference=ratio,
    a=st.floats(-2, 2),
    entropy=st.floats(0, 5),
    reward=st.floats(0, 1),
)
def test_the_loss_is_that_of_a_naive_calculation(
    entropy_weight, weigh, now, proximal, behaviour, reference, a, entropy, reward
):
    objective = replace(DECOUPLED, kl_coefficient=0.3, entropy_coefficient=0.1, entropy_weight=entropy_weight)
    rho, w = now / proximal, min(proximal / behaviour, 2.0)
    gain = min(rho * a, min(max(rho, 0.8), 1.28) * a)
    if a < 0:
        gain = max(gain, 3.0 * a)
    r = reference / now
    expected = -w * gain + 0.3 * min(r - math.log(r) - 1, 10) - 0.1 * weigh(reward) * entropy
    policies = {"now": now, "proximal": proximal, "behaviour": behaviour, "reference": reference}
    tokens, _ = losses(a, objective, **policies, entropy=entropy, reward=reward)
    assert tokens.losses.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert tokens.metrics["importance_mean"].values.item() == pytest.approx(w)


def test_a_clipped_token_has_no_gradient_and_the_others_that_of_the_policy_gradient():
    tokens, gradient = losses([0.5, 0.5, -0.5, 0.0], PPO, now=[1.0, 1.5, 9.0, 1.1])
    assert tokens.metrics["clip_fraction"].values.tolist() == [False, True, True, False]
    assert gradient == pytest.approx([-0.5, 0.0, 0.0, 0.0])


@given(now=ratio, behaviour=ratio, a=st.floats(-2, 2))
def test_in_the_first_update_the_gradient_is_that_with_a_proximal_pass_of_its_own(now, behaviour, a):
    """The shortcut: the proximal policy is π itself, whether its log-probs are computed again or not."""
    skipped, gradient = losses(a, DECOUPLED, now=now, behaviour=behaviour)
    passed, expected = losses(a, DECOUPLED, now=now, proximal=now, behaviour=behaviour)
    assert gradient == expected and skipped.losses.item() == passed.losses.item()
    assert gradient == pytest.approx([-min(now / behaviour, 2.0) * a])


def test_the_importance_weight_has_no_gradient():
    """The gradient is that of ρ alone, times w: π appears in w only through the learner's old log-probs."""
    _, gradient = losses(1.0, DECOUPLED, now=0.55, proximal=0.5, behaviour=0.4)
    assert gradient == pytest.approx([-1.25 * 1.1])


@given(now=st.floats(0.3, 3), reference=st.floats(0.3, 3))
def test_the_kl_estimate_is_never_negative_and_pulls_towards_the_reference(now, reference):
    objective = replace(DECOUPLED, kl_coefficient=1.0)
    tokens, (gradient,) = losses(0.0, objective, now=now, reference=reference)
    assert tokens.metrics["kl"].values.item() >= 0
    assert gradient == pytest.approx(1 - reference / now)  # descending it moves log π towards the reference


@pytest.mark.parametrize("nats", [3, 25, 1000])
def test_a_token_that_the_policy_has_given_up_does_not_rule_the_gradient(nats):
    """The reference holds it likely: without a bound its loss would be e^nats."""
    logprobs = torch.tensor([-float(nats), -1.0], requires_grad=True)
    kl = k3(logprobs, torch.tensor([-0.1, -1.5]))
    kl.sum().backward()
    assert kl[0] == 10 and logprobs.grad[0] == 0 and logprobs.grad[1] == pytest.approx(1 - math.exp(-0.5))


def test_the_kl_estimate_is_the_kl_on_average():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
    assert (p * k3(p.log(), q.log())).sum().item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)
