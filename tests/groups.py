"""Makes groups of random episodes for tests."""

import numpy as np

from pipeline.episodes import Completion, Conversation, Episode, EpisodeGroup, GroupRecord, group_record, pack_group


def random_group(
    rng: np.random.Generator, name: str = "p", episodes: int = 3, version: int = 0, vocabulary: int = 100
) -> EpisodeGroup:
    """Episodes of 1 to 5 conversations, prompts of 1 to 30 tokens, responses of 1 to 12."""

    def conversation() -> Conversation:
        n = int(rng.integers(1, 13))
        tokens, logprobs = rng.integers(0, vocabulary, n).tolist(), (-rng.exponential(4.0, n)).tolist()
        return Conversation(
            "memory",
            rng.integers(0, vocabulary, int(rng.integers(1, 31))).tolist(),
            Completion(tokens, logprobs, [version] * n, "stop", version),
        )

    return pack_group(
        name, [Episode([conversation() for _ in range(int(rng.integers(1, 6)))], "") for _ in range(episodes)]
    )


def record_of(group: EpisodeGroup, group_id: str, rewards) -> GroupRecord:
    rewards = np.asarray(rewards, np.float32)
    return group_record(group_id, "qa", "generator-0", group, 1.0, rewards, rewards - rewards.mean())
