"""What the conversations of a group share: the tree of their common prefixes.

The tree is found from the tokens alone, so it holds for any agent and any prompt layout. It is written as a sequence of
conversations in depth-first order, each with the number of its first tokens that it shares with the one before. Any two
conversations then share the minimum of the numbers between them, and a subsequence is again a tree.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A shared prefix ends only where it is at least this much longer than the one that contains it. Splitting a row costs a
# call of attention per layer, which these many tokens outweigh.
LEAST_SHARED = 16


def attended_pairs(length):
    """The pairs of a token and one that it attends to, itself among them, of `length` tokens; also for arrays."""
    return length * (length + 1) // 2


@dataclass(frozen=True)
class PrefixTree:
    """Conversations in depth-first order of the tree of their shared prefixes.

    order    int64 [n]  index of each conversation in its group
    lengths  int64 [n]  tokens to compute for it, if nothing is shared
    shared   int64 [n]  the first tokens that it shares with the conversation before it; 0 for the first
    """

    order: np.ndarray
    lengths: np.ndarray
    shared: np.ndarray

    @classmethod
    def without_sharing(cls, lengths: np.ndarray) -> "PrefixTree":
        """Conversations that share nothing."""
        return cls(np.arange(len(lengths)), lengths, np.zeros_like(lengths))

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray], least_shared: int = LEAST_SHARED) -> "PrefixTree":
        """Find the tree of token sequences.

        Args:
            sequences: the tokens of each conversation, integers [length].
            least_shared: the least number of tokens by which a prefix is longer than the one that contains it.
        """
        keys = [sequence.astype(">u4").tobytes() for sequence in sequences]  # sorts like the tokens
        order = sorted(range(len(sequences)), key=lambda c: (keys[c], c))
        lengths = np.array([len(sequences[c]) for c in order], np.int64)
        common = [common_prefix(sequences[a], sequences[b]) for a, b in zip(order, order[1:], strict=False)]
        shared = _worthwhile(np.array([0, *common], np.int64), least_shared)[: len(order)]
        return cls(np.array(order, np.int64), lengths, shared)

    def __len__(self) -> int:
        return len(self.order)

    def where(self, chosen: np.ndarray) -> "PrefixTree":
        """The tree of some conversations; `chosen`: bool by index in the group."""
        return self.at(np.flatnonzero(chosen[self.order]))

    def at(self, places: np.ndarray) -> "PrefixTree":
        """The tree of the conversations at some places of the sequence, in ascending order."""
        # Two conversations share the minimum of the numbers after the first, up to the second.
        between = [int(self.shared[a + 1 : b + 1].min()) for a, b in zip(places, places[1:], strict=False)]
        shared = np.array([0, *between], np.int64)[: len(places)]
        return PrefixTree(self.order[places], self.lengths[places], shared)

    @functools.cached_property
    def _sums(self) -> tuple[list[int], list[int]]:
        """The sums of `lengths` and of `shared` before each place, and at the end."""
        return [0, *np.cumsum(self.lengths).tolist()], [0, *np.cumsum(self.shared).tolist()]

    def tokens(self, start: int = 0, stop: int | None = None) -> int:
        """Tokens to compute for the conversations at the places `start` to `stop`, each shared prefix once."""
        stop = len(self) if stop is None else stop
        if stop <= start:
            return 0
        lengths, shared = self._sums
        return lengths[stop] - lengths[start] - shared[stop] + shared[start + 1]

    def cut(self, budget: float, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """Cut the places `start` to `stop` into runs of at most `budget` tokens each, at the shortest prefixes first.

        A prefix that spans a cut is computed in both runs. A conversation over the budget is a run of its own.
        """
        fitting, todo = [], [(start, len(self) if stop is None else stop)]
        while todo:
            start, stop = todo.pop()
            if stop - start == 1 or self.tokens(start, stop) <= budget:
                fitting.append((start, stop))
                continue
            inner = self.shared[start + 1 : stop]
            edges = [start, *(start + 1 + np.flatnonzero(inner == inner.min())).tolist(), stop]
            todo += reversed(list(zip(edges, edges[1:], strict=False)))
        joined = fitting[:1]
        for start, stop in fitting[1:]:
            if self.tokens(joined[-1][0], stop) <= budget:
                joined[-1] = joined[-1][0], stop
            else:
                joined.append((start, stop))
        return joined


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """The number of first tokens that are equal."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    return int(different.argmax()) if different.any() else n


def _worthwhile(common: np.ndarray, least_shared: int) -> np.ndarray:
    """Lower each common prefix to one that is worth a split.

    Args:
        common: the tokens that each sequence shares with the one before, int64 [n]; the first is 0.
        least_shared: as in `PrefixTree.of`.
    """
    shared = np.zeros_like(common)
    todo = [(0, len(common), 0)]  # sequences that all share a prefix of this length
    while todo:
        start, stop, depth = todo.pop()
        inner = common[start + 1 : stop]
        ends = start + 1 + np.flatnonzero(inner < depth + least_shared)
        shared[ends] = depth
        edges = [start, *ends.tolist(), stop]
        todo += [(a, b, int(common[a + 1 : b].min())) for a, b in zip(edges, edges[1:], strict=False) if b - a > 1]
    return shared
