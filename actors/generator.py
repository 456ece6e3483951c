"""A generator: runs the agent's episodes on a vLLM engine and takes up new weights while they run."""

import asyncio
import logging
import os
import time

import ray

from pipeline.agents import load_agent
from pipeline.config import Config
from pipeline.episodes import EpisodeGroup, pack_group
from pipeline.problems import Problem

log = logging.getLogger(__name__)


@ray.remote(max_restarts=-1, max_concurrency=10_000)
class Generator:
    """All episodes of all its groups run at once; vLLM batches whatever conversations are open."""

    def __init__(self, name: str, config: Config, seed: int, buffer, store):
        self.name, self.config, self.seed = name, config, seed
        self.buffer, self.store = buffer, store
        self._started: asyncio.Task | None = None
        self._closing = False
        self._tokenizing = asyncio.Lock()  # tokenizers are not safe to use from two threads

    async def start(self) -> str:
        """Start the engine if it is not running (also after Ray restarted this actor). Returns vLLM's version."""
        if self._started is None:
            self._started = asyncio.create_task(self._start())
        await self._started
        return self.engine.version_of_vllm

    async def _start(self) -> None:
        # Imported here: who only holds a handle to this actor need not spend seconds on importing vLLM.
        from transformers import AutoTokenizer

        from actors.vllm_engine import VllmEngine

        tokenizer = AutoTokenizer.from_pretrained(
            self.config.model.path, trust_remote_code=self.config.model.trust_remote_code
        )
        self.agent = load_agent(self.config.agent.entrypoint)(tokenizer, self.config.agent)
        self.engine = VllmEngine(self.config, tokenizer.eos_token_id, self.seed)
        await self.engine.start()
        # One that starts late, or again, has the current weights before it takes its first group.
        if newer := await self.store.newer_than.remote(0, wait=False):
            await self._load(*newer)
        await self.buffer.generator_has.remote(self.name, self.engine.version)
        self._background = [asyncio.create_task(self._follow_weights()), asyncio.create_task(self._watch_engine())]

    async def rollout(self, problem: Problem, episodes: int) -> tuple[EpisodeGroup, float]:
        """Run the group of a problem. Returned as two objects: the group, and the seconds it took.

        Raises:
            BadRow: the problem cannot be run (its question is too long, its document is empty).
        """
        await self.start()
        begin = time.perf_counter()
        async with self._tokenizing:  # a document of millions of tokens must not hold the others up
            tokenized = await asyncio.to_thread(self.agent.tokenize, problem)
        try:
            runs = [self.agent.run(tokenized, self.engine.generate) for _ in range(episodes)]
            group = pack_group(problem.id, await gather_or_cancel(runs))
        except Exception:
            if self.engine.is_dead and not self._closing:
                self._die("the vLLM engine process is dead")
            raise
        return group, time.perf_counter() - begin

    async def until_death(self) -> None:
        """Never returns: the call fails when this actor's process ends, which tells its caller at once."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Stop the engine, which would otherwise leave its process and shared memory behind."""
        self._closing = True
        if self._started is not None:
            await self._started
            for task in self._background:
                task.cancel()
            self.engine.shutdown()

    async def _watch_engine(self) -> None:
        """Notice that the engine process died. What waits for it, such as a weight update, may never be told."""
        while not self.engine.is_dead:
            await asyncio.sleep(1)
        self._die("the vLLM engine process is dead")

    async def _follow_weights(self) -> None:
        try:
            while True:
                version, refs = await self.store.newer_than.remote(self.engine.version)
                pause_s = await self._load(version, refs)
                await self.buffer.generator_has.remote(self.name, version, pause_s)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("generator %s could not take up new weights", self.name)
            self._die("a weight update failed, so its weights are in doubt")

    async def _load(self, version: int, refs: list[ray.ObjectRef]) -> float:
        async def buckets():
            for ref in refs:
                yield await ref

        return await self.engine.update_weights(version, buckets())

    def _die(self, why: str) -> None:
        """End this actor's process: Ray starts it again, and the callers' groups are run elsewhere."""
        log.error("generator %s ends itself: %s", self.name, why)
        os._exit(1)


async def gather_or_cancel(coroutines: list) -> list:
    """Like asyncio.gather, but the first failure, or being cancelled, ends them all: no request goes on unseen."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(c) for c in coroutines]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in running]
