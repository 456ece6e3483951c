"""What a group of the memory agent asks of a model: its prompts and responses in tokens, shared prefixes once."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.learning.flops import Computed
from pipeline.rollout.prefix_tree import LEAST_SHARED, attended_pairs

# A prompt in tokens: the number of tokens of each text between slots, and the slots' names in their places.
Layout = Sequence[int | str]


@dataclass(frozen=True)
class Workload:
    """The conversations of a group, by their mean lengths in tokens.

    chunks       chunks of a document
    group_size   episodes
    distinct     different memories that the episodes write at a turn, on average; what follows equal ones is shared
    problem      tokens of the question
    chunk        tokens of a chunk
    memory       tokens of a memory as written
    empty        tokens of the initial memory
    answer       tokens of the answer as written
    reading      layout of the prompt that reads a chunk
    answering    layout of the prompt for the answer
    """

    chunks: int
    group_size: int
    distinct: float
    problem: int
    chunk: int
    memory: int
    empty: int
    answer: int
    reading: Layout
    answering: Layout

    @property
    def conversations(self) -> int:
        """Conversations of a group."""
        return self.group_size * (self.chunks + 1)

    @property
    def responses(self) -> int:
        """Response tokens of a group."""
        return self.group_size * (self.chunks * self.memory + self.answer)

    @property
    def longest(self) -> int:
        """Tokens of a conversation that reads a chunk, response included."""
        return self._length(self.reading, self.memory) + self.memory

    def _length(self, layout: Layout, memory: int) -> int:
        sizes = {"problem": self.problem, "chunk": self.chunk, "memory": memory}
        return sum(sizes[part] if isinstance(part, str) else part for part in layout)

    def _before(self, layout: Layout, *slots: str) -> int:
        """Tokens of a prompt before the first of some slots."""
        end = next((place for place, part in enumerate(layout) if part in slots), len(layout))
        return self._length(layout[:end], 0)

    def prompts(self, block: int = 1) -> Computed:
        """What a group's prompts cost if a prefix that conversations share is computed once.

        The episodes share instruction and question at every turn, the chunk if it comes before the memory, and at the
        first turn the whole prompt.

        Args:
            block: sharing is by whole blocks of so many tokens, as in vLLM's prefix cache.
        """
        n, episodes, reading = self.chunks, self.group_size, self.reading
        head = _whole(self._before(reading, "memory", "chunk"), block)
        stem = _whole(self._before(reading, "memory"), block)
        first, later = self._length(reading, self.empty), self._length(reading, self.memory)
        shared_first = _whole(first, block) if first - stem >= LEAST_SHARED else stem
        answer_stem = _whole(self._before(self.answering, "memory"), block)
        answering = self._length(self.answering, self.memory)
        return sum(
            (
                _pieces(1, 0, head),
                _pieces(n, head, stem),
                _pieces(1, stem, shared_first),
                _pieces(episodes, shared_first, first),
                _pieces(self.distinct * (n - 1), stem, later),
                _pieces((episodes - self.distinct) * (n - 1), _whole(later, block), later),
                _pieces(1, 0, answer_stem),
                _pieces(self.distinct, answer_stem, answering),
                _pieces(episodes - self.distinct, _whole(answering, block), answering),
            ),
            Computed(),
        )

    def written(self) -> Computed:
        """What an engine computes of a group's responses. The last token of a response goes through no model."""
        return self._responses(self.group_size)

    def learned(self) -> Computed:
        """What learners compute of a group: its prompts, and the different ones of its responses."""
        return self.prompts() + self._responses(self.distinct)

    def _responses(self, episodes: float) -> Computed:
        n, reading = self.chunks, self.reading
        first, later = self._length(reading, self.empty), self._length(reading, self.memory)
        answering = self._length(self.answering, self.memory)
        passes = sum(
            (
                _pieces(episodes, first, first + self.memory - 1),
                _pieces(episodes * (n - 1), later, later + self.memory - 1),
                _pieces(episodes, answering, answering + self.answer - 1),
            ),
            Computed(),
        )
        return passes + Computed(predicted=self.responses)

    @property
    def context(self) -> float:
        """Mean tokens in a sequence's KV cache while a token of its response is written."""
        written = self.written()
        return written.pairs / max(1, written.tokens)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a group's prompts if nothing is shared."""
        first = self._length(self.reading, self.empty)
        later = (self.chunks - 1) * self._length(self.reading, self.memory)
        return self.group_size * (first + later + self._length(self.answering, self.memory))


def _whole(tokens: int, block: int) -> int:
    return tokens - tokens % block


def _pieces(count: float, start: int, stop: int) -> Computed:
    """`count` pieces of sequences, each from token `start` to `stop`; the tokens before it are there already."""
    return Computed(round(count * (stop - start)), round(count * (attended_pairs(stop) - attended_pairs(start))))
