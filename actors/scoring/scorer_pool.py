"""The scorer pool: one group at a time to each scorer, so that one that hangs costs that group alone."""

import asyncio
from collections.abc import Callable

from actors.lifecycle.failures import DIED, Hung
from actors.lifecycle.pool import Pool
from actors.scoring.scorer import Scorer
from pipeline.rollout.episodes import ScoredGroup
from pipeline.run.config import TrainingConfig

ATTEMPTS = 3  # to score a group under which scorers die or hang; then it has failed


class ScorerHung(TimeoutError):
    """A scorer did not answer within its limit; its process was ended and another started."""


class ScorerPool(Pool):
    """Lives in the coordinator; the scorers are actors."""

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
            try:
                with self._busy[name].work():
                    async with asyncio.timeout(self.config.timeout_s):
                        result = await actor.score.remote(*arguments)
                if not scored.done():
                    scored.set_result(result)
                self._deaths[name] = 0
            except TimeoutError:
                error = ScorerHung(f"no reward within scorer.timeout_s={self.config.timeout_s:g}")
                _fail(scored, error)
                raise Hung(f"hung: {error}") from None
            except DIED as error:
                _fail(scored, error)
                raise
            except Exception as error:  # the task's scorer raised, which is nothing that this process did
                _fail(scored, error)

    @property
    def waiting(self) -> int:
        """Groups that wait for a scorer."""
        return self._waiting.qsize()

    async def score(self, *arguments) -> ScoredGroup:
        """Score a group (see `Scorer.score`); when a scorer dies or hangs under it, another one tries.

        Raises:
            ScorerHung: no answer within scorer.timeout_s, again and again.
            DIED: the scorers' processes died, again and again.
            Exception: what the scorer raised.
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
