"""Scorers that see a whole episode and may reward each of its conversations beside the episode.

    @episode_scorer
    def score(episode: ScoredEpisode) -> EpisodeReward: ...

`scorer.modules` names them as it names the scorers of an answer alone (pipeline/rewards/scoring.py).
"""

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.problems import Problem
from pipeline.rewards.scoring import NO_MODULES, SCORERS, BadReward, finite, reward, scorer_for
from pipeline.rollout.episodes import EpisodeGroup
from pipeline.sections import ModelSection
from pipeline.text import load_tokenizer


@dataclass(frozen=True)
class ScoredConversation:
    """A conversation as a scorer sees it: the response, without the prompt."""

    role: str  # what it was for, as the agent calls it
    turn: int  # which conversation of the episode it is, from 0, in the order of their beginning
    response_tokens: int  # how many, with the end token
    finish_reason: str  # stop, or length if the limit cut it off
    decode: Callable[[], str] = field(repr=False)

    @functools.cached_property
    def text(self) -> str:
        """The response without its special tokens. It is decoded when it is first asked for."""
        return self.decode()


@dataclass(frozen=True)
class ScoredEpisode:
    """An episode as a scorer sees it, with the problem but for its document."""

    problem_id: str
    question: str
    answers: tuple[str, ...]  # of the problem
    metadata: dict  # of the problem
    conversations: tuple[ScoredConversation, ...]
    answer: str  # of the agent
    cut: bool  # the answer reached its length limit, so the episode's reward is 0 whatever the scorer gives


@dataclass(frozen=True)
class EpisodeReward:
    """What an episode scorer returns: the episode's reward, and one for each conversation in their order, or None."""

    reward: float
    conversations: Sequence[float] | None = None


def episode_scorer(function: Callable[[ScoredEpisode], EpisodeReward]) -> Callable[[ScoredEpisode], EpisodeReward]:
    """Mark a scorer of whole episodes."""
    function.scores_episodes = True  # type: ignore[attr-defined]
    return function


def scores_episodes(task: str, modules: Mapping[str, str] = NO_MODULES) -> bool:
    """Whether the scorer of a task sees whole episodes. Raises `ConfigError` if there is no such scorer."""
    return task not in SCORERS and getattr(scorer_for(task, modules), "scores_episodes", False)


def scored_episode(
    problem: Problem, conversations: Sequence[tuple[str, np.ndarray, str]], answer: str, cut: bool, model: ModelSection
) -> ScoredEpisode:
    """An episode for its scorer; it may travel to another process.

    Args:
        problem: with or without its document.
        conversations: role, tokens of the response and finish reason of each, in order.
        answer, cut: of the agent.
        model: has the tokenizer that the responses are decoded by, once a scorer asks for a text.
    """
    return ScoredEpisode(
        problem_id=problem.id,
        question=problem.question,
        answers=problem.answers,
        metadata=copy.deepcopy(problem.metadata),  # its own, which a scorer may change
        conversations=tuple(
            ScoredConversation(role, turn, len(tokens), reason, functools.partial(decoded, tokens, model))
            for turn, (role, tokens, reason) in enumerate(conversations)
        ),
        answer=answer,
        cut=cut,
    )


def scored_episodes(group: EpisodeGroup, problem: Problem, model: ModelSection) -> list[ScoredEpisode]:
    """The episodes of a group for their scorer."""
    of_episode: list[list] = [[] for _ in group.episode_answers]
    for c, episode in enumerate(group.episodes):
        of_episode[episode].append((group.roles[c], group.response(c), group.finish_reasons[c]))
    ends = zip(of_episode, group.episode_answers, group.cut_answers.tolist(), strict=True)
    return [scored_episode(problem, conversations, answer, cut, model) for conversations, answer, cut in ends]


def decoded(tokens: np.ndarray, model: ModelSection) -> str:
    """The text of a response without special tokens."""
    return load_tokenizer(model.path, model.trust_remote_code).decode(tokens, skip_special_tokens=True)


def episode_reward(task: str, episode: ScoredEpisode, modules: Mapping[str, str] = NO_MODULES) -> EpisodeReward:
    """What the scorer of a task gives an episode, be it a scorer of episodes or of answers.

    Raises:
        ConfigError: no such scorer.
        BadReward: it returned something else than an `EpisodeReward` of finite numbers, one for each conversation.
        Exception: whatever a user's own scorer raises.
    """
    if not scores_episodes(task, modules):
        return EpisodeReward(reward(task, episode.answer, episode.answers, modules))
    given = scorer_for(task, modules)(episode)
    who = f"the scorer of task {task!r}"
    if not isinstance(given, EpisodeReward):
        raise BadReward(f"{who} returned {given!r}, not an EpisodeReward")
    whole = finite(given.reward, who)
    if given.conversations is None:
        return EpisodeReward(whole)
    if not isinstance(given.conversations, Iterable):
        raise BadReward(f"{who} returned {given.conversations!r} as rewards of conversations, not one for each")
    each = list(given.conversations)
    if len(each) != len(episode.conversations):
        raise BadReward(
            f"{who} returned {len(each)} rewards for an episode of {len(episode.conversations)} conversations"
        )
    return EpisodeReward(whole, [finite(r, f"{who}, for conversation {turn},") for turn, r in enumerate(each)])
