"""Advantages of a group's episodes (Multi-Conv DAPO, arXiv 2507.02259, section 2.3)."""

import numpy as np


def group_advantages(rewards: np.ndarray) -> np.ndarray:
    """A_i = R_i - mean_j R_j, float32 [G]: no division by the standard deviation (Dr. GRPO, arXiv 2503.20783).

    The advantage of an episode holds for every response token of every one of its conversations.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    return (rewards - rewards.mean()).astype(np.float32)
