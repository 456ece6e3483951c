"""What a forest says, written out."""

import numpy as np

from pipeline.learning.forest import Forest


def seen_by(forest: Forest) -> np.ndarray:
    """How often each token of the row attends to each, int64 [T, T]."""
    seen = np.zeros((forest.tokens, forest.tokens), np.int64)
    for start, end in zip(forest.branches, forest.branches[1:], strict=False):
        seen[start:end, start:end] += np.tri(end - start, dtype=np.int64)
    for level in forest.levels:
        for block in level:
            seen[block.queries, block.keys] += 1
    return seen
