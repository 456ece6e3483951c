"""A generator: runs episodes of agents on a vLLM engine and takes up new weights while they run.

Every conversation that is finished goes to the journal before the next one of its episode begins, so that a group can
go on elsewhere when this process dies, and no episode loses more than one conversation.
"""

import asyncio
import logging
import os
import time
from dataclasses import replace
from typing import NoReturn

import ray

from actors.generation.journal import JournalWriter
from pipeline.agents import Agent, load_agent
from pipeline.agents.memory_trace import count_memories
from pipeline.end_tokens import end_tokens
from pipeline.evaluation.answers import AnswerRecord, AnswerRecorder
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
from pipeline.rollout.memory_counts import MemoryCounts
from pipeline.rollout.replay import Finished, Replay, digest
from pipeline.sections import GenerationConfig
from pipeline.text import load_tokenizer
from pipeline.weights.transport import Receivers, Weights

log = logging.getLogger(__name__)


class Draining(RuntimeError):
    """The generator begins no more conversations."""


@ray.remote(max_concurrency=10_000)
class Generator:
    """All episodes of all its groups run at once; vLLM batches whatever conversations are open.

    With a `journal` it can `rollout`; without one it only answers.
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

    async def start(self) -> tuple[str, str]:
        """Start the engine; return vLLM's version and the id of this actor's node."""
        if self._started is None:
            self._started = asyncio.create_task(self._start())
        await self._started
        return self.engine.version_of_vllm, ray.get_runtime_context().get_node_id()

    async def _start(self) -> None:
        # Imported here: who only holds a handle to this actor need not spend seconds on importing vLLM.
        from actors.generation.vllm_engine import VllmEngine
        from pipeline.weights.bucket_files import remove_orphans

        await asyncio.to_thread(remove_orphans)  # of a generator that was killed: they take memory until removed
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
        go_on: bool = False,
    ) -> tuple[EpisodeGroup, RolloutNotes]:
        """Run the group of a problem. Returned as two objects.

        Args:
            group_id: of the group.
            problem: of the group.
            method: of reading.
            episodes: G.
            sampling: of all responses.
            seed: the same for the same group; None: responses are not seeded.
            go_on: another generator was at it, so there may be finished conversations.

        Raises:
            BadRow: the problem cannot be run (its question is too long, its document is empty).
            Draining: the group must go on elsewhere.
        """
        begin = time.perf_counter()
        agent, tokenized = await self._tokenize(problem, method)
        finished = await self._read_journal(group_id) if go_on else []
        runs = [
            _Run(self, group_id, number, sampling, seed, Replay(f for f in finished if f.episode == number))
            for number in range(episodes)
        ]
        done = await self._unless_engine_dies(gather_or_cancel([run.episode(agent, tokenized) for run in runs]))
        if None in done:
            raise Draining(f"{self.name} is on a node that is being drained")
        memory = await self._memory_counts(problem, tokenized, [episode.memories for episode in done])
        notes = RolloutNotes(
            seconds=time.perf_counter() - begin,
            went_on=sum(run.generated > 0 for run in runs) if go_on else 0,
        )
        return pack_group(problem.id, done, memory), notes

    async def answer(
        self,
        problem: Problem,
        method: str,
        sampling: Sampling,
        memories: int,
        transcript: bool = False,
        responses: bool = False,
    ) -> AnswerRecord:
        """Run one episode for its answer: of its memories the text of the last `memories`, of its tokens the numbers,
        or if `transcript`, all; if `responses`, those of the responses.

        Response number i is sampled with the seed `sampling.seed` + i.

        Raises:
            BadRow: as `rollout`.
            TypeError: the agent's answer is no text.
            TimeoutError: one of its responses took longer than generator.timeout_s.
        """
        agent, tokenized = await self._tokenize(problem, method)
        recorder = AnswerRecorder(self._generate_in_time, sampling, transcript, responses)
        answer = recorder.answer(await self._unless_engine_dies(run_agent(agent, tokenized, recorder)))
        (counts,) = await self._memory_counts(problem, tokenized, [answer.memories])
        return recorder.record(answer, tokenized, self._tokenizer, memories, counts)

    async def tokens_done(self) -> int:
        """How many tokens it has read and written for `answer` since it was started."""
        return self._tokens_done

    async def _generate_in_time(self, prompt: list[int], max_tokens: int, sampling: Sampling) -> Completion:
        limit = self.config.generator.timeout_s
        try:
            async with asyncio.timeout(limit):
                response = await self.generate(prompt, max_tokens, sampling)
        except TimeoutError:
            raise TimeoutError(f"no response within generator.timeout_s={limit}") from None
        self._tokens_done += len(prompt) + len(response.tokens)
        return response

    async def generate(self, prompt: list[int], max_tokens: int, sampling: Sampling) -> Completion:
        """One response. Raises `Draining`."""
        if self._draining:
            raise Draining(f"{self.name} is on a node that is being drained")
        return await self.engine.generate(prompt, max_tokens, sampling)

    async def finish(self, conversation: Finished) -> None:
        """Note a finished conversation where it outlives this process."""
        await self._journal.write(conversation)

    async def _tokenize(self, problem: Problem, method: str) -> tuple[Agent, object]:
        """The agent of a method, and the problem tokenized for it."""

        def tokenize() -> tuple[Agent, object]:
            # The agent is made here too: to encode its prompts is to switch the tokenizer to special tokens and back.
            if method not in self._agents:
                self._agents[method] = load_agent(method)(self._tokenizer, self.config.agent)
            return self._agents[method], self._agents[method].tokenize(problem)

        return await self._with_tokenizer(tokenize)

    async def _memory_counts(
        self, problem: Problem, tokenized: object, episodes: list[Memories]
    ) -> tuple[MemoryCounts, ...]:
        """What the memories of each episode did."""
        return await self._with_tokenizer(
            count_memories, problem, tokenized, self._tokenizer, self.config.agent, episodes
        )

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

    async def load_weights(self, weights: Weights) -> float:
        """Switch to new weights while episodes run; return the pause in seconds.

        Raises:
            WeightsLost: they cannot be fetched any more; those in use stay.
            Exception: the receiver's own, of its `fetch`; the weights in use stay.
        """
        async with self._receivers[weights.transport].fetch(weights) as parts:
            try:
                return await self.engine.load_weights(weights.version, weights.transport, parts)
            except Exception:
                if self._closing:  # `close` ended the engine while it loaded, and nobody waits for the weights
                    return 0.0
                log.exception("generator %s could not load weights of version %d", self.name, weights.version)
                self._die("new weights failed to load, so the engine's are in doubt")

    async def heartbeat(self) -> None:
        """Returns when the engine's loop has come round once more."""
        await self._unless_engine_dies(self.engine.heartbeat())

    async def drain(self) -> None:
        """Begin no more conversations: what is under way ends with `Draining` after those that are open."""
        self._draining = True

    async def until_death(self) -> None:
        """Never returns: the call fails when this actor's process ends, which tells its caller at once."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Stop the engine, which would otherwise leave its process and shared memory behind."""
        self._closing = True
        if self._started is not None:
            await self._started
            self._watching.cancel()
            self.engine.shutdown()

    async def _watch_engine(self) -> None:
        """Notice that the engine process died. What waits for it, such as loading weights, may never be told."""
        while not self.engine.is_dead:
            await asyncio.sleep(1)
        self._die("the vLLM engine process is dead")

    def _die(self, why: str) -> NoReturn:
        """End this actor's process: the pool starts another, and the groups go on elsewhere."""
        log.error("generator %s ends itself: %s", self.name, why)
        os._exit(1)


class _Run:
    """One episode of a group: answers from the journal as long as there are some, then from the engine.

    Args:
        generator: on which it runs.
        group_id, episode: which one it is.
        sampling: of its responses.
        seed: of the group; None: they are not seeded.
        replay: of the conversations that are finished already.
    """

    def __init__(
        self,
        generator: "Generator",
        group_id: str,
        episode: int,
        sampling: Sampling,
        seed: tuple[int, ...] | None,
        replay: Replay,
    ):
        self._generator, self._group_id, self._episode = generator, group_id, episode
        self._sampling, self._seed, self._replay = sampling, seed, replay
        self.replayed = self.generated = 0

    async def episode(self, agent, tokenized) -> Episode | None:
        """Run it. None if the generator is drained: each episode stops where it is, and ends what it has open."""
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
        response = await self._generator.generate(prompt, max_tokens, sampling)
        await self._generator.finish(Finished(self._group_id, self._episode, digest(prompt), response))
        return response


async def gather_or_cancel(coroutines: list) -> list:
    """Like asyncio.gather, but the first failure, or being cancelled, ends them all: no request goes on unseen."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(c) for c in coroutines]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in running]
