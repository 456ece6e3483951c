"""What a memory does with the facts that a problem needs, where they are known: are they written, kept and used?

A problem tells its needed facts by its metadata: `needed`, their texts, and `needed_at`, the place of each in the
document, in tokens from 0. Each builds on those before it, so that in a chain of two hops the bridge comes first; where
`hops` is 1, each is asked for by itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

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

    text: str
    start: int | None  # its first token in the document; None: its tokens are not where the metadata say
    length: int  # tokens
    builds_on: int  # so many facts before it, without which nothing says that it is needed

    def chunk(self, size: int) -> int | None:
        """The chunk of `size` tokens that holds all of it; None if a boundary cuts it, or its place is unknown."""
        if self.start is None or self.start // size != (self.start + self.length - 1) // size:
            return None
        return self.start // size


def needed_facts(problem: Problem, document: np.ndarray, tokenizer) -> tuple[NeededFact, ...]:
    """The needed facts in order; none if the metadata do not tell them.

    Args:
        problem: whose metadata may have `needed`, `needed_at` and `hops`.
        document: its tokens as the agent reads them, int32 [N]. A fact that is not found at its place (`needed_at`
            may count the tokens of another tokenizer) has no place.
        tokenizer: that encoded the document.
    """
    texts, places = problem.metadata.get("needed"), problem.metadata.get("needed_at")
    if not isinstance(texts, list) or not isinstance(places, list) or len(texts) != len(places):
        return ()
    if not all(isinstance(text, str) and text.strip() for text in texts) or not all(type(p) is int for p in places):
        return ()
    facts: list[NeededFact] = []
    for text, place in zip(texts, places, strict=True):
        length = len(encode_text(tokenizer, text))
        there = place >= 0 and tokenizer.decode(document[place : place + length]).strip() == text.strip()
        builds_on = 0 if problem.metadata.get("hops") == 1 else len(facts)
        facts.append(NeededFact(text.strip(), place if there else None, length, builds_on))
    return tuple(facts)


def count_memories(
    problem: Problem, tokenized: object, tokenizer, config: AgentSection, episodes: Iterable[Memories]
) -> tuple[MemoryCounts, ...]:
    """What the memories of each episode of a problem did, not yet scored. Facts are followed where they are chained.

    Args:
        problem: whose metadata may tell its needed facts.
        tokenized: what the agent's `tokenize` returned for it.
        tokenizer: of the model.
        config: the agent's.
        episodes: the memories of each.
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
    """Counts what the memories of one episode do. It holds counts and the needed facts of the last memory, no more.

    Args:
        tokenizer: of the memories; not used where no facts are given.
        config: the agent's, for the size of a chunk and the words for an empty memory.
        facts: that the problem needs; with none, only the lengths of the memories are counted.
    """

    def __init__(self, tokenizer, config: AgentSection, facts: tuple[NeededFact, ...]):
        self.facts = facts
        self._tokenizer, self._end_tokens = tokenizer, end_tokens(tokenizer)
        empty = load_template(config.prompt_template).empty_memory
        self._empty = None if empty is None else encode_text(tokenizer, empty)
        self._chunks = [fact.chunk(config.chunk_tokens) for fact in facts]
        self._known: set[int] = set()  # the facts of the last memory, by their number in the chain
        self._counts = MemoryCounts()

    @property
    def counts(self) -> MemoryCounts:
        """Of the episode so far, as if it ended here; `MemoryCounts.scored` adds whether the answer was right."""
        return replace(self._counts, answered=Ratio(0, int(self.complete)))

    @property
    def complete(self) -> bool:
        """Whether the last memory holds all needed facts."""
        return bool(self.facts) and len(self._known) == len(self.facts)

    def add(self, tokens: list[int]) -> None:
        """Count the next memory, with the end token or without (its chunk is the next one of the document)."""
        tokens = without_end(tokens, self._end_tokens)
        length = 0 if tokens == self._empty else len(tokens)
        if self.facts:
            text = self._tokenizer.decode(tokens, skip_special_tokens=True)
            self._follow({number for number, fact in enumerate(self.facts) if fact.text in text}, length)
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
