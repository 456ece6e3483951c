"""Makes groups of random episodes for tests."""

import numpy as np

from pipeline.rewards.advantages import group_rewards, less_mean
from pipeline.rollout.episodes import (
    Completion,
    Conversation,
    Episode,
    EpisodeGroup,
    GroupRecord,
    ScoredGroup,
    pack_group,
    scored_group,
)


def random_group(
    rng: np.random.Generator,
    name: str = "p",
    episodes: int = 3,
    version: int = 0,
    vocabulary: int = 100,
    conversations: int = 5,
    empty: bool = False,
) -> EpisodeGroup:
    """Episodes of 1 to `conversations` conversations, prompts of 1 to 30 tokens, responses of 1 to 12.

    `empty`: some responses have no token at all. A response of 12 tokens was cut by the length limit.
    """

    def conversation() -> Conversation:
        n = 0 if empty and rng.random() < 0.2 else int(rng.integers(1, 13))
        tokens, logprobs = rng.integers(0, vocabulary, n).tolist(), (-rng.exponential(4.0, n)).tolist()
        return Conversation(
            "memory",
            rng.integers(0, vocabulary, int(rng.integers(1, 31))).tolist(),
            Completion(tokens, logprobs, [version] * n, "length" if n == 12 else "stop", version, max_tokens=12),
        )

    return pack_group(
        name,
        [
            Episode([conversation() for _ in range(int(rng.integers(1, conversations + 1)))], "")
            for _ in range(episodes)
        ],
    )


def scored(group: EpisodeGroup, rewards) -> ScoredGroup:
    rewards = np.asarray(rewards, np.float32)
    none = np.zeros_like(rewards)
    advantages = less_mean(group_rewards(group, rewards)).astype(np.float32)  # also of rewards that are not finite
    return scored_group(group, rewards, none, advantages)


def record_of(group: EpisodeGroup, group_id: str, rewards) -> GroupRecord:
    return GroupRecord.of(scored(group, rewards), group_id=group_id, generator="generator-0", generation_seconds=1.0)
