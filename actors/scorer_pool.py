"""The scorer pool: one group at a time to each scorer, so that one that hangs costs that group alone."""

import asyncio

import ray
from ray.exceptions import RayActorError

from actors.scorer import Scorer
from pipeline.config import Config
from pipeline.episodes import GroupRecord


class ScorerHung(TimeoutError):
    """A scorer did not answer within its limit; its process was ended and another started."""


class ScorerPool:
    """Lives in the coordinator; the scorers are actors. One that hung or died is replaced by a new one."""

    def __init__(self, config: Config):
        self.config, self.objective = config.scorer, config.objective
        self._idle: asyncio.Queue = asyncio.Queue()
        for _ in range(self.config.count):
            self._idle.put_nowait(self._new())

    async def score(self, group_id: str, *arguments) -> GroupRecord:
        """Score a group (see `Scorer.score`).

        Raises:
            ScorerHung: no answer within scorer.timeout_s.
            RayActorError: the scorer's process died.
            Exception: what the scorer raised.
        """
        scorer = await self._idle.get()
        try:
            async with asyncio.timeout(self.config.timeout_s):
                return await scorer.score.remote(group_id, *arguments)
        except TimeoutError:
            ray.kill(scorer)
            scorer = self._new()
            raise ScorerHung(f"no reward within scorer.timeout_s={self.config.timeout_s}") from None
        except RayActorError:
            scorer = self._new()
            raise
        finally:
            self._idle.put_nowait(scorer)

    def _new(self):
        return Scorer.options(num_cpus=self.config.num_cpus).remote(self.objective)
