"""Readings that requests have started: run, followed, stopped, cancelled, limited, and forgotten in time."""

import asyncio
import contextlib
import contextvars
import copy
import functools
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.agents.reader import Reader
from pipeline.asking.documents import BETWEEN, PLAIN, placed_text
from pipeline.asking.sections import Place, PlacedText
from pipeline.asking.session import Answered, Event, Generate, Reading, SectionRead
from pipeline.errors import BadRow, ConfigError, DataError, QuestionTooLong, RunFailed, reason_of
from pipeline.rollout.episodes import Sampling
from pipeline.serving.config import LimitSection
from pipeline.serving.errors import RequestError
from pipeline.serving.files import FileStore, StoredFile

ALIVE_S = 15.0  # followers hear something after so many seconds
LOG_BYTES = 8 << 20  # of the memories that a reading's log holds; older ones are dropped
RETRY_S = 5
MESSAGE = "message"  # the file's name in places of text that came in a message
POOLED = 16  # agents that are kept for later readings

log = logging.getLogger(__name__)

Document = StoredFile | str


@dataclass
class Run:
    """A reading and what has come of it.

    Attributes:
        repeated: fields of the request that the response repeats.
        status: in_progress, completed, failed or cancelled.
        events: what is held of the log; `dropped` events came before.
        error: why it failed.
    """

    id: str
    owner: str
    question: str
    documents: tuple[Document, ...]
    model: str
    created: float
    used: float
    repeated: Mapping[str, Any] = field(default_factory=dict)
    status: str = "in_progress"
    answered: Answered | None = None
    error: RequestError | None = None
    events: deque[Event] = field(default_factory=deque)
    dropped: int = 0
    read: int = 0  # sections
    reading: Reading | None = None
    task: asyncio.Task | None = None
    _bytes: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_over(self) -> bool:
        return self.status != "in_progress"

    def names(self) -> dict[str, StoredFile]:
        """The stored documents by the names that places have: those of the files, made distinct."""
        found: dict[str, StoredFile] = {}
        for file in self.documents:
            if isinstance(file, StoredFile):
                found[file.name if file.name not in (*found, MESSAGE) else f"{file.name} ({file.id})"] = file
        return found

    def put(self, event: Event) -> None:
        self.events.append(event)
        self._bytes += _size(event)
        while self._bytes > LOG_BYTES and len(self.events) > 1:
            self._bytes -= _size(self.events.popleft())
            self.dropped += 1
        self.tell()

    def tell(self) -> None:
        """Wake whoever follows."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def follow(self, begin: int = 0) -> AsyncGenerator[tuple[int, Event | None], None]:
        """The events from number `begin` on, with their numbers, until the reading is over. None: none for a while.

        Raises:
            RequestError: that event is not held any more.
        """
        number = begin
        while True:
            if number < self.dropped:
                raise RequestError(400, "these events are not held any more; get the response", code="events_dropped")
            changed = self._changed
            if number < self.dropped + len(self.events):
                yield number, self.events[number - self.dropped]
                number += 1
            elif self.is_over:
                return
            else:
                try:
                    await asyncio.wait_for(changed.wait(), ALIVE_S)
                except TimeoutError:
                    yield number, None


class Readings:
    """All readings of a server.

    Args:
        limits: what one key may use.
        generate: samples responses.
        make_agent: makes an agent with a tokenizer of its own: method -> agent.
        files: the files of the keys.
    """

    def __init__(
        self,
        limits: LimitSection,
        generate: Generate,
        make_agent: Callable[[str], Reader],
        files: FileStore,
    ):
        self._limits, self._generate, self._make_agent, self._files = limits, generate, make_agent, files
        self._runs: dict[str, Run] = {}
        self._agents: dict[str, list[Reader]] = {}
        self.observers: list[Callable[[Run, Event | None], None]] = []  # called with each event; None: it is over

    async def start(
        self,
        owner: str,
        question: str,
        documents: tuple[Document, ...],
        method: str,
        sampling: Sampling,
        model: str = "",
        answer_tokens: int | None = None,
        repeated: Mapping[str, Any] | None = None,
    ) -> Run:
        """Start a reading. `repeated`: fields of the request that its response repeats.

        Raises:
            RequestError: a limit is reached (429), the question is too long (400), or a file is gone (404).
        """
        self.expire()
        self.admit(owner)
        now = time.time()
        run = Run(f"resp_{secrets.token_hex(16)}", owner, question, documents, model, now, now, repeated or {})
        holds, agent = contextlib.ExitStack(), None
        try:
            for file in documents:
                if isinstance(file, StoredFile):
                    holds.enter_context(self._files.hold(file))
            self._runs[run.id] = run  # counts from here on
            agent = await self._agent(method)
            reader = copy.copy(agent)  # the pool's own keeps its limits
            if answer_tokens is not None:
                answer_tokens = min(answer_tokens, agent.config.answer_tokens)
                reader.config = replace(agent.config, answer_tokens=answer_tokens)
            try:
                run.reading = Reading(
                    question, self._pieces(run), reader, self._generate, sampling, None, _bytes_of(documents)
                )
            except QuestionTooLong as error:
                raise RequestError(400, reason_of(error), code="question_too_long") from None
        except BaseException:
            holds.close()
            self._runs.pop(run.id, None)
            if agent is not None:
                self._give_back(method, agent)
            raise
        # In a context of its own: Ray Serve cancels what was called in that of a request whose client goes.
        run.task = asyncio.create_task(self._run(run, run.reading), context=contextvars.Context())
        run.task.add_done_callback(functools.partial(self._end, run, holds, method, agent))
        return run

    def get(self, owner: str, id: str) -> Run:
        """A reading of this owner. Raises `RequestError` if there is none."""
        self.expire()
        run = self._runs.get(id)
        if run is None or run.owner != owner:
            raise RequestError(404, f"there is no response {id[:60]!r}; it may have expired", code="not_found")
        run.used = time.time()
        return run

    def stop(self, run: Run) -> None:
        """Read no more, and answer from the present memory.

        Raises:
            RequestError: there is no memory yet, or it is over (409).
        """
        if run.is_over or run.reading is None:
            raise RequestError(409, f"the response is {run.status} already", code="over")
        if not run.reading.stop():
            raise RequestError(409, "no section has been read yet; cancel it instead", code="no_memory")

    async def cancel(self, run: Run) -> None:
        """End a reading without an answer, and wait until its place is free."""
        if run.task is not None and not run.is_over:
            run.task.cancel()
            await asyncio.wait([run.task])

    async def remove(self, run: Run) -> None:
        """Forget a reading; one that is not over is cancelled."""
        await self.cancel(run)
        self._runs.pop(run.id, None)

    async def ask(self, owner: str, question: str, documents: list[StoredFile], method: str, sampling: Sampling):
        """The events of a reading that ends when the generator is closed, for MCP.

        Raises:
            RequestError: it cannot be answered.
        """
        run = await self.start(owner, question, tuple(documents), method, sampling)
        try:
            async for _, event in run.follow():
                if event is not None:
                    yield event
            if run.error is not None:
                raise run.error
        finally:
            await self.remove(run)

    def expire(self) -> int:
        """Forget readings that were over and last used longer than keep_s ago, or are too many; return how many."""
        before = time.time() - self._limits.keep_s
        owners: dict[str, list[Run]] = {}
        for run in sorted(self._runs.values(), key=lambda run: -run.used):
            if run.is_over:
                owners.setdefault(run.owner, []).append(run)
        gone = [
            run
            for kept in owners.values()
            for number, run in enumerate(kept)
            if run.used < before or number >= self._limits.responses
        ]
        for run in gone:
            del self._runs[run.id]
        return len(gone)

    def count(self, owner: str | None = None) -> int:
        """Readings that are not over, of this owner or of all."""
        return sum(not run.is_over and owner in (None, run.owner) for run in self._runs.values())

    async def check(self, method: str, fits: Callable[[Reader, str], bool]) -> Callable[[str], bool]:
        """A test of texts with an agent of this method."""
        agent = await self._agent(method)
        self._give_back(method, agent)
        return functools.partial(fits, agent)  # used at once: nothing else runs in between

    async def close(self) -> None:
        """Cancel all readings."""
        for run in list(self._runs.values()):
            await self.cancel(run)

    def admit(self, owner: str) -> None:
        """Raises `RequestError` (429) if this owner may not start a reading now."""
        if self.count(owner) >= self._limits.readings:
            said = f"this key has {self._limits.readings} readings, the limit; wait for one to end"
        elif self.count() >= self._limits.all_readings:
            said = "the server has as many readings as it takes; try again later"
        else:
            return
        raise RequestError(429, said, "rate_limit_error", "rate_limit_exceeded", retry_after=RETRY_S)

    async def _agent(self, method: str) -> Reader:
        free = self._agents.setdefault(method, [])
        return free.pop() if free else await asyncio.to_thread(self._make_agent, method)

    def _give_back(self, method: str, agent: Reader) -> None:
        if len(self._agents[method]) < POOLED:
            self._agents[method].append(agent)

    def _pieces(self, run: Run) -> Iterator[PlacedText]:
        names = {file.id: name for name, file in run.names().items()}
        for number, document in enumerate(run.documents):
            if isinstance(document, str):
                yield PlacedText(document, Place(MESSAGE, None, 1))
                place = Place(MESSAGE, None, document.count("\n") + 1)
            else:
                for piece in placed_text(document.path, names[document.id], self._files.parse_limits):
                    place = piece.place
                    yield piece
            if number + 1 < len(run.documents):
                yield PlacedText(BETWEEN, place)

    async def _run(self, run: Run, reading: Reading) -> None:
        try:
            async with asyncio.timeout(self._limits.reading_s):
                async with contextlib.aclosing(reading.events()) as events:
                    async for event in events:
                        if isinstance(event, Answered):
                            run.answered = event
                        else:
                            run.read += 1
                        run.put(event)
                        self._observe(run, event)
        except TimeoutError:
            run.error = RequestError(
                504,
                f"the reading took longer than {self._limits.reading_s:g} seconds, the limit",
                "server_error",
                "time_limit",
            )
        except (BadRow, DataError, ConfigError) as error:
            run.error = RequestError(400, reason_of(error), code="unreadable_document")
        except RequestError as error:
            run.error = error
        except RunFailed as error:
            run.error = RequestError(503, reason_of(error), "server_error", "no_engine", retry_after=RETRY_S)
        except Exception as error:
            log.error("a reading failed: %s", type(error).__name__, exc_info=error)
            run.error = RequestError(500, f"the reading failed: {type(error).__name__}", "server_error", "failed")

    def _end(self, run: Run, holds: contextlib.ExitStack, method: str, agent: Reader, task: asyncio.Task) -> None:
        """Called when the task of a reading is over, also if it was cancelled before it began."""
        run.reading = run.task = None  # its frames hold the document's text
        if not task.cancelled() and run.error is None:  # else a thread may still use its tokenizer
            self._give_back(method, agent)
        if task.cancelled():
            run.error = RequestError(409, "the reading was cancelled", code="cancelled")
        run.status = "cancelled" if task.cancelled() else "completed" if run.error is None else "failed"
        run.used = time.time()
        holds.close()
        self._observe(run, None)
        run.tell()

    def _observe(self, run: Run, event: Event | None) -> None:
        for observer in self.observers:
            observer(run, event)


def _bytes_of(documents: tuple[Document, ...]) -> int:
    """About how many bytes the text has: parsed files are taken to have one for each character."""
    return sum(
        len(document.encode(errors="replace"))
        if isinstance(document, str)
        else document.bytes
        if document.kind in PLAIN
        else document.characters or 0
        for document in documents
    )


def _size(event: Event) -> int:
    if isinstance(event, SectionRead):
        return len(event.memory) + sum(len(span.text) for span in event.changes) + 500
    return len(event.text) + len(event.memory) + 500
