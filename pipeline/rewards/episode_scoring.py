"""Scorers of whole episodes, which may also reward each conversation.

    @episode_scorer
    def score(episode: ScoredEpisode) -> EpisodeReward: ...

`scorer.modules` names them in the same way as scorers of answers (pipeline/rewards/scoring.py).
"""

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.problems import Problem
from pipeline.rewards.scoring import NO_MODULES, BadReward, finite, reward, scorer_for
from pipeline.rollout.episodes import EpisodeGroup
from pipeline.sections import ModelSection
from pipeline.text import load_tokenizer


@dataclass(frozen=True)
class ScoredConversation:
    """A conversation as a scorer sees it: the response, without the prompt."""

    role: str  # chosen by the agent
    turn: int  # its place in the episode, from 0, in the order in which conversations began
    response_tokens: int  # number of tokens, including the end token
    finish_reason: str  # stop, or length if the limit cut it off
    decode: Callable[[], str] = field(repr=False)

    @functools.cached_property
    def text(self) -> str:
        """The response without special tokens, decoded on first use."""
        return self.decode()


@dataclass(frozen=True)
class ScoredEpisode:
    """An episode as a scorer sees it, with its problem but without the document."""

    problem_id: str
    question: str
    answers: tuple[str, ...]  # gold answers
    metadata: dict  # the problem's metadata
    conversations: tuple[ScoredConversation, ...]
    answer: str  # the agent's answer
    cut: bool  # a length limit cut the answer off; the episode's reward is then 0 whatever the scorer returns


@dataclass(frozen=True)
class EpisodeReward:
    """The result of an episode scorer: the episode's reward and, unless None, one for each conversation in order."""

    reward: float
    conversations: Sequence[float] | None = None


def episode_scorer(function: Callable[[ScoredEpisode], EpisodeReward]) -> Callable[[ScoredEpisode], EpisodeReward]:
    """Mark a function as a scorer of whole episodes."""
    function.scores_episodes = True  # type: ignore[attr-defined]
    return function


def scores_episodes(task: str, modules: Mapping[str, str] = NO_MODULES) -> bool:
    """Whether the scorer of a task scores whole episodes. Raises `ConfigError` if there is no such scorer."""
    return getattr(scorer_for(task, modules), "scores_episodes", False)


def scored_episode(
    problem: Problem, conversations: Sequence[tuple[str, np.ndarray, str]], answer: str, cut: bool, model: ModelSection
) -> ScoredEpisode:
    """Make the scorer's view of an episode. It can be sent to another process.

    Args:
        problem: the problem, with or without its document.
        conversations: role, response tokens and finish reason of each conversation, in order.
        answer: the agent's answer.
        cut: whether a length limit cut the answer off.
        model: the section whose tokenizer decodes responses when a scorer reads their text.
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
    """The scorer's views of a group's episodes."""
    of_episode: list[list] = [[] for _ in group.episode_answers]
    for c, episode in enumerate(group.episodes):
        of_episode[episode].append((group.roles[c], group.response(c), group.finish_reasons[c]))
    ends = zip(of_episode, group.episode_answers, group.cut_answers.tolist(), strict=True)
    return [scored_episode(problem, conversations, answer, cut, model) for conversations, answer, cut in ends]


def decoded(tokens: np.ndarray, model: ModelSection) -> str:
    """Decode a response without special tokens."""
    return load_tokenizer(model.path, model.trust_remote_code).decode(tokens, skip_special_tokens=True)


def episode_reward(task: str, episode: ScoredEpisode, modules: Mapping[str, str] = NO_MODULES) -> EpisodeReward:
    """Score an episode with the scorer of a task, which may score episodes or answers.

    Raises:
        ConfigError: there is no such scorer.
        BadReward: the scorer did not return an `EpisodeReward` of finite numbers, with one for each conversation if it
            rewards conversations; or, for a scorer of answers, a finite number.
        Exception: any error of a user's own scorer.
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
