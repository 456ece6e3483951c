"""Follows a problem's needed facts through the memories of an episode: are they written, kept and used?

A problem's metadata may list its needed facts: `needed` has their texts. A memory holds a fact if it contains this text
or, if there are `needed_values`, the fact's value, in whatever words. `needed_at` has the position of each fact in the
document, in tokens from 0; where it is missing or counts the tokens of another tokenizer, the fact is looked for. Each
fact builds on those before it: in a chain of two hops, the bridge comes first. If `hops` is 1, the facts are
independent of each other.
"""

import bisect
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from pipeline.agents.prompts import load_template
from pipeline.end_tokens import end_tokens, without_end
from pipeline.problems import Problem
from pipeline.rollout.answer import Memories
from pipeline.rollout.memory_counts import MemoryCounts, Ratio
from pipeline.sections import AgentSection
from pipeline.text import encode_text


@dataclass(frozen=True)
class NeededFact:
    """A fact without which the question cannot be answered."""

    sign: str  # by which a memory shows that it holds the fact: its value, or the whole text
    start: int | None  # position of its first token in the document; None: it is not there
    length: int  # tokens
    builds_on: int  # number of preceding facts that must be known before this one is recognizable as needed

    def is_in(self, memory: str) -> bool:
        """Whether a memory holds the fact: its sign, not within a longer word or number."""
        return re.search(rf"(?<!\w){re.escape(self.sign)}(?!\w)", memory) is not None

    def chunk(self, size: int) -> int | None:
        """The index of the chunk of `size` tokens that holds the whole fact.

        None if a chunk boundary cuts the fact, or its position is unknown.
        """
        if self.start is None or self.start // size != (self.start + self.length - 1) // size:
            return None
        return self.start // size


def needed_facts(problem: Problem, document: np.ndarray, tokenizer) -> tuple[NeededFact, ...]:
    """The needed facts of a problem in order; empty if the metadata do not list them.

    Args:
        problem: the problem; its metadata may have `needed`, `needed_values`, `needed_at` and `hops`.
        document: the document's tokens as the agent reads them, int32 [N].
        tokenizer: the tokenizer that encoded the document.
    """
    texts = _texts(problem, "needed")
    values, places = _texts(problem, "needed_values"), problem.metadata.get("needed_at")
    if len(values) != len(texts):
        values = texts
    if not isinstance(places, list) or len(places) != len(texts):
        places = [None] * len(texts)
    facts: list[NeededFact] = []
    for text, value, place in zip(texts, values, places, strict=True):
        length = len(encode_text(tokenizer, text))
        if type(place) is not int or not _is_at(place, text, length, document, tokenizer):
            place = _place_of(text, document, tokenizer)
        builds_on = 0 if problem.metadata.get("hops") == 1 else len(facts)
        facts.append(NeededFact(value.strip(), place, length, builds_on))
    return tuple(facts)


def _texts(problem: Problem, name: str) -> list[str]:
    """The texts of this name in the metadata; empty unless it is a list of texts."""
    texts = problem.metadata.get(name)
    are_texts = isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts)
    return cast(list[str], texts) if are_texts else []


def _is_at(place: int, text: str, length: int, document: np.ndarray, tokenizer) -> bool:
    """Whether `text`, of `length` tokens, begins at this token of the document."""
    return place >= 0 and tokenizer.decode(document[place : place + length]).strip() == text.strip()


def _place_of(text: str, document: np.ndarray, tokenizer) -> int | None:
    """The document's token at which `text` begins; None if it is not there.

    The text of the first k tokens grows with k, so the place is where it first reaches beyond the text's beginning.
    """
    begin = tokenizer.decode(document).find(text.strip())
    if begin < 0:
        return None
    return bisect.bisect_right(range(len(document)), begin, key=lambda k: len(tokenizer.decode(document[: k + 1])))


def count_memories(
    problem: Problem, tokenized: object, tokenizer, config: AgentSection, episodes: Iterable[Memories]
) -> tuple[MemoryCounts, ...]:
    """Count the memories of each episode of a problem, before scoring. Facts are followed only in chained memories.

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
    counts = []
    for memories in episodes:
        trace = MemoryTrace(tokenizer, config, facts if memories.chained else ())
        for tokens in memories.tokens:
            trace.add([int(token) for token in tokens])
        counts.append(trace.counts)
    return tuple(counts)


class MemoryTrace:
    """Counts over the memories of one episode. Keeps only the counts and which facts the last memory holds.

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
        self._known: set[int] = set()  # the facts in the last memory, by index
        self._counts = MemoryCounts()

    @property
    def counts(self) -> MemoryCounts:
        """The counts so far, as if the episode ended here. `MemoryCounts.scored` adds whether the answer was right."""
        return replace(self._counts, answered=Ratio(0, int(self.complete)))

    @property
    def complete(self) -> bool:
        """Whether the last memory holds all needed facts."""
        return bool(self.facts) and len(self._known) == len(self.facts)

    def add(self, tokens: list[int]) -> None:
        """Count the memory written for the document's next chunk. `tokens` may include the end token."""
        tokens = without_end(tokens, self._end_tokens)
        length = 0 if tokens == self._empty else len(tokens)
        if self.facts:
            text = self._tokenizer.decode(tokens, skip_special_tokens=True)
            self._follow({number for number, fact in enumerate(self.facts) if fact.is_in(text)}, length)
        self._counts += MemoryCounts(tokens=Ratio(length, 1))

    def _follow(self, new: set[int], length: int) -> None:
        old, read = self._known, self._counts.tokens.whole
        here = {number for number, chunk in enumerate(self._chunks) if chunk == read}
        chances = {number for number in here - old if old.issuperset(range(self.facts[number].builds_on))}
        useful = sum(self.facts[number].length for number in new)
        self._counts += MemoryCounts(
            written=Ratio(len(chances & new), len(chances)),
            kept=Ratio(len(old & new), len(old)),
            junk=Ratio(max(0, length - useful), length),
        )
        self._known = new
