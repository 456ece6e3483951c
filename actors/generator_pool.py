"""The generator pool: starts the generators, hands work to them by name, and brings one back when it dies."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import ray
from ray.exceptions import RayActorError

from actors.generator import Generator
from actors.job_actor import RunFailed
from pipeline.config import GenerationConfig
from pipeline.evaluation.answers import Answer

REVIVE_ATTEMPTS = 8  # with waits of 1, 2, 4 … seconds between them
DEATHS_IN_A_ROW = 5  # a generator that dies more often while nothing gets done will not get better
TOKENS_WAIT_S = 5.0


class GeneratorLost(RuntimeError):
    """The generator's process died under its work, which is nothing that the work did."""


class GeneratorPool:
    """Lives in the actor of the job; the generators are actors.

    Args:
        config: of the job.
        say: takes a line for people to read.
        gone: is awaited with the name of a generator that died.
        buffer: the trajectory buffer that the generators report to; None when they do not train.
        store: where they get new weights from; None when they keep those of `model.path`.
    """

    def __init__(
        self,
        config: GenerationConfig,
        say: Callable[[str], None],
        gone: Callable[[str], Awaitable] | None = None,
        buffer=None,
        store=None,
    ):
        self.config, self._say, self._gone = config, say, gone
        g = config.generator
        self._generators = {
            name: Generator.options(num_cpus=g.num_cpus, num_gpus=g.num_gpus).remote(
                name, config, config.run.seed + number, buffer, store
            )
            for number, name in enumerate(f"generator-{i}" for i in range(g.count))
        }
        self._deaths: Counter[str] = Counter()
        self._alive = {name: asyncio.Event() for name in self._generators}
        self._tokens, self._tokens_of = 0, Counter()

    @property
    def names(self) -> list[str]:
        return list(self._generators)

    async def start(self) -> str:
        """Start all engines; return vLLM's version."""
        version, *_ = await asyncio.gather(*(g.start.remote() for g in self._generators.values()))
        for alive in self._alive.values():
            alive.set()
        return version

    async def alive(self, name: str) -> None:
        """Wait until a generator that died is back."""
        await self._alive[name].wait()

    def work_done(self) -> None:
        """Something got done, so deaths before it do not count as many in a row."""
        self._deaths.clear()

    async def rollout(self, name: str, *arguments) -> tuple[ray.ObjectRef, float]:
        """`Generator.rollout`: a reference to the group, and the seconds it took.

        Raises:
            TimeoutError: it took longer than generator.timeout_s, and was cancelled.
            GeneratorLost: the generator died.
            Exception: what the generator raised.
        """
        limit = self.config.generator.timeout_s
        group, seconds = self._generators[name].rollout.options(num_returns=2).remote(*arguments)
        try:
            async with asyncio.timeout(limit):
                return group, await seconds
        except TimeoutError:
            ray.cancel(seconds)
            raise TimeoutError(f"no episodes within generator.timeout_s={limit}") from None
        except RayActorError as error:
            raise GeneratorLost(f"{name} died") from error

    async def answer(self, name: str, *arguments) -> Answer:
        """`Generator.answer`.

        Raises:
            GeneratorLost: the generator died.
            Exception: what the generator raised.
        """
        try:
            return await self._generators[name].answer.remote(*arguments)
        except RayActorError as error:
            raise GeneratorLost(f"{name} died") from error

    async def tokens_done(self) -> int:
        """How many tokens the generators have read and written for answers, as far as they can tell now."""
        asked = {asyncio.ensure_future(_result(g.tokens_done.remote())): n for n, g in self._generators.items()}
        done, pending = await asyncio.wait(asked, timeout=TOKENS_WAIT_S)
        for task in pending:
            task.cancel()
        for task in done:
            if not task.exception():
                before, now = self._tokens_of[asked[task]], task.result()
                self._tokens += now - before if now >= before else now  # one that was started again counts from 0
                self._tokens_of[asked[task]] = now
        return self._tokens

    async def watch(self, name: str) -> None:
        """Bring a generator back whenever it dies, busy or idle."""
        while True:
            try:
                await self._generators[name].until_death.remote()
            except RayActorError:
                await self._revive(name)

    async def close(self) -> None:
        await asyncio.gather(*(g.close.remote() for g in self._generators.values()))

    async def _revive(self, name: str) -> None:
        """Take a dead generator out of service until Ray has started it again and it has the current weights."""
        self._alive[name].clear()
        self._deaths[name] += 1
        if self._deaths[name] > DEATHS_IN_A_ROW:
            raise RunFailed(
                f"{name} died {self._deaths[name]} times before anything got done; see its log in Ray's dashboard"
            )
        self._say(f"· {name} died; starting it again")
        if self._gone:
            await self._gone(name)
        for attempt in range(REVIVE_ATTEMPTS):
            try:
                await self._generators[name].start.remote()
                break
            except RayActorError:
                await asyncio.sleep(2**attempt)
        else:
            raise RunFailed(f"{name} did not come back in {REVIVE_ATTEMPTS} attempts; see its log in Ray's dashboard")
        self._alive[name].set()
        self._say(f"· {name} is back")


async def _result(ref: ray.ObjectRef):
    return await ref
