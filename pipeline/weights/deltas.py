"""Lossless deltas: the 16-bit words of a weight bucket that changed since the version before.

A step at a low learning rate changes few bfloat16 weights, and those mostly by the last bit. A delta has the distances
between the changed words and the XOR of their old and new values, each split into its bytes, lowest first: equal bytes
lie together, which zstd then compresses well. Float32 weights nearly all change, so they get no delta.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow

from pipeline.weights.buckets import Entries, WeightBucket

LEVEL = 1  # of zstd; higher levels are slower and hardly smaller
MOST_CHANGED = 0.25  # share of the words; with more a delta is hardly smaller, and takes much memory to make
GAP_BYTES, WORD_BYTES = 4, 2


@dataclass(frozen=True)
class BucketDelta:
    """What changed in a bucket.

    Attributes:
        entries: as in the new `WeightBucket`.
        size: bytes of the new bucket.
        checksum: of the new bucket.
        base: the old bucket's checksum.
        changed: number of changed words.
        data: their distances and values, compressed.
    """

    entries: Entries
    size: int
    checksum: int
    base: int
    changed: int
    data: bytes


def delta_of(old: WeightBucket, new: WeightBucket) -> BucketDelta | None:
    """The delta between two versions of a bucket; None if it is not worth having, or their layouts differ."""
    if old.entries != new.entries or old.data.size != new.data.size:
        return None
    difference = old.data.view(np.uint16) ^ new.data.view(np.uint16)
    if np.count_nonzero(difference) > MOST_CHANGED * difference.size:
        return None
    places = np.flatnonzero(difference)
    gaps = np.diff(places, prepend=0).astype("<u4")
    data = _codec().compress(_planes(gaps) + _planes(difference[places].astype("<u2")), asbytes=True)
    return BucketDelta(new.entries, new.data.size, new.checksum, old.checksum, len(places), data)


def patched(base: np.ndarray, delta: BucketDelta) -> np.ndarray:
    """The new bucket's data, uint8 [bytes], of the old bucket's. The caller compares the checksum.

    Raises:
        ValueError: the delta is damaged, or not one of this base.
    """
    if base.size != delta.size:
        raise ValueError(f"the delta is of a bucket with {delta.size:,} bytes, and the base has {base.size:,}")
    try:
        planes = _codec().decompress(delta.data, delta.changed * (GAP_BYTES + WORD_BYTES), asbytes=True)
    except OSError as error:
        raise ValueError(f"the delta is damaged: {error}") from None
    split = delta.changed * GAP_BYTES
    gaps, values = _joined(planes[:split], "<u4"), _joined(planes[split:], "<u2")
    data = base.copy()
    words, places = data.view(np.uint16), np.cumsum(gaps, dtype=np.int64)
    if len(places) and places[-1] >= words.size:
        raise ValueError("the delta is damaged: it changes words beyond the bucket's end")
    words[places] ^= values
    return data


def _codec() -> pyarrow.Codec:
    return pyarrow.Codec("zstd", compression_level=LEVEL)


def _planes(numbers: np.ndarray) -> bytes:
    """The numbers' lowest bytes, then their second bytes, and so on."""
    return numbers.view(np.uint8).reshape(-1, numbers.itemsize).T.tobytes()


def _joined(planes: bytes, dtype: str) -> np.ndarray:
    """The numbers of `_planes`."""
    rows = np.frombuffer(planes, np.uint8).reshape(np.dtype(dtype).itemsize, -1)
    return np.ascontiguousarray(rows.T).view(dtype)[:, 0]
