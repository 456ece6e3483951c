"""Over-long shaping: DAPO's soft penalty (arXiv 2503.14476, section 3.4) for the turns of a memory agent."""

import numpy as np

from pipeline.rollout.episodes import EpisodeGroup


def soft_penalty(lengths: np.ndarray, limits: np.ndarray, share: float) -> np.ndarray:
    """0 up to (1 - share) · limit, then down a line to -1 at the limit, float64 [C].

    Args:
        lengths: tokens of the responses, int [C].
        limits: the responses' generation limits, int [C]; 0 where there is none, which is never penalized.
        share: of the limit over which the penalty grows, in (0, 1].
    """
    tail = share * np.where(limits > 0, limits, 1)
    return np.where(limits > 0, np.clip((limits - tail - lengths) / tail, -1, 0), 0.0)


def overlong_penalties(group: EpisodeGroup, share: float) -> np.ndarray:
    """The mean penalty of each episode's responses, float32 [G], from -1 to 0.

    The mean, so that a long document, with its many memory turns, is not penalized more than a short one.
    """
    penalties = soft_penalty(np.diff(group.response_offsets), group.limits, share)
    count = np.bincount(group.episodes, minlength=len(group.episode_answers))
    total = np.bincount(group.episodes, weights=penalties, minlength=len(group.episode_answers))
    return (total / np.maximum(count, 1)).astype(np.float32)
