"""A generator: runs agents' episodes on a vLLM engine and switches to new weights without interrupting them.

Every finished conversation goes to the journal before the next one of its episode begins. So a group can continue on
another generator when this process dies, and an agent that reads in order loses at most one conversation per episode.
"""

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import replace
from functools import partial
from typing import NoReturn, cast

import ray

from actors.generation.journal import JournalWriter
from actors.lifecycle.failures import Hung
from pipeline.agents import Agent, load_agent
from pipeline.agents.memory_trace import MemoryTrace, reading_of, trace_memories
from pipeline.end_tokens import end_tokens
from pipeline.evaluation.answers import AnswerRecord, AnswerRecorder
from pipeline.learning.device_memory import count_parameters
from pipeline.problems import Problem
from pipeline.rollout.answer import Memories
from pipeline.rollout.episodes import (
    Completion,
    Episode,
    EpisodeGroup,
    RolloutNotes,
    Sampling,
    pack_group,
    response_seed,
    run_agent,
    run_episode,
)
from pipeline.rollout.replay import Finished, Replay, digest
from pipeline.run.config import TrainingConfig
from pipeline.sections import GenerationConfig
from pipeline.text import load_tokenizer
from pipeline.weights.transport import BUCKETS, Receivers, Weights

FETCH_S = 3600.0  # limit for fetching new weights; a slow network is no fault

log = logging.getLogger(__name__)


class Draining(RuntimeError):
    """The generator is draining and starts no more conversations."""


@ray.remote(max_concurrency=10_000)
class Generator:
    """Runs all episodes of all its groups concurrently; vLLM batches the open conversations.

    Args:
        name: the generator's name.
        config: the job's configuration.
        seed: the engine's seed.
        journal: the journal's handle; None: only `answer` can be called, not `rollout`.
    """

    def __init__(self, name: str, config: GenerationConfig, seed: int, journal=None):
        self.name, self.config, self.seed = name, config, seed
        self._journal = JournalWriter(journal) if journal else None
        self._read_journal = journal and journal.of.remote
        self._started: asyncio.Task | None = None
        self._closing = False
        self._tokenizing = asyncio.Lock()  # tokenizers are not safe to use from two threads
        self._agents: dict[str, Agent] = {}  # by method
        self._receivers = Receivers()
        self._tokens_done = 0
        self._draining = False

    async def start(self, check_room: bool = False) -> tuple[str, str]:
        """Start the engine once; return vLLM's version and the id of this actor's node.

        Args:
            check_room: whether to check first that the node has room for the new weights of a training run.
        """
        if self._started is None:
            self._started = asyncio.create_task(self._start(check_room))
        await self._started
        return self.engine.version_of_vllm, ray.get_runtime_context().get_node_id()

    async def max_sequences(self) -> int:
        """How many conversations the engine decodes together, once it has started."""
        return self.engine.max_sequences

    async def _start(self, check_room: bool) -> None:
        # Imported here, so that processes that only hold a handle to this actor do not spend seconds on importing vLLM.
        from actors.generation.vllm_engine import VllmEngine
        from pipeline.weights.bucket_files import remove_orphans

        await asyncio.to_thread(remove_orphans)  # of a generator that was killed: they take memory until removed
        if check_room:
            await asyncio.to_thread(check_room_for_weights, cast(TrainingConfig, self.config))
        self._tokenizer = load_tokenizer(self.config.model.path, self.config.model.trust_remote_code)
        self.engine = VllmEngine(self.config, end_tokens(self._tokenizer), self.seed)
        await self.engine.start()
        self._watching = asyncio.create_task(self._watch_engine())

    async def rollout(
        self,
        group_id: str,
        problem: Problem,
        method: str,
        episodes: int,
        sampling: Sampling,
        seed: tuple[int, ...] | None = None,
        resumed: bool = False,
        priority: int = 0,
    ) -> tuple[EpisodeGroup, RolloutNotes]:
        """Run a group: G episodes of a problem. Return the group and notes on its rollout, as two objects.

        Args:
            group_id: the group's id.
            problem: the group's problem.
            method: the agent's name.
            episodes: G, the number of episodes.
            sampling: the sampling of all responses.
            seed: the group's seed, always the same for one group; None: responses are not seeded.
            resumed: whether the group was run before, so that the journal may have finished conversations of it.
            priority: of all groups on this generator, those with the lowest number go first.

        Raises:
            BadRow: the problem cannot be run (its question is too long, its document is empty).
            Draining: the group must continue on another generator.
        """
        begin = time.perf_counter()
        agent, tokenized = await self._tokenize(problem, method)
        finished = await self._read_journal(group_id) if resumed else []
        runs = [
            _Run(self, group_id, number, sampling, seed, Replay(f for f in finished if f.episode == number), priority)
            for number in range(episodes)
        ]
        done = await self._unless_engine_dies(gather_or_cancel([run.episode(agent, tokenized) for run in runs]))
        if None in done:
            raise Draining(f"{self.name} is on a node that is being drained")
        traces = await self._memory_traces(problem, tokenized, [episode.memories for episode in done])
        reading = reading_of(tokenized, self.config.agent, done[0].memories, traces[0])
        notes = RolloutNotes(
            seconds=time.perf_counter() - begin,
            resumed_episodes=sum(run.generated > 0 for run in runs) if resumed else 0,
            preemptions=sum(run.preemptions for run in runs),
        )
        return pack_group(problem.id, done, tuple(trace.counts for trace in traces), reading), notes

    async def answer(
        self,
        problem: Problem,
        method: str,
        sampling: Sampling,
        memories: int,
        transcript: bool = False,
        responses: bool = False,
        priority: int = 0,
    ) -> AnswerRecord:
        """Run one episode and return its answer.

        Args:
            problem: the problem.
            method: the agent's name.
            sampling: the sampling of the responses; response number i gets the seed `sampling.seed` + i.
            memories: how many of the last memories to return as text.
            transcript: whether to return all prompts and responses, besides the token counts.
            responses: whether to return the responses, for a scorer of whole episodes.
            priority: of all episodes on this generator, those with the lowest number go first.

        Raises:
            BadRow: as for `rollout`.
            TypeError: the agent's answer is not a text.
            TimeoutError: a response took longer than generator.timeout_s.
        """
        agent, tokenized = await self._tokenize(problem, method)
        generate = partial(self._generate_in_time, priority=priority)
        recorder = AnswerRecorder(generate, sampling, transcript, responses)
        answer = recorder.answer(await self._unless_engine_dies(run_agent(agent, tokenized, recorder)))
        (trace,) = await self._memory_traces(problem, tokenized, [answer.memories])
        return recorder.record(answer, tokenized, self._tokenizer, memories, trace.counts)

    async def tokens_done(self) -> int:
        """The number of tokens read and written for `answer` since the start."""
        return self._tokens_done

    async def _generate_in_time(
        self, prompt: list[int], max_tokens: int, sampling: Sampling, priority: int
    ) -> Completion:
        limit = self.config.generator.timeout_s
        try:
            async with asyncio.timeout(limit):
                response = await self.generate(prompt, max_tokens, sampling, priority)
        except TimeoutError:
            raise TimeoutError(f"no response within generator.timeout_s={limit}") from None
        self._tokens_done += len(prompt) + len(response.tokens)
        return response

    async def generate(self, prompt: list[int], max_tokens: int, sampling: Sampling, priority: int) -> Completion:
        """Sample one response. Raises `Draining`."""
        if self._draining:
            raise Draining(f"{self.name} is on a node that is being drained")
        return await self.engine.generate(prompt, max_tokens, sampling, priority)

    async def finish(self, conversation: Finished) -> None:
        """Write a finished conversation to the journal, which outlives this process."""
        await self._journal.write(conversation)

    async def _tokenize(self, problem: Problem, method: str) -> tuple[Agent, object]:
        """Return the agent of a method, and the problem tokenized for it."""

        def tokenize() -> tuple[Agent, object]:
            # The agent is made here too: encoding its prompts switches special tokens on and off in the tokenizer.
            if method not in self._agents:
                self._agents[method] = load_agent(method)(self._tokenizer, self.config.agent)
            return self._agents[method], self._agents[method].tokenize(problem)

        return await self._with_tokenizer(tokenize)

    async def _memory_traces(self, problem: Problem, tokenized: object, episodes: list[Memories]) -> list[MemoryTrace]:
        """Follow the needed facts through the memories of each episode (`trace_memories`)."""
        return await self._with_tokenizer(
            trace_memories, problem, tokenized, self._tokenizer, self.config.agent, episodes
        )

    async def _with_tokenizer(self, work, *arguments):
        async with self._tokenizing:  # in a thread: a document of millions of tokens must not block other episodes
            working = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
            try:
                return await asyncio.shield(working)
            finally:  # a thread goes on when its caller is cancelled, and has the tokenizer until it is done
                await asyncio.wait([working])

    async def _unless_engine_dies(self, work):
        try:
            return await work
        except Exception:
            if self.engine.is_dead and not self._closing:
                self._die("the vLLM engine process is dead")
            raise

    async def load_weights(self, weights: Weights) -> float:
        """Switch to new weights while episodes run; return the pause in seconds.

        Raises:
            WeightsLost: they can no longer be fetched; the weights in use stay.
            Hung: they were not fetched within `FETCH_S`, or the engine did not load them within generator.stall_s.
            Exception: an error of the receiver's `fetch`; the weights in use stay.
        """
        limit = self.config.generator.stall_s
        async with contextlib.AsyncExitStack() as fetched:
            try:
                async with asyncio.timeout(FETCH_S) as fetching:
                    parts = await fetched.enter_async_context(self._receivers[weights.transport].fetch(weights))
            except TimeoutError:
                if not fetching.expired():  # the receiver's own
                    raise
                raise Hung(f"took longer than {FETCH_S:g} s to fetch new weights") from None
            try:
                async with asyncio.timeout(limit):
                    return await self.engine.load_weights(weights.version, weights.transport, parts)
            except TimeoutError:
                raise Hung(f"took longer than generator.stall_s={limit:g} to load new weights") from None
            except Exception:
                if self._closing:  # `close` shut down the engine while it loaded; nobody waits for the weights
                    return 0.0
                log.exception("generator %s could not load weights of version %d", self.name, weights.version)
                self._die("new weights failed to load, so the engine's weights are in doubt")

    async def heartbeat(self) -> None:
        """Return after the engine's next loop iteration."""
        await self._unless_engine_dies(self.engine.heartbeat())

    async def drain(self) -> None:
        """Start no more conversations. Running calls finish their open conversations, then raise `Draining`."""
        self._draining = True

    async def until_death(self) -> None:
        """Never return: the call fails when this actor's process ends, so its caller learns of it at once."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Shut down the engine, which would otherwise leave its process and shared memory behind."""
        self._closing = True
        if self._started is not None:
            await self._started
            self._watching.cancel()
            self.engine.shutdown()
        self._receivers.close()

    async def _watch_engine(self) -> None:
        """End this actor when the engine process dies. Calls that wait for it, such as loading weights, might hang."""
        while not self.engine.is_dead:
            await asyncio.sleep(1)
        self._die("the vLLM engine process is dead")

    def _die(self, why: str) -> NoReturn:
        """End this actor's process: the pool starts another, and its groups continue on other generators."""
        log.error("generator %s ends itself: %s", self.name, why)
        os._exit(1)


def check_room_for_weights(config: TrainingConfig) -> None:
    """Check that this node has room for new weights.

    Raises:
        BucketError: it has not.
    """
    import torch
    from transformers import AutoConfig

    from pipeline.weights.bucket_files import check_room

    if config.train.weight_transport != BUCKETS:
        return
    trusted = config.model.trust_remote_code
    try:
        parameters = count_parameters(AutoConfig.from_pretrained(config.model.path, trust_remote_code=trusted), trusted)
    except Exception:  # any exception, of any model's code
        log.warning("the parameters of %s cannot be counted: no check of room for new weights", config.model.path)
        return
    versions = 2 if config.learner.weight_deltas else 1
    check_room(versions * parameters * getattr(torch, config.model.dtype).itemsize)


class _Run:
    """One episode of a group: responses come from the journal as long as it has some, then from the engine.

    Args:
        generator: the generator that runs the episode.
        group_id: the group's id.
        episode: the episode's number in the group.
        sampling: the sampling of its responses.
        seed: the group's seed; None: responses are not seeded.
        replay: the replay of the episode's finished conversations.
        priority: the group's.
    """

    def __init__(
        self,
        generator: "Generator",
        group_id: str,
        episode: int,
        sampling: Sampling,
        seed: tuple[int, ...] | None,
        replay: Replay,
        priority: int,
    ):
        self._generator, self._group_id, self._episode = generator, group_id, episode
        self._sampling, self._seed, self._replay, self._priority = sampling, seed, replay, priority
        self.replayed = self.generated = self.preemptions = 0

    async def episode(self, agent, tokenized) -> Episode | None:
        """Run the episode; None if the generator is drained before its end. Open conversations are finished first."""
        try:
            return await run_episode(agent, tokenized, self._generate)
        except Draining:
            return None

    async def _generate(self, prompt: list[int], max_tokens: int) -> Completion:
        number = self.replayed + self.generated
        if response := self._replay.take(prompt):
            self.replayed += 1
            return response
        self.generated += 1
        sampling = self._sampling
        if self._seed:
            sampling = replace(sampling, seed=response_seed(*self._seed, self._episode, number))
        response = await self._generator.generate(prompt, max_tokens, sampling, self._priority)
        self.preemptions += response.preemptions
        await self._generator.finish(Finished(self._group_id, self._episode, digest(prompt), response))
        return response


async def gather_or_cancel(coroutines: list) -> list:
    """Like asyncio.gather, but a failure or cancellation cancels all coroutines: no request keeps running unnoticed."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(c) for c in coroutines]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in running]
