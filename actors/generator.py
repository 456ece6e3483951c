"""A generator: runs episodes of agents on a vLLM engine and takes up new weights while they run."""

import asyncio
import logging
import os
import time

import ray

from pipeline.agents import load_agent
from pipeline.config import GenerationConfig
from pipeline.episodes import Completion, Episode, EpisodeGroup, Sampling, pack_group, run_episode
from pipeline.evaluation.answers import Answer, AnswerRecorder
from pipeline.memory_trace import MemoryCounts, MemoryTrace, needed_facts
from pipeline.problems import Problem

log = logging.getLogger(__name__)


@ray.remote(max_restarts=-1, max_concurrency=10_000)
class Generator:
    """All episodes of all its groups run at once; vLLM batches whatever conversations are open.

    `buffer` and `store` join it to a training run; without them it keeps the weights of `model.path`.
    """

    def __init__(self, name: str, config: GenerationConfig, seed: int, buffer=None, store=None):
        self.name, self.config, self.seed = name, config, seed
        self.buffer, self.store = buffer, store
        self._started: asyncio.Task | None = None
        self._closing = False
        self._tokenizing = asyncio.Lock()  # tokenizers are not safe to use from two threads
        self._agents: dict[str, object] = {}  # by method
        self._tokens_done = 0

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

        self._tokenizer = AutoTokenizer.from_pretrained(
            self.config.model.path, trust_remote_code=self.config.model.trust_remote_code
        )
        self.engine = VllmEngine(self.config, self._tokenizer.eos_token_id, self.seed)
        await self.engine.start()
        self._background = [asyncio.create_task(self._watch_engine())]
        if self.store is not None:
            # One that starts late, or again, has the current weights before it takes its first group.
            if newer := await self.store.newer_than.remote(0, wait=False):
                await self._load(*newer)
            await self.buffer.generator_has.remote(self.name, self.engine.version)
            self._background.append(asyncio.create_task(self._follow_weights()))

    async def rollout(
        self, problem: Problem, method: str, episodes: int, sampling: Sampling
    ) -> tuple[EpisodeGroup, float]:
        """Run the group of a problem. Returned as two objects: the group, and the seconds it took.

        Raises:
            BadRow: the problem cannot be run (its question is too long, its document is empty).
        """
        await self.start()
        begin = time.perf_counter()
        agent, tokenized = await self._tokenize(problem, method)

        async def generate(prompt: list[int], max_tokens: int) -> Completion:
            return await self.engine.generate(prompt, max_tokens, sampling)

        runs = [run_episode(agent, tokenized, generate) for _ in range(episodes)]
        done = await self._unless_engine_dies(gather_or_cancel(runs))
        memory = await self._with_tokenizer(self._memory_counts, problem, method, tokenized, done)
        return pack_group(problem.id, done, memory), time.perf_counter() - begin

    async def answer(self, problem: Problem, method: str, sampling: Sampling, memories: int) -> Answer:
        """Run one episode for its answer: of its memories the text of the last `memories`, of its tokens the numbers.

        Response number i is sampled with the seed `sampling.seed` + i.

        Raises:
            BadRow: as `rollout`.
            TimeoutError: one of its responses took longer than generator.timeout_s.
        """
        await self.start()
        agent, tokenized = await self._tokenize(problem, method)
        (trace,) = await self._with_tokenizer(self._memory_traces, problem, method, tokenized, 1)

        async def follow(memory: list[int]) -> None:
            if trace.facts:
                await self._with_tokenizer(trace.add, memory)
            else:
                trace.add(memory)  # which counts tokens and reads none: it need not wait for the tokenizer

        recorder = AnswerRecorder(self._generate_in_time, sampling, memories, follow)
        text = await self._unless_engine_dies(agent.run(tokenized, recorder))
        return recorder.answer(text, tokenized, self._tokenizer, trace.counts)

    async def tokens_done(self) -> int:
        """How many tokens it has read and written for `answer` since it was started."""
        return self._tokens_done

    async def _generate_in_time(self, prompt: list[int], max_tokens: int, sampling: Sampling) -> Completion:
        limit = self.config.generator.timeout_s
        try:
            async with asyncio.timeout(limit):
                response = await self.engine.generate(prompt, max_tokens, sampling)
        except TimeoutError:
            raise TimeoutError(f"no response within generator.timeout_s={limit}") from None
        self._tokens_done += len(prompt) + len(response.tokens)
        return response

    async def _tokenize(self, problem: Problem, method: str) -> tuple[object, object]:
        """The agent of a method, and the problem tokenized for it."""

        def tokenize() -> tuple[object, object]:
            # The agent is made here too: to encode its prompts is to switch the tokenizer to special tokens and back.
            if method not in self._agents:
                self._agents[method] = load_agent(method)(self._tokenizer, self.config.agent)
            return self._agents[method], self._agents[method].tokenize(problem)

        return await self._with_tokenizer(tokenize)

    def _memory_traces(self, problem: Problem, method: str, tokenized: object, episodes: int) -> list[MemoryTrace]:
        """One an episode. They follow facts only where the memories are known to be a chain, one a chunk."""
        facts = needed_facts(problem, tokenized.document, self._tokenizer) if method == "memory" else ()
        return [MemoryTrace(self._tokenizer, self.config.agent, facts) for _ in range(episodes)]

    def _memory_counts(
        self, problem: Problem, method: str, tokenized: object, episodes: list[Episode]
    ) -> tuple[MemoryCounts, ...]:
        """Of each episode of a group."""
        traces = self._memory_traces(problem, method, tokenized, len(episodes))
        for trace, episode in zip(traces, episodes, strict=True):
            for conversation in episode.conversations:
                if conversation.role == "memory":
                    trace.add(conversation.response.tokens)
        return tuple(trace.counts for trace in traces)

    async def _with_tokenizer(self, work, *arguments):
        async with self._tokenizing:  # in a thread: a document of millions of tokens must not hold the others up
            return await asyncio.to_thread(work, *arguments)

    async def _unless_engine_dies(self, work):
        try:
            return await work
        except Exception:
            if self.engine.is_dead and not self._closing:
                self._die("the vLLM engine process is dead")
            raise

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
