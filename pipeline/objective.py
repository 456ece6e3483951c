"""The loss of Multi-Conv DAPO (arXiv 2507.02259, section 2.3; DAPO is arXiv 2503.14476).

    J = 1/N · Σ over response tokens of  min(ρ·A, clip(ρ, 1-ε_low, 1+ε_high)·A)

with ρ = π(token)/π_behaviour(token), A the advantage of the token's episode, and N the number of response tokens
of all conversations of all episodes in the whole global batch, however it is split. Where A < 0 the objective is
bounded below by c·A (dual clip, arXiv 1912.09729), so that one far-off token cannot rule the gradient.
"""

import torch


def token_losses(
    logprobs: torch.Tensor,
    behaviour: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each response token, and whether clipping took its gradient away.

    Args:
        logprobs: log-probs under the policy that is trained, float [R], with gradient.
        behaviour: log-probs under the policy that sampled, float [R].
        advantages: float [R].
        clip_low, clip_high, dual_clip: ε_low, ε_high and c above.

    Returns:
        losses, float [R], to be summed and divided by N; clipped, bool [R].
    """
    ratio = torch.exp(logprobs - behaviour)
    free = ratio * advantages
    bounded = torch.clamp(ratio, 1 - clip_low, 1 + clip_high) * advantages
    objective = torch.minimum(free, bounded)
    floor = torch.where(advantages < 0, dual_clip * advantages, torch.full_like(advantages, -torch.inf))
    clipped = (bounded < free) | (objective < floor)
    return -torch.maximum(objective, floor), clipped
