"""Examples for supervised fine-tuning: conversations with a mask of the tokens to learn."""

import hashlib
from dataclasses import dataclass

import numpy as np

from pipeline.learning.forest import Forest


@dataclass(frozen=True)
class Example:
    """Token ids, and for each whether it is learned. The first never is: nothing predicts it."""

    tokens: list[int]
    learned: list[bool]


def respond(prompt: list[int], response: list[int]) -> Example:
    """An example whose whole response is learned."""
    return Example(prompt + response, [False] * len(prompt) + [True] * len(response))


@dataclass(frozen=True)
class ExampleBatch:
    """The E examples of an optimizer step as flat arrays, which Ray's object store shares without copying.

    tokens   int32 [T]    all examples, end to end
    learned  bool [T]
    offsets  int64 [E+1]  start of each example, and the end of the last
    """

    tokens: np.ndarray
    learned: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens in each example, int64 [E]."""
        return np.diff(self.offsets)

    def hash_into(self, digest: "hashlib._Hash") -> None:
        """Add the batch to a hash of the data."""
        for array in (self.tokens, self.learned, self.offsets):
            digest.update(array.tobytes())


def pack_examples(examples: list[Example]) -> ExampleBatch:
    """Concatenate examples into flat arrays.

    Raises:
        ValueError: an example marks its first token as learned.
    """
    if any(example.learned[0] for example in examples):
        raise ValueError("the first token of an example cannot be learned: nothing predicts it")
    return ExampleBatch(
        tokens=np.concatenate([np.asarray(example.tokens, np.int32) for example in examples]),
        learned=np.concatenate([np.asarray(example.learned, bool) for example in examples]),
        offsets=np.cumsum([0, *(len(example.tokens) for example in examples)], dtype=np.int64),
    )


@dataclass(frozen=True)
class ExampleMicroBatch:
    """A row of T tokens, R of them learned.

    tokens      int64 [T]
    positions   int64 [T]  each token's position in its example
    predict_at  int64 [R]  index in the row whose hidden state predicts learned token r
    targets     int64 [R]  learned token r
    is_learned  bool [R]   true; false in the placeholder of an empty micro-batch
    forest      one branch for each example; nothing is shared
    """

    tokens: np.ndarray
    positions: np.ndarray
    predict_at: np.ndarray
    targets: np.ndarray
    is_learned: np.ndarray
    forest: Forest


def build_example_micro_batch(items: list[int], batch: ExampleBatch) -> ExampleMicroBatch:
    """Concatenate the batch's examples with indices `items`; no items give a placeholder whose loss is zero."""
    if not items:
        zero = np.zeros(1, np.int64)
        return ExampleMicroBatch(np.zeros(2, np.int64), np.arange(2), zero, zero, np.zeros(1, bool), Forest((0, 2)))
    spans = [slice(batch.offsets[i], batch.offsets[i + 1]) for i in items]
    tokens = np.concatenate([batch.tokens[span] for span in spans]).astype(np.int64)
    learned = np.flatnonzero(np.concatenate([batch.learned[span] for span in spans]))
    lengths = batch.lengths[items]
    positions = np.concatenate([np.arange(length) for length in lengths])
    forest = Forest((0, *np.cumsum(lengths).tolist()))
    return ExampleMicroBatch(tokens, positions, learned - 1, tokens[learned], np.ones(len(learned), bool), forest)
