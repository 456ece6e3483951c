"""A reading: an agent reads a document for one question and answers it, with an event for each section.

The agent is that of training and evaluation, run by the same code (`run_agent`, `AnswerRecorder`). What differs: the
document is streamed (`StreamedDocument`), it may be ended early, and finished conversations are kept.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.agents.concat import ConcatAgent
from pipeline.agents.direct import DirectAgent
from pipeline.agents.reader import Reader
from pipeline.asking.differences import Span, differences
from pipeline.asking.kept import KeptCompletion, NothingKept
from pipeline.asking.sections import Place, PlacedText, Section, StreamedDocument
from pipeline.asking.sources import Source, Trail, sources_in_text
from pipeline.errors import ConfigError
from pipeline.evaluation.answers import AnswerRecorder
from pipeline.problems import Problem
from pipeline.rewards.scoring import last_box
from pipeline.rollout.episodes import Completion, Sampling, run_agent

MEMORY = "memory"  # the role of the conversations that read a section each, in the order of the sections

# (prompt tokens, limit of the response, sampling) -> Completion
Generate = Callable[[list[int], int, Sampling], Awaitable[Completion]]


@dataclass(frozen=True)
class SectionRead:
    """A section was read.

    Attributes:
        number: the section's number, from 1.
        sections: the number of all sections; None: not known yet, not even roughly.
        is_estimate: whether `sections` is estimated from the sizes of the files.
        place: where the section begins.
        memory: the memory after it; of an agent that reads sections independently, the memory of this section.
        changes: the difference to the memory before.
        is_cut: whether the memory reached its limit of tokens.
        is_kept: whether the memory comes from an earlier reading.
        prompt_tokens, response_tokens: tokens of the conversation.
        seconds: its time.
    """

    number: int
    sections: int | None
    is_estimate: bool
    place: Place
    memory: str
    changes: tuple[Span, ...]
    is_cut: bool
    is_kept: bool
    prompt_tokens: int
    response_tokens: int
    seconds: float


@dataclass(frozen=True)
class Answered:
    """The answer.

    Attributes:
        answer: the content of the answer's last box; the whole text if it has none.
        text: the whole text of the answer.
        sources: where it comes from by text match; empty if nothing was found.
        memory: the memory that it was given from; empty for an agent without one.
        sections: how many sections were read.
        is_whole: whether these are all: False if the reading was ended early, or the window is too small.
        unread_tokens: tokens that were cut out because they do not fit the window.
        is_cut: whether the answer reached its limit of tokens.
        kept_conversations: how many conversations come from an earlier reading.
        prompt_tokens, response_tokens: tokens of the other conversations.
        seconds: the time of the reading.
    """

    answer: str
    text: str
    sources: tuple[Source, ...]
    memory: str
    sections: int
    is_whole: bool
    unread_tokens: int
    is_cut: bool
    kept_conversations: int
    prompt_tokens: int
    response_tokens: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Answered":
        """Raises TypeError or KeyError if the row has other fields."""
        sources = tuple(
            Source(**s | {"place": Place(**s["place"]), "words": tuple(s["words"])}) for s in row["sources"]
        )
        return cls(**row | {"sources": sources})


Event = SectionRead | Answered


class Reading:
    """One reading of a document for one question.

    Args:
        question: the question.
        pieces: the document's text in order.
        agent: a `Reader` with its own tokenizer and settings, which `check_agent` accepts.
        generate: samples responses (`Generate`).
        sampling: the sampling; response number i gets the seed `sampling.seed` + i.
        kept: where conversations are kept.
        document_bytes: size of the document's text as UTF-8, to estimate the number of sections; None: not known. May
            be set later.

    Raises:
        QuestionTooLong: the question is longer than agent.problem_tokens.
    """

    def __init__(
        self,
        question: str,
        pieces: Iterable[PlacedText],
        agent: Reader,
        generate: Generate,
        sampling: Sampling,
        kept: NothingKept | None = None,
        document_bytes: int | None = None,
    ):
        self._agent, self._generate, self._kept = agent, generate, kept or NothingKept()
        self.document_bytes = document_bytes
        tokens = agent.encode_question(Problem("asked", question, ()))
        config = agent.config
        self._document = StreamedDocument(
            tokens, pieces, agent.tokenizer, config.chunk_tokens, config.document_tokens, self._take
        )
        self._recorder = AnswerRecorder(self._respond, sampling, transcript=False)
        self._question, self._independent = question, isinstance(agent, ConcatAgent)
        self._trail = Trail(question, self._independent)
        self._taken: dict[int, Section] = {}  # by number; those that the agent has not read yet
        self._begun = self._read = self._from_kept = self._prompt_tokens = self._response_tokens = 0
        self._memory = ""
        self._events: asyncio.Queue[SectionRead | None] = asyncio.Queue()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Read, and yield a `SectionRead` for each section and `Answered` at the end.

        Raises:
            BadRow: the document is empty or too long.
            ConfigError: the tokenizer cannot be used.
            Exception: an error of the document's pieces or of `generate`.
        """
        reading = asyncio.create_task(self._answer())
        reading.add_done_callback(lambda _: self._events.put_nowait(None))
        try:
            while (event := await self._events.get()) is not None:
                yield event
            yield await reading
        finally:
            self._document.abandon()  # a thread cannot be cancelled
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reading
            if not self._document.ended:
                await asyncio.to_thread(self._document.close)

    def stop(self) -> bool:
        """Read no more sections and answer from the memory. The sections that are being read are finished first.

        Returns:
            Whether there will be an answer: False if no section has begun, or the agent has no memory.
        """
        if self._begun:
            self._document.stop()
        return self._begun > 0

    async def _answer(self) -> Answered:
        begin, document, agent = time.perf_counter(), self._document, self._agent
        whole = isinstance(agent, DirectAgent)
        await asyncio.to_thread(document.read_whole if whole else document.prepare)
        answer = self._recorder.answer(await run_agent(agent, document, self._llm))
        box = last_box(answer.text)
        shown = answer.text if box is None else box
        unread = 0
        if isinstance(agent, DirectAgent):
            unread, sections = _unread(agent, document, self._taken)
            sources = await asyncio.to_thread(sources_in_text, sections, self._question, shown)
        else:
            sources = self._trail.sources(shown)
        answered = Answered(
            answer=shown.strip(),
            text=answer.text,
            sources=sources,
            memory=self._memory,
            sections=document.sections if whole else self._read,
            is_whole=document.is_used_up and not unread,
            unread_tokens=unread,
            is_cut=bool(answer.cut),
            kept_conversations=self._from_kept,
            prompt_tokens=self._prompt_tokens,
            response_tokens=self._response_tokens,
            seconds=time.perf_counter() - begin,
        )
        if document.is_used_up:
            self._kept.finish(answered.to_json())
        return answered

    def _take(self, section: Section) -> None:
        self._taken[section.number] = section

    async def _llm(self, prompt: list[int], max_tokens: int, role: str) -> Completion:
        """The agent's `llm`. The next section is prepared while the response is generated."""
        section = None
        if role == MEMORY:
            self._begun += 1
            section = self._taken.pop(self._begun, None)  # none: the agent has several of these for a section
        begin = time.perf_counter()
        preparing = asyncio.ensure_future(asyncio.to_thread(self._document.prepare))
        try:
            response = await self._recorder(prompt, max_tokens, role)
        finally:
            await asyncio.wait([preparing])  # a thread cannot be cancelled
        if section is not None:
            seconds = time.perf_counter() - begin
            # Another section may be prepared meanwhile, which uses the tokenizer, if the agent reads several at once.
            if self._independent:
                memory = await asyncio.to_thread(self._memory_of, response)
            else:
                memory = self._memory_of(response)
            self._section_read(section, prompt, response, memory, seconds)
        await preparing
        return response

    async def _respond(self, prompt: list[int], max_tokens: int, sampling: Sampling) -> Completion:
        if (kept := self._kept.take(prompt)) is not None:
            self._from_kept += 1
            return kept
        response = await self._generate(prompt, max_tokens, sampling)
        self._prompt_tokens += len(prompt)
        self._response_tokens += len(response.tokens)
        self._kept.add(prompt, response)
        return response

    def _memory_of(self, response: Completion) -> str:
        with self._document.lock:
            return self._agent.tokenizer.decode(self._agent.tokens_of(response), skip_special_tokens=True)

    def _section_read(
        self, section: Section, prompt: list[int], response: Completion, memory: str, seconds: float
    ) -> None:
        self._read += 1
        self._trail.read(section, memory)
        sections, is_estimate = self._sections()
        self._events.put_nowait(
            SectionRead(
                number=section.number,
                sections=sections,
                is_estimate=is_estimate,
                place=section.place(),
                memory=memory,
                changes=differences("" if self._independent else self._memory, memory),
                is_cut=response.finish_reason == "length",
                is_kept=isinstance(response, KeptCompletion),
                prompt_tokens=len(prompt),
                response_tokens=len(response.tokens),
                seconds=seconds,
            )
        )
        self._memory = memory

    def _sections(self) -> tuple[int | None, bool]:
        """The number of all sections, and whether it is estimated."""
        document = self._document
        if document.ended:
            return document.sections, False
        if self.document_bytes is None:
            return None, True
        tokens = document.tokens * self.document_bytes / max(document.bytes, 1)
        return max(math.ceil(tokens / document.chunk_tokens), document.sections), True


def check_agent(method: str, agent: type) -> type[Reader]:
    """Check that a class of agents can read a streamed document, and return it.

    Raises:
        ConfigError: it is no `Reader`, or tokenizes problems in a way of its own.
    """
    if not (issubclass(agent, Reader) and agent.tokenize is Reader.tokenize):
        raise ConfigError(
            f"the method {method!r} cannot be asked: it must be memory, direct, concat, or a class of your own that "
            "has the methods of pipeline.agents.reader.Reader and does not override tokenize"
        )
    return agent


def _unread(agent: DirectAgent, document: StreamedDocument, taken: dict[int, Section]) -> tuple[int, list[Section]]:
    """How many tokens the agent cut out of the document, and the sections of which it read something."""
    size = len(document.document)
    empty = agent.prompts.fill("direct", problem=document.question, document=[])
    read = np.asarray(agent.fit(range(size), empty))
    numbers = np.unique(read // document.chunk_tokens) + 1
    return size - len(read), [taken[number] for number in numbers.tolist()]
