"""The generator pool: generators join once they have started and loaded the current weights; they leave when they die,
hang, or their node is drained."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import ray
from ray.exceptions import RayError, RayTaskError

from actors.generation.generator import Draining, Generator
from actors.lifecycle.cluster import draining_nodes, is_alive
from actors.lifecycle.failures import DIED, Hung
from actors.lifecycle.pool import Pool, result_of
from pipeline.evaluation.answers import AnswerRecord
from pipeline.rollout.episodes import RolloutNotes
from pipeline.sections import GenerationConfig
from pipeline.weights.transport import FROM_DISK, Weights, WeightsLost

HEARTBEAT_S = 10.0  # between heartbeats; with a short generator.stall_s a tenth of it
DRAINING_S = 2.0  # between checks for draining nodes
USABLE_S = 1.0  # between checks of which generators are usable
TOKENS_WAIT_S = 5.0
CLOSE_S = 30.0  # limit for shutting down the engine of a drained generator

Usable = Callable[[str, int], bool]


class GeneratorLost(RuntimeError):
    """The generator died or left while it had work.

    Attributes:
        blame: whether the work may have killed it: no other cause is known. False if its node is gone or draining, if
            it died or failed while loading weights, or if the pool ended it for another reason than hanging.
    """

    def __init__(self, message: str, blame: bool = False):
        super().__init__(message)
        self.blame = blame


class GeneratorLeft(GeneratorLost):
    """The generator left because its node is being drained. No conversation was lost."""


@dataclass
class Member:
    """A generator in service."""

    actor: object
    node: str
    version: int  # of its weights
    room: int = 0  # conversations that its engine decodes together
    open: int = 0  # number of calls in progress
    tokens: int = 0  # number read and written for answers
    loading: bool = False  # whether it is loading weights, or was when it was lost
    ended: bool = False  # whether the pool ended it for another reason than hanging


class Versions(Mapping[str, int]):
    """A live view of the weight versions of the generators in service, by name."""

    def __init__(self, members: Mapping[str, Member]):
        self._members = members

    def __getitem__(self, name: str) -> int:
        return self._members[name].version

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


class GeneratorPool(Pool):
    """Lives in the job actor; the generators are actors.

    Args:
        config: the job's configuration.
        say: called with each progress line.
        journal: the journal for finished conversations; None if the job does not train.
        joined: called whenever a generator can be given work with the weights of its entry in `versions`; gets its name
            and the pause for loading them in seconds (None if it was not yet in service).
        left: called with the name of a generator that is out of service.
    """

    def __init__(
        self,
        config: GenerationConfig,
        say: Callable[[str], None],
        journal=None,
        joined: Callable[[str, float | None], None] = lambda *_: None,
        left: Callable[[str], None] = lambda _: None,
    ):
        g = config.generator
        super().__init__("generator", g.count, g.min_count, say)
        self.config, self._journal, self._joined, self._left = config, journal, joined, left
        self._members: dict[str, Member] = {}
        self.versions: Mapping[str, int] = Versions(self._members)
        self._weights = FROM_DISK
        self._published = asyncio.Condition()
        self._draining: set[str] = set()  # nodes
        self._drained = asyncio.Condition()  # `_draining` has changed: rarer than `_changed`, for all members at once
        self._tokens_of_the_gone = 0
        self.engine_version = ""
        self.room = g.max_sequences  # conversations that an engine decodes together; 0: not yet known

    def make(self, number: int):
        g = self.config.generator
        return Generator.options(num_cpus=g.num_cpus, num_gpus=g.num_gpus, resources=dict(g.resources)).remote(
            f"generator-{number}", self.config, self.config.run.seed + number, self._journal
        )

    async def run(self) -> None:
        looking = asyncio.create_task(self._look_for_drained_nodes())
        try:
            await super().run()
        finally:
            looking.cancel()

    async def serve(self, name: str, actor) -> str:
        # At the start of a training run; a node that has worked had the room.
        check_room = self._journal is not None and not self._were_ready
        self.engine_version, node = await actor.start.remote(check_room)
        self.room = self.config.generator.max_sequences or await actor.max_sequences.remote()
        member = Member(actor, node, version=0, room=self.room)
        await self._while_alive(name, member, self._load_newer(name, member))
        self._members[name] = member
        self._joined(name, None)
        await self.enter(name)
        if self._were_ready:
            self._say(f"· {name} is in service")
        watched = [
            asyncio.create_task(work)
            for work in (
                result_of(actor.until_death.remote()),
                self._follow_weights(name, member),
                self._feel_pulse(name, member),
                self._until_drained(member),
            )
        ]
        try:
            (first, *_), _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            first.result()  # all but the last can only end with an error
            member.ended = True
            await self.leave(name)
            await self._drain(name, member)
            with contextlib.suppress(Exception):  # it leaves anyway; what it keeps in shared memory may stay
                await asyncio.wait_for(result_of(member.actor.close.remote()), CLOSE_S)
            return f"left node {member.node[:8]}, which is being drained"
        except RayTaskError:
            member.ended = True
            raise
        finally:
            for task in watched:
                task.cancel()

    async def leave(self, name: str) -> None:
        if member := self._members.pop(name, None):
            self._tokens_of_the_gone += member.tokens
            self._left(name)
        await super().leave(name)

    async def _died(self, name: str, member: Member) -> GeneratorLost:
        """Put a dead generator out of service at once, so that lost work is not given to it again; return the error."""
        if self._members.get(name) is member:
            await self.leave(name)
        excused = member.loading or member.ended or member.node in self._draining
        return GeneratorLost(f"{name} died", blame=not excused and await is_alive(member.node))

    async def publish(self, weights: Weights) -> None:
        """Have all generators load these weights, including those that join later."""
        async with self._published:
            self._weights = weights
            self._published.notify_all()

    @property
    def sequences(self) -> int:
        """How many conversations the generators in service decode together."""
        return sum(member.room for member in self._members.values())

    # Work.

    async def rollout(self, name: str, *arguments) -> tuple[ray.ObjectRef, RolloutNotes]:
        """Call `Generator.rollout`; return a reference to the group, and the notes.

        Raises:
            TimeoutError: the rollout took longer than generator.timeout_s and was cancelled.
            GeneratorLost: the generator died or is leaving.
            Exception: an error that the generator raised.
        """
        if name not in self._members:
            raise GeneratorLeft(f"{name} is gone")
        member = self._members[name]
        group, notes = member.actor.rollout.options(num_returns=2).remote(*arguments)
        timeout_s = self.config.generator.timeout_s
        limit = asyncio.timeout(timeout_s)
        try:
            async with self._call(member):
                with self._busy[name].work():
                    async with limit:
                        return group, await notes
        except Exception as error:
            if limit.expired():  # else a TimeoutError is the agent's own
                ray.cancel(notes)
                raise TimeoutError(f"no episodes within generator.timeout_s={timeout_s}") from None
            with contextlib.suppress(Exception):
                await group  # failed like the notes; Ray prints the traceback of an error that is never read
            if isinstance(error, DIED):
                raise await self._died(name, member) from error
            if isinstance(error, Draining):
                raise GeneratorLeft(f"{name} leaves") from error
            raise

    async def answer(self, *arguments, usable: Usable = lambda name, version: True) -> AnswerRecord:
        """Wait for room, then call `Generator.answer` of the generator with the fewest open calls.

        Args:
            arguments: those of `Generator.answer`.
            usable: whether a generator with this name and weight version may answer.

        Raises:
            GeneratorLost: the generator died or is leaving.
            Exception: an error that the generator raised.
        """

        def free() -> list[tuple[str, Member]]:
            return [(name, m) for name, m in self._members.items() if m.open < m.room and usable(name, m.version)]

        while not (found := free()):
            async with self._changed:  # what makes a generator usable may change without a notice
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), USABLE_S)
        name, member = min(found, key=lambda item: item[1].open)
        answer = member.actor.answer.remote(*arguments)
        try:
            async with self._call(member):
                return await answer
        except asyncio.CancelledError:
            ray.cancel(answer)  # else the generator would read on
            raise
        except DIED as error:
            raise await self._died(name, member) from error
        except Draining as error:
            raise GeneratorLeft(f"{name} leaves") from error

    @contextlib.asynccontextmanager
    async def _call(self, member: Member):
        """Context manager that spans one call to a generator."""
        member.open += 1
        try:
            yield
        finally:
            member.open -= 1
            async with self._changed:
                self._changed.notify_all()

    async def tokens_done(self) -> int:
        """The number of tokens read and written for answers, as of each generator's last reply."""
        members = list(self._members.values())
        asked = {asyncio.ensure_future(result_of(m.actor.tokens_done.remote())): m for m in members}
        if asked:
            done, pending = await asyncio.wait(asked, timeout=TOKENS_WAIT_S)
            for task in pending:
                task.cancel()
            for task in done:
                if not task.exception():
                    asked[task].tokens = task.result()
        return self._tokens_of_the_gone + sum(m.tokens for m in self._members.values())

    async def close(self) -> None:
        closing = (result_of(m.actor.close.remote()) for m in self._members.values())
        await asyncio.gather(*closing, return_exceptions=True)  # one that cannot close is killed with the others
        await super().close()

    # One generator in service.

    async def _load_newer(self, name: str, member: Member) -> float | None:
        """Load published weights until none are newer; return the last pause in seconds."""
        pause_s = None
        while (weights := self._weights).version > member.version:
            try:
                member.loading = True  # stays true if loading fails
                pause_s = await member.actor.load_weights.remote(weights)
                member.version, member.loading = weights.version, False
            except Hung as error:
                raise cast(RayTaskError, error).cause from None
            except WeightsLost:  # the learners that sent them are gone; the next ones will publish
                member.loading = False
                self._say(f"· {name}: the weights of version {weights.version} are lost; waiting for the next version")
                while self._weights is weights:
                    async with self._published:
                        await self._published.wait()
        return pause_s

    async def _follow_weights(self, name: str, member: Member) -> None:
        while True:
            async with self._published:
                await self._published.wait_for(lambda: self._weights.version > member.version)
            pause_s = await self._load_newer(name, member)
            if name in self._members:  # otherwise it is being drained
                self._joined(name, pause_s)

    async def _feel_pulse(self, name: str, member: Member) -> None:
        """Raise `Hung` if the engine, which answers between decoding steps, is silent for generator.stall_s."""
        limit = self.config.generator.stall_s
        while True:
            try:
                async with asyncio.timeout(limit):
                    await member.actor.heartbeat.remote()
            except TimeoutError:
                raise Hung(f"hung: its engine did nothing for generator.stall_s={limit:g}") from None
            await asyncio.sleep(min(HEARTBEAT_S, limit / 10))

    async def _while_alive(self, name: str, member: Member, work: Coroutine) -> None:
        """Wait for `work`. Raises `Hung` if the engine is silent meanwhile (`_feel_pulse`)."""
        both = [asyncio.create_task(one) for one in (work, self._feel_pulse(name, member))]
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in both:
                task.cancel()

    async def _until_drained(self, member: Member) -> None:
        async with self._drained:
            await self._drained.wait_for(lambda: member.node in self._draining)

    async def _drain(self, name: str, member: Member) -> None:
        """Let open conversations finish, for at most generator.drain_s seconds."""
        limit = self.config.generator.drain_s
        self._say(f"· {name} leaves a node that is being drained; its groups continue on other generators")
        try:
            async with asyncio.timeout(limit):
                await member.actor.drain.remote()
                async with self._changed:
                    await self._changed.wait_for(lambda: not member.open)
        except TimeoutError:
            self._say(f"· {name} still had open conversations after generator.drain_s={limit:g}; they start over")

    async def _look_for_drained_nodes(self) -> None:
        while True:
            draining = self._draining
            with contextlib.suppress(RayError, OSError):  # the cluster's head may be unreachable for a while
                draining = await asyncio.to_thread(draining_nodes)
            if draining != self._draining:
                async with self._drained:
                    self._draining = draining
                    self._drained.notify_all()
            await asyncio.sleep(DRAINING_S)
