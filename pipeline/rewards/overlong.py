"""Over-long shaping: DAPO's soft penalty (arXiv 2503.14476, section 3.4) applied to every turn of an episode."""

import numpy as np

from pipeline.rollout.episodes import EpisodeGroup


def soft_penalty(lengths: np.ndarray, limits: np.ndarray, share: float) -> np.ndarray:
    """The penalty of each response: 0 up to (1 - share) · limit, then linear down to -1 at the limit, float64 [C].

    Args:
        lengths: tokens of each response, int [C].
        limits: generation limit of each response, int [C]; 0: no limit, so no penalty.
        share: the last share of the limit, over which the penalty grows, in (0, 1].
    """
    tail = share * np.where(limits > 0, limits, 1)
    return np.where(limits > 0, np.clip((limits - tail - lengths) / tail, -1, 0), 0.0)


def overlong_penalties(group: EpisodeGroup, share: float) -> np.ndarray:
    """The mean penalty of each episode's responses, from -1 to 0, float32 [G].

    A mean, so that a long document with its many memory turns is not penalized more than a short one.
    """
    penalties = soft_penalty(np.diff(group.response_offsets), group.limits, share)
    count = np.bincount(group.episodes, minlength=len(group.episode_answers))
    total = np.bincount(group.episodes, weights=penalties, minlength=len(group.episode_answers))
    return (total / np.maximum(count, 1)).astype(np.float32)
