"""Scores an evaluation's answers beside its event loop. Whatever goes wrong is that answer's error."""

import asyncio
from collections.abc import Mapping

import ray

from pipeline.errors import reason_of
from pipeline.evaluation.answer_scores import answer_scores
from pipeline.rewards.episode_scoring import ScoredEpisode, episode_reward, scores_episodes
from pipeline.rewards.scoring import NO_MODULES, SCORERS, BadReward, reward

SCORER_LIMIT_S = 60.0


async def scores_of(
    task: str,
    answer: str,
    answers: tuple[str, ...],
    modules: Mapping[str, str] = NO_MODULES,
    episode: ScoredEpisode | None = None,
) -> tuple[dict[str, float], str | None]:
    """The metrics of an answer and its score by the task's scorer, as far as there are any, and why not all.

    The metrics and the built-in scorers are worked out in a thread; their time grows with the texts' length. Of a
    user's own scorer nobody knows: it has a process of its own, which is ended when it hangs. One of whole episodes
    gets the `episode`; its rewards of conversations are checked and not kept.
    """
    scores: dict[str, float] = {}
    own = None
    try:
        async with asyncio.timeout(SCORER_LIMIT_S) as limit:
            scores |= await asyncio.to_thread(answer_scores, answer, answers, task)
            if task in SCORERS:
                scores["score"] = await asyncio.to_thread(reward, task, answer, answers)
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


@ray.remote(num_cpus=0, max_retries=0)
def score_apart(
    task: str, answer: str, answers: tuple[str, ...], modules: Mapping[str, str], episode: ScoredEpisode | None
) -> float:
    if not scores_episodes(task, modules):
        return reward(task, answer, answers, modules)
    if episode is None:
        raise BadReward(f"the scorer of task {task!r} scores whole episodes, and was given an answer alone")
    return episode_reward(task, episode, modules).reward
