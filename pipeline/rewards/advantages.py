"""Advantages of a group's episodes (Multi-Conv DAPO, arXiv 2507.02259, section 2.3, and what it is compared with).

The advantage of an episode holds for every response token of every one of its conversations.
"""

import numpy as np

# Where all rewards are equal, and the advantages 0.
SMALLEST_STD = 1e-6


def less_mean(rewards: np.ndarray) -> np.ndarray:
    """A_i = R_i - mean_j R_j (Dr. GRPO, arXiv 2503.20783; MemAgent's)."""
    return rewards - rewards.mean()


def standardized(rewards: np.ndarray) -> np.ndarray:
    """A_i = (R_i - mean_j R_j) / std_j R_j, the sample's standard deviation (GRPO, arXiv 2402.03300)."""
    return less_mean(rewards) / (rewards.std(ddof=1) + SMALLEST_STD)


def less_others(rewards: np.ndarray) -> np.ndarray:
    """A_i = R_i - mean_{j≠i} R_j (leave-one-out, RLOO, arXiv 2402.14740); less_mean times G / (G - 1)."""
    return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


def rewards_alone(rewards: np.ndarray) -> np.ndarray:
    """A_i = R_i, without a baseline. With rewards of 0 and 1: fine-tuning on the model's own successful episodes
    (rejection sampling; expert iteration, as in STaR, arXiv 2203.14465), drawn anew at every step."""
    return rewards


def nothing(rewards: np.ndarray) -> np.ndarray:
    """A_i = 0: a control, of what the entropy or KL term does by itself."""
    return np.zeros_like(rewards)


ADVANTAGES = {
    "mean": less_mean,
    "std": standardized,
    "leave_one_out": less_others,
    "reward": rewards_alone,
    "none": nothing,
}


def group_advantages(rewards: np.ndarray, kind: str) -> np.ndarray:
    """The advantages of the G ≥ 2 episodes of one problem, float32 [G].

    Args:
        rewards: float [G]; the group is complete: one whose episode failed is run again as a whole.
        kind: a key of `ADVANTAGES`.
    """
    return ADVANTAGES[kind](np.asarray(rewards, dtype=np.float64)).astype(np.float32)
