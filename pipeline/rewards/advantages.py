"""Advantages of a group's conversations: Multi-Conv DAPO's (arXiv 2507.02259, section 2.3) and its alternatives.

Every token of a response gets the advantage of its conversation. Most estimators give all conversations of an episode
the episode's advantage. An estimator is a function of `GroupRewards`, from this file or a user's own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.named_code import load_function
from pipeline.rollout.episodes import EpisodeGroup

# Added to the standard deviation: if all rewards are equal, the advantages are 0, not NaN.
SMALLEST_STD = 1e-6
# GRU-Mem's weights of the episode's advantage and the turn's.
TRAJECTORY_WEIGHT, TURN_WEIGHT = 0.9, 0.1


@dataclass(frozen=True)
class GroupRewards:
    """The input of an estimator: the G episodes of one problem and their C conversations.

    rewards               float64 [G]  reward of each episode, with its over-long penalty
    conversation_rewards  float64 [C]  reward of each conversation; None if the scorer gives none
    episodes              int32 [C]    episode (0 … G-1) of each conversation
    turns                 int64 [C]    place of each conversation in its episode, from 0, in order of beginning
    response_lengths      int64 [C]    tokens of each response
    roles                 C names      role of each conversation, chosen by the agent
    """

    rewards: np.ndarray
    conversation_rewards: np.ndarray | None
    episodes: np.ndarray
    turns: np.ndarray
    response_lengths: np.ndarray
    roles: tuple[str, ...]

    def of_episodes(self, values: np.ndarray) -> np.ndarray:
        """Spread a value per episode [G] to all conversations of the episode [C]."""
        return values[self.episodes]

    def at(self, turn: int) -> np.ndarray:
        """Indices of the conversations at this turn, one for each episode still running, int64 [n]."""
        return np.flatnonzero(self.turns == turn)

    def running(self, turn: int) -> np.ndarray:
        """Indices of the episodes still running at a turn, that is, with a conversation at this turn, int32 [n]."""
        return self.episodes[self.at(turn)]


def group_rewards(
    group: EpisodeGroup, rewards: np.ndarray, conversation_rewards: np.ndarray | None = None
) -> GroupRewards:
    """Make the input of an estimator from a group and its rewards.

    Args:
        group: the episodes.
        rewards: the reward of each episode, float [G].
        conversation_rewards: the reward of each conversation, float [C]; None if the scorer gives none.
    """
    of_conversations = None if conversation_rewards is None else np.asarray(conversation_rewards, np.float64)
    return GroupRewards(
        rewards=np.asarray(rewards, dtype=np.float64),
        conversation_rewards=of_conversations,
        episodes=group.episodes,
        turns=group.turns,
        response_lengths=np.diff(group.response_offsets),
        roles=group.roles,
    )


Estimator = Callable[[GroupRewards], np.ndarray]


def less_mean(group: GroupRewards) -> np.ndarray:
    """A_i = R_i - mean_j R_j (Dr. GRPO, arXiv 2503.20783; MemAgent's)."""
    return group.of_episodes(group.rewards - group.rewards.mean())


def standardized(group: GroupRewards) -> np.ndarray:
    """A_i = (R_i - mean_j R_j) / std_j R_j, with the sample standard deviation (GRPO, arXiv 2402.03300)."""
    rewards = group.rewards
    return group.of_episodes((rewards - rewards.mean()) / (rewards.std(ddof=1) + SMALLEST_STD))


def less_others(group: GroupRewards) -> np.ndarray:
    """A_i = R_i - mean_{j≠i} R_j (leave-one-out, RLOO, arXiv 2402.14740); less_mean times G / (G - 1)."""
    rewards = group.rewards
    return group.of_episodes(rewards - (rewards.sum() - rewards) / (len(rewards) - 1))


def rewards_alone(group: GroupRewards) -> np.ndarray:
    """A_i = R_i, without a baseline. With rewards of 0 and 1: fine-tuning on the model's own successful episodes
    (rejection sampling; expert iteration, as in STaR, arXiv 2203.14465), sampled again at every step."""
    return group.of_episodes(group.rewards)


def nothing(group: GroupRewards) -> np.ndarray:
    """A_i = 0: a control that shows the effect of the entropy or KL term alone."""
    return np.zeros(len(group.episodes))


def episode_and_turn(group: GroupRewards) -> np.ndarray:
    """A_it = 0.9 (R_i - mean_j R_j) + 0.1 (r_it - mean_j r_jt), j over the episodes still running at turn t (GRU-Mem,
    arXiv 2602.10560).

    r_it is the reward of conversation t of episode i. A conversation is compared only with those of its own role, so
    that one episode's answer does not enter the baseline of the others' memory turns.

    Raises:
        ValueError: the scorer does not reward conversations.
    """
    if group.conversation_rewards is None:
        raise ValueError("it needs a reward for each conversation, and the task's scorer gives none")
    of_turns, roles = np.zeros(len(group.turns)), np.array(group.roles)
    for turn in np.unique(group.turns):
        running = group.at(turn)
        for role in np.unique(roles[running]):
            alike = running[roles[running] == role]
            of_turns[alike] = group.conversation_rewards[alike] - group.conversation_rewards[alike].mean()
    return TRAJECTORY_WEIGHT * less_mean(group) + TURN_WEIGHT * of_turns


ADVANTAGES: dict[str, Estimator] = {
    "mean": less_mean,
    "std": standardized,
    "leave_one_out": less_others,
    "reward": rewards_alone,
    "gru_mem": episode_and_turn,
    "none": nothing,
}


class BadAdvantage(ValueError):
    """An estimator raised an error, or did not return a finite number for each conversation or episode."""


def estimator_for(named: str) -> Estimator:
    """Return the estimator with this name: one of `ADVANTAGES`, or module:function for your own.

    Raises:
        ConfigError: there is no such estimator.
    """
    return load_function("objective.advantage", named, ADVANTAGES)


def group_advantages(group: GroupRewards, named: str) -> np.ndarray:
    """The advantage of each conversation of the G ≥ 2 episodes of one problem, float32 [C].

    Args:
        group: the rewards of all G episodes; a group with a failed episode is run again as a whole.
        named: the estimator's name. It may return an array [C], or [G] with a value for all conversations of each
            episode. If C = G, the array is read as [C].

    Raises:
        BadAdvantage: the estimator raised an error, or returned another shape or values not finite in float32.
        ConfigError: there is no such estimator.
    """
    estimator = estimator_for(named)
    try:
        values = np.asarray(estimator(group))
    except Exception as error:
        raise BadAdvantage(f"objective.advantage={named}: {type(error).__name__}: {error}") from error
    conversations, episodes = len(group.episodes), len(group.rewards)
    if values.dtype.kind not in "biuf":
        raise BadAdvantage(f"objective.advantage={named} returned an array of {values.dtype}, not of numbers")
    if values.shape not in ((conversations,), (episodes,)):
        raise BadAdvantage(
            f"objective.advantage={named} returned an array of shape {values.shape} for {conversations} conversations "
            f"of {episodes} episodes; it must be ({conversations},) or ({episodes},)"
        )
    if values.shape != (conversations,):
        values = group.of_episodes(values)
    with np.errstate(over="ignore"):
        advantages = values.astype(np.float64).astype(np.float32)
    if not np.isfinite(advantages).all():
        first = int(np.flatnonzero(~np.isfinite(advantages))[0])
        raise BadAdvantage(
            f"objective.advantage={named} returned {values[first]} for conversation {group.turns[first]} of episode "
            f"{group.episodes[first]}, not a finite number in float32"
        )
    return advantages
