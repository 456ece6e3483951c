"""Runs trials: reads a question with its document, asks a generator, scores the answer and makes its row.

Used by the evaluator, and by the validation of a training run.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable

from actors.generation.generator_pool import GeneratorLost
from actors.scoring.answer_scoring import EpisodeTasks, scores_of
from pipeline.errors import BadRow, DataError, reason_of
from pipeline.evaluation.answers import AnswerRecord
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.questions import Trial
from pipeline.evaluation.results import SCORES
from pipeline.problems import Problem
from pipeline.rewards.episode_scoring import scored_episode
from pipeline.rollout.episodes import Sampling
from pipeline.run.ledger import SUSPECT_DEATHS

DOCUMENTS_UNDER_WAY = 1 << 30  # characters in all documents being read at once


class TrialRunner:
    """Lives in a job actor.

    Args:
        config: how questions are asked and answers scored.
        read: reads the sample with an index in the questions' source.
        ask: `GeneratorPool.answer` of the generators.

    Attributes:
        failures: number of failed attempts, by cause.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        read: Callable[[int], Awaitable[Problem]],
        ask: Callable[..., Awaitable[AnswerRecord]],
    ):
        self.config, self._read, self._ask = config, read, ask
        self.failures: Counter[str] = Counter()
        self._deaths: Counter[tuple] = Counter()  # generators that a trial may have killed, by its key
        self._episode_tasks = EpisodeTasks(config.scorer.modules)

    def is_suspect(self, trial: Trial) -> bool:
        """Whether `SUSPECT_DEATHS` generators died during a trial. Run alone, it does no harm to others, and if another
        generator dies, no other trial is to blame."""
        return self._deaths[trial.key] >= SUSPECT_DEATHS

    async def problem(self, trial: Trial) -> Problem:
        """Read a question again, now with its document.

        Raises:
            DataError: `max_attempts` reads failed: the file was removed or replaced.
        """
        for attempt in range(1, self.config.evaluate.max_attempts + 1):
            try:
                return await self._read(trial.question.index)
            except Exception as error:
                self.failures[type(error).__name__] += 1
                if attempt == self.config.evaluate.max_attempts:
                    raise DataError(
                        f"question {trial.question.id!r} was read before and cannot be read any more: "
                        f"{reason_of(error)}"
                    ) from error
        raise AssertionError("the last attempt returns or raises")

    async def answer(self, trial: Trial, problem: Problem, priority: int) -> tuple[AnswerRecord | None, str | None]:
        """The answer, or the reason why up to `max_attempts` attempts gave none.

        If one more generator dies during a trial that is a suspect, the trial is an error.

        Args:
            trial: the trial.
            problem: its question, with the document.
            priority: of all work of a generator, that with the lowest number goes first.

        Raises:
            GeneratorLost: the generator died or is leaving; the trial must be repeated.
        """
        e = self.config.evaluate
        sampling = Sampling(e.temperature, e.top_p, trial.seed(self.config.run.seed))
        attempt = 0
        while True:
            try:
                whole = await self._episode_tasks.has(problem.task)
                arguments = (problem, trial.method, sampling, e.memories, e.successes, whole, priority)
                answer = await self._ask(*arguments)
                self._deaths.pop(trial.key, None)
                return answer, None
            except GeneratorLost as error:
                self.failures["GeneratorLost"] += 1
                was_suspect = self.is_suspect(trial)
                self._deaths[trial.key] += error.blame
                if was_suspect and error.blame:
                    return None, f"{self._deaths[trial.key]} generators died under it"
                raise
            except BadRow as error:
                return None, reason_of(error)
            except Exception as error:
                attempt += 1
                self.failures[type(error).__name__] += 1
                if attempt == e.max_attempts:
                    return None, reason_of(error)


async def answer_row(
    config: EvaluationConfig,
    trial: Trial,
    problem: Problem,
    answer: AnswerRecord | None,
    error: str | None,
    seconds: float,
) -> dict:
    """The row of results.jsonl.

    Without an answer, or with a cut one, all scores are 0. `score_if_not_cut` is the score that a cut answer would have
    had; None if its scorer failed.
    """
    scores: dict[str, float | None] = dict.fromkeys(SCORES, 0.0)
    if answer:
        episode = None
        if answer.responses is not None:
            episode = scored_episode(problem, answer.responses, answer.text, answer.cut, config.model)
        given, error = await scores_of(problem.task, answer.text, problem.answers, config.scorer.modules, episode)
        scores |= {"score_if_not_cut": given.get("score")} if answer.cut else given
    trace = answer and answer.memory_trace
    return {
        **dict(zip(("set", "length", "id", "method", "sample"), trial.key, strict=True)),
        "task": problem.task,
        "question": problem.question,
        "answers": list(problem.answers),
        "answer": answer.text if answer else None,
        **scores,
        "cut": bool(answer and answer.cut),
        "cut_memories": answer.cut_memories if answer else 0,
        "error": error,
        "document_tokens": answer.document_tokens if answer else None,
        "conversations": answer.conversations if answer else 0,
        "prompt_tokens": answer.prompt_tokens if answer else 0,
        "prompt_tokens_computed": answer.prompt_tokens - answer.cached_tokens if answer else 0,
        "response_tokens": answer.response_tokens if answer else 0,
        "versions": answer.versions if answer else None,
        "seconds": round(seconds, 3),
        "memories": list(answer.memories) if answer else [],
        "memory_trace": vars(trace.scored(scores["score"] or 0.0)) if trace else None,
    }


class Room:
    """Admits work while the total size inside is at most `limit`. Larger work is admitted alone."""

    def __init__(self, limit: int):
        self.limit, self.inside = limit, 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def of(self, size: int):
        async with self._changed:
            await self._changed.wait_for(lambda: not self.inside or self.inside + size <= self.limit)
            self.inside += size
        try:
            yield
        finally:
            self.inside -= size
            async with self._changed:
                self._changed.notify_all()
