"""The objective of Multi-Conv DAPO (arXiv 2507.02259, section 2.3). docs/objective.md explains it in full.

    J = 1/N · Σ over response tokens of  w · min(ρ·A, clip(ρ, 1-ε_low, 1+ε_high)·A)  -  β·KL  +  η·v·H

A is the advantage of the token's conversation. N is the number of response tokens in the optimizer step's global batch,
over all conversations, episodes and ranks, however it is split (DAPO's token mean, arXiv 2503.14476).

There are three policies (decoupled PPO, arXiv 2110.00641; AReaL, arXiv 2505.24298):
    behaviour  sampled the token: vLLM, with weights that may be some versions old
    proximal   the learner's weights at the start of the step, the center of clipping: ρ = π / π_proximal
    π          the learner's current weights; equal to the proximal policy in the first update of a step
w = min(π_proximal / π_behaviour, cap) corrects for staleness and for the numerical difference between vLLM and the
learner (truncated importance weights, arXiv 1802.01561). If not decoupled, the behaviour policy is the proximal one:
plain PPO.

H is the policy's entropy; its weight v is 1 or the reward of the token's episode.

Where A < 0, the objective is bounded below by c·A (dual clip, arXiv 1912.09729), so that one outlier token cannot
dominate the gradient.
"""

from typing import NamedTuple

import torch

from pipeline.learning.token_metrics import Max, Mean, TokenMetric
from pipeline.sections import ObjectiveSection

LARGEST_KL = 10.0  # per token
LARGEST_LOG_RATIO = 20.0  # keeps the exponential and its gradient finite; beyond it the gradient is 0, as in verl


class TokenLosses(NamedTuple):
    """The result of an objective for the response tokens of a micro-batch.

    losses   float [R]  with gradient; the learner sums them and divides by N
    metrics  by name; aggregated by kind (pipeline/learning/token_metrics.py) into the step's row of metrics
    """

    losses: torch.Tensor
    metrics: dict[str, TokenMetric]


def k3(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The low-variance estimate of KL(π ‖ reference) on tokens drawn from π: r - log r - 1, r = reference / π.

    It is never negative (Schulman, "Approximating KL Divergence", 2020; GRPO, arXiv 2402.03300). It grows with r, so a
    token that has become very unlikely under π would dominate the gradient. The estimate is therefore clamped at
    `LARGEST_KL`, beyond which a token has no gradient, as in verl, which MemAgent's authors build on.
    """
    log_r = (reference - logprobs).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return (torch.exp(log_r) - log_r - 1).clamp(max=LARGEST_KL)


def token_losses(
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    advantages: torch.Tensor,
    rewards: torch.Tensor,
    *,
    behaviour: torch.Tensor,
    proximal: torch.Tensor | None,
    reference: torch.Tensor | None,
    objective: ObjectiveSection,
) -> TokenLosses:
    """The loss of each response token. `objective.loss` may name another function of this signature.

    Args:
        logprobs: log-probs under the policy being trained, float [R], with gradient.
        entropy: the policy's entropy in nats at each token, float [R]; with gradient if `entropy_coefficient` is not 0.
        advantages: the advantage of each token's conversation, float [R].
        rewards: the reward of each token's episode, float [R].
        behaviour: log-probs under the behaviour policy, float [R].
        proximal: log-probs under the proximal policy, float [R]; None while that is the policy being trained.
        reference: log-probs under the reference model, float [R]; None if `kl_coefficient` is 0.
        objective: the section with the coefficients.
    """
    if not objective.decoupled:
        proximal = behaviour
    elif proximal is None:
        proximal = logprobs.detach()
    importance = torch.exp(proximal - behaviour).clamp(max=objective.importance_cap)
    ratios = torch.exp((logprobs - proximal).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
    free = ratios * advantages
    bounded = torch.clamp(ratios, 1 - objective.clip_low, 1 + objective.clip_high) * advantages
    floor = torch.where(advantages < 0, objective.dual_clip * advantages, torch.full_like(advantages, -torch.inf))
    gain = torch.minimum(free, bounded)
    losses = -importance * torch.maximum(gain, floor)
    kl = torch.zeros_like(losses)
    if reference is not None:
        kl = k3(logprobs, reference)
        losses = losses + objective.kl_coefficient * kl
    if objective.entropy_coefficient:
        weight = rewards if objective.entropy_weight == "reward" else 1.0
        losses = losses - objective.entropy_coefficient * weight * entropy
    metrics = {
        "kl": TokenMetric(Mean, kl.detach()),
        "clip_fraction": TokenMetric(Mean, (bounded < free) | (gain < floor)),  # clipping removed the gradient
        "ratio_mean": TokenMetric(Mean, ratios.detach()),
        "importance_mean": TokenMetric(Mean, importance),
        "importance_max": TokenMetric(Max, importance),
        "importance_capped": TokenMetric(Mean, importance >= objective.importance_cap),
    }
    return TokenLosses(losses, metrics)
