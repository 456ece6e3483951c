"""Follows a problem's needed facts through the memories of an episode: are they written, kept and used?

A problem's metadata may list its needed facts:

- `needed` has their texts.
- `needed_values` has what a memory must contain to hold each, in whatever words: a value, or a list of several. Without
  it a memory must contain the text.
- `needed_at` has the position of each fact in the document, in tokens from 0. Where it is missing or counts the tokens
  of another tokenizer, the fact is looked for.
- If `hops` is 1, the facts are independent of each other. Else each builds on those before it: in a chain of two, the
  bridge comes first.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from pipeline.agents.prompts import load_template
from pipeline.end_tokens import end_tokens, without_end
from pipeline.problems import Problem
from pipeline.rollout.answer import Memories
from pipeline.rollout.memory_counts import MemoryCounts, Ratio
from pipeline.rollout.reading import MOST_DOCUMENT, MOST_SECTION, Reading
from pipeline.sections import AgentSection
from pipeline.text import encode_text

MOST_FACTS = 100  # that are followed; a problem that lists more is one whose needs are unknown
WINDOW = 1024  # tokens on each side of the place where a fact is looked for first


@dataclass(frozen=True)
class NeededFact:
    """A fact without which the question cannot be answered."""

    text: str
    signs: tuple[str, ...]  # a memory that has all of them holds the fact; empty: only one that has the text does
    start: int | None  # position of its first token in the document; None: it is not there
    length: int  # tokens
    signs_length: int  # tokens of its signs
    builds_on: int  # number of preceding facts that must be known before this one is recognizable as needed

    def is_in(self, memory: str) -> bool:
        """Whether a memory holds the fact."""
        return self.text in memory or (bool(self.signs) and all(_has_word(sign, memory) for sign in self.signs))

    def useful_tokens(self, memory: str) -> int:
        """The tokens of a memory that belong to the fact, which it holds."""
        return self.length if self.text in memory else self.signs_length

    def chunk(self, size: int) -> int | None:
        """The index of the chunk of `size` tokens that holds the whole fact.

        None if a chunk boundary cuts the fact, or the document lacks it.
        """
        if self.start is None or self.start // size != (self.start + self.length - 1) // size:
            return None
        return self.start // size


def _has_word(sign: str, memory: str) -> bool:
    """Whether a memory contains a sign, and not only within a longer word or number (of ASCII characters)."""
    before = r"(?<![A-Za-z0-9])" if re.match(r"[A-Za-z0-9]", sign) else ""
    after = r"(?![A-Za-z0-9])" if re.search(r"[A-Za-z0-9]\Z", sign) else ""
    return re.search(before + re.escape(sign) + after, memory) is not None


def needed_facts(problem: Problem, document: np.ndarray, tokenizer) -> tuple[NeededFact, ...]:
    """The needed facts of a problem in order; empty if the metadata do not list them.

    Args:
        problem: the problem; its metadata may have `needed`, `needed_values`, `needed_at` and `hops`.
        document: the document's tokens as the agent reads them, int32 [N].
        tokenizer: the tokenizer that encoded the document.
    """
    texts = _texts(problem.metadata.get("needed"))
    if len(texts) > MOST_FACTS:
        return ()
    signs = [_signs(each) for each in _list(problem, "needed_values", len(texts))]
    places = _list(problem, "needed_at", len(texts))
    facts: list[NeededFact] = []
    decoded = ""
    for text, given, place in zip(texts, signs, places, strict=True):
        span = _span_near(text, place, document, tokenizer) if type(place) is int else None
        if not span:
            decoded = decoded or tokenizer.decode(document)
            span = _span_in(text, decoded, document, tokenizer)
        start, end = span or (None, None)
        length = len(encode_text(tokenizer, text)) if start is None or end is None else end - start
        signs_length = sum(len(encode_text(tokenizer, sign)) for sign in given)
        builds_on = 0 if problem.metadata.get("hops") == 1 else len(facts)
        facts.append(NeededFact(text, given, start, length, signs_length, builds_on))
    return tuple(facts)


def _texts(value: object) -> list[str]:
    """A list of texts without blanks around them; empty if the value is none."""
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        return []
    return [text.strip() for text in cast(list[str], value)]


def _signs(value: object) -> tuple[str, ...]:
    """The signs of a fact, given as a text or a list of texts; empty if there are none."""
    return tuple(_texts([value] if isinstance(value, str) else value))


def _list(problem: Problem, name: str, length: int) -> list:
    """The list of this name in the metadata; if it is no list of this length, one of None."""
    value = problem.metadata.get(name)
    return value if isinstance(value, list) and len(value) == length else [None] * length


def _span_in(text: str, decoded: str, document: np.ndarray, tokenizer) -> tuple[int, int] | None:
    """The tokens of a text in a document, from the first to behind the last; None if it is not there.

    Args:
        text: the text.
        decoded: the document's text.
        document: its tokens.
        tokenizer: the tokenizer.
    """
    begin = decoded.find(text)
    return None if begin < 0 else _span_near(text, len(document) * begin // len(decoded), document, tokenizer)


def _span_near(text: str, place: int, document: np.ndarray, tokenizer) -> tuple[int, int] | None:
    """The tokens of a text whose place is known or estimated: where it stands nearest to that place."""
    place, size = min(max(0, place), len(document)), WINDOW
    while True:
        first, last = max(0, place - size), min(len(document), place + size)
        window = document[first:last]
        decoded = tokenizer.decode(window)
        found = [match.start() for match in re.finditer(re.escape(text), decoded)]
        if found or (first == 0 and last == len(document)):
            break
        size *= 4
    if not found:
        return None
    expected = len(tokenizer.decode(window[: place - first]))
    begin = min(found, key=lambda character: abs(character - expected))

    def tokens_until(character: int) -> int:
        """The smallest number of tokens whose text has the first so many characters of the window, all whole."""
        wanted = decoded[:character]
        return bisect_left(
            range(len(window) + 1), True, key=lambda k: tokenizer.decode(window[:k])[:character] == wanted
        )

    # A token may hold the blank before the text, or a part of its first character.
    start = min(tokens_until(begin), tokens_until(begin + 1) - 1)
    return first + start, first + tokens_until(begin + len(text))


def trace_memories(
    problem: Problem, tokenized: object, tokenizer, config: AgentSection, episodes: Iterable[Memories]
) -> list["MemoryTrace"]:
    """Trace the memories of each episode of a problem. Facts are followed only in chained memories.

    Args:
        problem: the problem; its metadata may list its needed facts.
        tokenized: the result of the agent's `tokenize` for this problem.
        tokenizer: the model's tokenizer.
        config: the agent's section.
        episodes: the memories of each episode.
    """
    episodes, document = list(episodes), getattr(tokenized, "document", None)
    facts: tuple[NeededFact, ...] = ()
    if document is not None and any(memories.chained for memories in episodes):
        facts = needed_facts(problem, document, tokenizer)
    traces = []
    for memories in episodes:
        trace = MemoryTrace(tokenizer, config, facts if memories.chained else ())
        for tokens in memories.tokens:
            trace.add([int(token) for token in tokens])
        traces.append(trace)
    return traces


def reading_of(tokenized: object, config: AgentSection, memories: Memories, trace: "MemoryTrace") -> Reading:
    """What an episode read and remembered, to be shown.

    Args:
        tokenized: the result of the agent's `tokenize`.
        config: the agent's section.
        memories: the episode's memories.
        trace: the trace of these.
    """
    document: Any = getattr(tokenized, "document", None)
    size = config.chunk_tokens
    starts = range(0, len(document), size) if document is not None and memories.chained else range(0)
    most = min(MOST_SECTION, MOST_DOCUMENT // max(1, len(starts)), size)
    held = np.zeros((len(trace.held), len(trace.facts)), bool)
    for row, facts in zip(held, trace.held, strict=True):
        row[list(facts)] = True
    return Reading(
        document_tokens=None if document is None else len(document),
        # Copies: a view would keep the document in memory.
        sections=tuple(np.array(document[start : start + most], np.int32) for start in starts),
        memories=tuple(np.array(tokens, np.int32) for tokens in memories.tokens),
        facts=tuple(fact.text for fact in trace.facts),
        places=tuple(fact.chunk(size) for fact in trace.facts),
        held=held,
    )


class MemoryTrace:
    """Counts over the memories of one episode. Keeps only the counts and which facts each memory holds.

    Args:
        tokenizer: the tokenizer of the memories.
        config: the agent's section, for the chunk size and the initial memory text.
        facts: the facts that the problem needs; if empty, only the lengths of the memories are counted.
    """

    def __init__(self, tokenizer, config: AgentSection, facts: tuple[NeededFact, ...]):
        self.facts = facts
        self._tokenizer, self._end_tokens = tokenizer, end_tokens(tokenizer)
        empty = load_template(config.prompt_template).empty_memory
        self._empty = None if empty is None else encode_text(tokenizer, empty)
        self._chunks = [fact.chunk(config.chunk_tokens) for fact in facts]
        self.held: list[frozenset[int]] = []  # the facts in each memory, by index; empty if there are none to follow
        self._counts = MemoryCounts()

    @property
    def counts(self) -> MemoryCounts:
        """The counts so far, as if the episode ended here. `MemoryCounts.scored` adds whether the answer was right."""
        return replace(self._counts, answered=Ratio(0, int(self.complete)))

    @property
    def complete(self) -> bool:
        """Whether the last memory holds all needed facts."""
        return bool(self.facts) and len(self._known) == len(self.facts)

    @property
    def _known(self) -> frozenset[int]:
        """The facts in the last memory."""
        return self.held[-1] if self.held else frozenset()

    def add(self, tokens: list[int]) -> None:
        """Count the memory written for the document's next chunk. `tokens` may include the end token."""
        tokens = without_end(tokens, self._end_tokens)
        length = 0 if tokens == self._empty else len(tokens)
        if self.facts:
            text = self._tokenizer.decode(tokens, skip_special_tokens=True)
            new = frozenset(number for number, fact in enumerate(self.facts) if fact.is_in(text))
            useful = sum(self.facts[number].useful_tokens(text) for number in new)
            self._follow(new, length, useful)
        self._counts += MemoryCounts(tokens=Ratio(length, 1))

    def _follow(self, new: frozenset[int], length: int, useful: int) -> None:
        old, read = self._known, self._counts.tokens.whole
        here = {number for number, chunk in enumerate(self._chunks) if chunk == read}
        chances = {number for number in here - old if old.issuperset(range(self.facts[number].builds_on))}
        self._counts += MemoryCounts(
            written=Ratio(len(chances & new), len(chances)),
            kept=Ratio(len(old & new), len(old)),
            junk=Ratio(max(0, length - useful), length),
        )
        self.held.append(new)
