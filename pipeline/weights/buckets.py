"""Weight buckets: named tensors packed end to end into checksummed blocks of bytes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

ALIGNMENT = 64  # bytes; every tensor begins at a multiple of this

Entries = tuple[tuple[str, str, tuple[int, ...], int], ...]  # name, dtype, shape, offset in bytes


@dataclass(frozen=True)
class WeightBucket:
    """Some of a model's parameters.

    Attributes:
        entries: name, dtype, shape and offset of each tensor in `data`.
        data: the tensors' bytes, uint8 [bytes].
        checksum: checksum of both (`new_checksum`), computed when they were packed.
    """

    entries: Entries
    data: np.ndarray
    checksum: int


def new_checksum(entries: Entries) -> xxhash.xxh3_64:
    """Start the checksum of a bucket; update it with the data. XXH3 reads bytes faster than they can be copied."""
    return xxhash.xxh3_64(repr(entries).encode())


def pack_buckets(parameters: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int) -> Iterator[WeightBucket]:
    """Yield buckets of at most `bucket_bytes` bytes, in order; a larger tensor gets a bucket of its own."""
    waiting: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in parameters:
        need = _aligned(tensor.numel() * tensor.element_size())
        if waiting and size + need > bucket_bytes:
            yield _pack(waiting, size)
            waiting, size = [], 0
        waiting.append((name, tensor))
        size += need
    if waiting:
        yield _pack(waiting, size)


def unpack_bucket(entries, data: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Return the named tensors of a bucket as views of its bytes.

    Args:
        entries: the bucket's `WeightBucket.entries`.
        data: the bucket's bytes, uint8 [bytes].
    """
    tensors = []
    for name, dtype, shape, offset in entries:
        dtype = getattr(torch, dtype)
        end = offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        tensors.append((name, data[offset:end].view(dtype).view(tuple(shape))))
    return tensors


def _pack(parameters: list[tuple[str, torch.Tensor]], size: int) -> WeightBucket:
    data = np.empty(size, dtype=np.uint8)
    made, offset = [], 0
    for name, tensor in parameters:
        raw = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
        data[offset : offset + raw.size] = raw
        made.append((name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), offset))
        offset += _aligned(raw.size)
    entries = tuple(made)
    checksum = new_checksum(entries)
    checksum.update(data.data)
    return WeightBucket(entries, data, checksum.intdigest())


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
