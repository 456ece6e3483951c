"""The scorer pool. Each scorer gets one group at a time, so that a hanging scorer delays that group only."""

import asyncio
from collections.abc import Callable

from actors.lifecycle.failures import DIED, Hung
from actors.lifecycle.pool import Pool
from actors.scoring.scorer import Scorer
from pipeline.rollout.episodes import ScoredGroup
from pipeline.run.config import TrainingConfig

ATTEMPTS = 3  # to score a group whose scorers die or hang; then the group fails


class ScorerHung(TimeoutError):
    """A scorer did not answer within its limit. Its process was killed and another one started."""


class ScorerPool(Pool):
    """Lives in the coordinator; the scorers are actors.

    Args:
        config: the run's configuration.
        say: called with each progress line.
    """

    def __init__(self, config: TrainingConfig, say: Callable[[str], None]):
        super().__init__("scorer", config.scorer.count, config.scorer.min_count, say)
        self.config, self.objective, self.model = config.scorer, config.objective, config.model
        self._waiting: asyncio.Queue[tuple[tuple, asyncio.Future]] = asyncio.Queue()

    def make(self, number: int):
        return Scorer.options(num_cpus=self.config.num_cpus).remote(self.objective, self.config.modules, self.model)

    async def serve(self, name: str, actor) -> str:
        await actor.ready.remote()
        await self.enter(name)
        while True:
            arguments, scored = await self._waiting.get()
            limit = asyncio.timeout(self.config.timeout_s)
            try:
                with self._busy[name].work():
                    async with limit:
                        result = await actor.score.remote(*arguments)
                if not scored.done():
                    scored.set_result(result)
                self._deaths[name] = 0
            except DIED as error:
                _fail(scored, error)
                raise
            except Exception as error:
                if limit.expired():
                    hung = ScorerHung(f"no reward within scorer.timeout_s={self.config.timeout_s:g}")
                    _fail(scored, hung)
                    raise Hung(f"hung: {hung}") from None
                _fail(scored, error)  # raised by the task's scorer, maybe a TimeoutError; this process is fine

    @property
    def waiting(self) -> int:
        """The number of groups that wait for a scorer."""
        return self._waiting.qsize()

    async def score(self, *arguments) -> ScoredGroup:
        """Score a group (see `Scorer.score`). If a scorer dies or hangs, another one tries, up to `ATTEMPTS` times.

        Raises:
            ScorerHung: the last scorer did not answer within scorer.timeout_s.
            DIED: the last scorer's process died.
            Exception: an error that the task's scorer raised.
        """
        for attempt in range(ATTEMPTS):
            scored = asyncio.get_running_loop().create_future()
            self._waiting.put_nowait((arguments, scored))
            try:
                return await scored
            except (ScorerHung, *DIED):
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")


def _fail(scored: asyncio.Future, error: Exception) -> None:
    if not scored.done():
        scored.set_exception(error)
