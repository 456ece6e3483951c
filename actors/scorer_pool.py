"""The scorer pool: one group at a time to each scorer, so that one that hangs costs that group alone."""

import asyncio

import ray

from actors.scorer import Scorer
from pipeline.config import Config
from pipeline.episodes import GroupRecord


class ScorerHung(TimeoutError):
    """A scorer did not answer within its limit; its process was ended and started again."""


class ScorerPool:
    """Lives in the coordinator; the scorers are actors."""

    def __init__(self, config: Config):
        self.timeout_s = config.scorer.timeout_s
        self._scorers = [Scorer.options(num_cpus=config.scorer.num_cpus).remote() for _ in range(config.scorer.count)]
        self._idle: asyncio.Queue = asyncio.Queue()
        for scorer in self._scorers:
            self._idle.put_nowait(scorer)

    async def score(self, group_id: str, *arguments) -> GroupRecord:
        """Score a group (see `Scorer.score`).

        Raises:
            ScorerHung: no answer within scorer.timeout_s.
            Exception: what the scorer raised, or a Ray error when its process died.
        """
        scorer = await self._idle.get()
        try:
            async with asyncio.timeout(self.timeout_s):
                return await scorer.score.remote(group_id, *arguments)
        except TimeoutError:
            ray.kill(scorer, no_restart=False)
            raise ScorerHung(f"no reward within scorer.timeout_s={self.timeout_s}") from None
        finally:
            self._idle.put_nowait(scorer)

    def close(self) -> None:
        for scorer in self._scorers:
            ray.kill(scorer)
