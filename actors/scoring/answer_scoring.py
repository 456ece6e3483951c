"""Scores an evaluation's answers outside its event loop. A failure is recorded as that answer's error."""

import asyncio
from collections.abc import Mapping

import ray

from pipeline.errors import reason_of
from pipeline.evaluation.answer_scores import answer_scores
from pipeline.rewards.episode_scoring import ScoredEpisode, episode_reward, scores_episodes
from pipeline.rewards.scoring import NO_MODULES, SCORERS, BadReward, reward

SCORER_LIMIT_S = 60.0  # limit for scoring one answer


async def scores_of(
    task: str,
    answer: str,
    answers: tuple[str, ...],
    modules: Mapping[str, str] = NO_MODULES,
    episode: ScoredEpisode | None = None,
) -> tuple[dict[str, float], str | None]:
    """Compute the metrics of an answer, and its `score` by the task's scorer.

    The metrics and the built-in scorers run in a thread, since their time grows with the length of the texts. A user's
    own scorer may hang, so it runs in a separate process, which is then killed.

    Args:
        task: the scorer's name.
        answer: the answer.
        answers: the gold answers.
        modules: scorer.modules of the configuration.
        episode: the whole episode, for a scorer of whole episodes. Its rewards of conversations are checked, not kept.

    Returns:
        The scores that could be computed, by name; and the error, or None if nothing failed.
    """
    scores: dict[str, float] = {}
    own = None
    try:
        async with asyncio.timeout(SCORER_LIMIT_S) as limit:
            scores |= await asyncio.to_thread(answer_scores, answer, answers, task)
            if task in SCORERS:
                scores["score"] = await asyncio.to_thread(score, task, answer, answers, modules, episode)
            else:
                own = score_apart.remote(task, answer, answers, modules, episode)
                scores["score"] = await own
    except Exception as error:
        if limit.expired():
            if own is not None:
                ray.cancel(own, force=True)
            return scores, f"the scorer of task {task!r} took longer than {SCORER_LIMIT_S:.0f} s"
        return scores, f"the scorer of task {task!r}: {reason_of(error)}"
    return scores, None


class EpisodeTasks:
    """Which tasks have scorers of whole episodes. Each is asked once, in a process of its own: a user's module may hang
    or end the process when it is imported.

    Args:
        modules: scorer.modules of the configuration.
    """

    def __init__(self, modules: Mapping[str, str]):
        self._modules = modules
        self._asked: dict[str, asyncio.Task[bool]] = {}

    async def has(self, task: str) -> bool:
        """Whether the task's scorer wants the responses. False if it cannot be loaded, which its scoring then says."""
        if task in SCORERS:
            return scores_episodes(task)
        if task not in self._modules:
            return False
        if task not in self._asked:
            self._asked[task] = asyncio.create_task(self._ask(task))
        return await asyncio.shield(self._asked[task])

    async def _ask(self, task: str) -> bool:
        asking = scores_episodes_apart.remote(task, self._modules)
        try:
            async with asyncio.timeout(SCORER_LIMIT_S) as limit:
                return await asking
        except Exception:
            if limit.expired():
                ray.cancel(asking, force=True)
            return False


@ray.remote(num_cpus=0)
def scores_episodes_apart(task: str, modules: Mapping[str, str]) -> bool:
    return scores_episodes(task, modules)


def score(
    task: str, answer: str, answers: tuple[str, ...], modules: Mapping[str, str], episode: ScoredEpisode | None
) -> float:
    """The score of an answer, or of a whole episode if the task's scorer wants one."""
    if not scores_episodes(task, modules):
        return reward(task, answer, answers, modules)
    if episode is None:
        raise BadReward(f"the scorer of task {task!r} scores whole episodes, but was given only an answer")
    return episode_reward(task, episode, modules).reward


score_apart = ray.remote(num_cpus=0, max_retries=0)(score)
