"""The forest of a micro-batch: which tokens of a row attend to which.

A row holds conversations in depth-first order of their shared prefixes. Each adds a *branch*: its tokens that the row
does not have yet. A token attends to the earlier tokens of its own branch, and to the prefix that its conversation
shares with branches before it. So attention in a row is causal attention within every branch, and *blocks*: rectangles
in which all queries see all keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Block(NamedTuple):
    """Queries that all see all of some keys, as ranges of places in the row."""

    queries: slice
    keys: slice


@dataclass(frozen=True)
class Forest:
    """The attention of a row.

    branches  start of each branch in the row, and the row's length; no branch is empty
    levels    the blocks, in levels; a query is in one block of a level at most
    """

    branches: tuple[int, ...]
    levels: tuple[tuple[Block, ...], ...] = ()

    @property
    def tokens(self) -> int:
        return self.branches[-1]


class _Open(NamedTuple):
    """Part of the path from the root to the conversation that was added last."""

    depth: int  # its first token's position in the conversation
    first_key: int
    end_key: int
    first_query: int  # the first branch from which all branches see all of it


def build_forest(lengths: Sequence[int], shared: Sequence[int]) -> tuple[Forest, list[np.ndarray]]:
    """Lay conversations out in a row, each shared prefix once.

    Args:
        lengths: tokens of each conversation.
        shared: for each, the first tokens that it shares with the one before it; 0 for the first.

    Returns:
        The forest, and for each conversation the places of its tokens in the row, int64 [length].
    """
    path: list[_Open] = []
    blocks: dict[int, list[Block]] = {}
    branches, places, row = [0], [], np.zeros(0, np.int64)
    for length, depth in zip(lengths, shared, strict=True):
        start = branches[-1]
        end = start + length - depth
        if 0 < depth == len(row) and row[-1] == start - 1:  # continues the conversation at the row's end: same branch
            path[-1] = path[-1]._replace(end_key=end, first_query=end)
            branches[-1] = end
        else:
            _leave(path, depth, start, blocks)
        row = np.concatenate([row[:depth], np.arange(start, end)])
        places.append(row)
        if end > branches[-1]:
            path.append(_Open(depth, start, end, end))
            branches.append(end)
    _leave(path, 0, branches[-1], blocks)
    return Forest(tuple(branches), tuple(tuple(blocks[level]) for level in sorted(blocks))), places


def _leave(path: list[_Open], depth: int, end_query: int, blocks: dict[int, list[Block]]) -> None:
    """Cut the path to its first `depth` tokens. The blocks of what is cut off end before `end_query`."""
    while path and path[-1].depth + path[-1].end_key - path[-1].first_key > depth:
        last = path.pop()
        if last.first_query < end_query:
            block = Block(slice(last.first_query, end_query), slice(last.first_key, last.end_key))
            blocks.setdefault(len(path), []).append(block)
        if last.depth < depth:
            path.append(_Open(last.depth, last.first_key, last.first_key + depth - last.depth, end_query))
            break
