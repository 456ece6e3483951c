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


class BucketPacker:
    """Packs tensors into buckets, in host memory that it reuses for the next version.

    Args:
        bucket_bytes: size of a bucket; a larger tensor gets a bucket of its own.
    """

    def __init__(self, bucket_bytes: int):
        self._bucket_bytes = bucket_bytes
        self._room: list[torch.Tensor] = []  # uint8 [bytes] of each bucket, pinned if there is a GPU
        self._packed: list[list[tuple[str, str, tuple[int, ...], int]]] = []  # entries of each bucket
        self._size: list[int] = []  # bytes of each bucket that are in use

    def begin(self) -> None:
        """Begin a version. The buckets of the one before become invalid."""
        self._packed, self._size = [], []

    def add(self, name: str, tensor: torch.Tensor) -> int:
        """Copy a tensor; return the number of its bucket.

        A copy from a GPU is only queued in the current stream, which must end before `buckets`.
        """
        need = tensor.numel() * tensor.element_size()
        if not self._size or self._size[-1] + _aligned(need) > self._bucket_bytes:
            self._packed.append([])
            self._size.append(0)
        number, offset = len(self._size) - 1, self._size[-1]
        room = self._bucket(number, offset + _aligned(need))[offset : offset + need]
        room.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach(), non_blocking=True)
        self._packed[-1].append((name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), offset))
        self._size[-1] += _aligned(need)
        return number

    def buckets(self) -> Iterator[WeightBucket]:
        """Yield the buckets of this version in order. Their data is valid until the next version begins."""
        for room, packed, size in zip(self._room, self._packed, self._size, strict=False):
            data, entries = room.numpy()[:size], tuple(packed)
            checksum = new_checksum(entries)
            checksum.update(data.data)
            yield WeightBucket(entries, data, checksum.intdigest())

    def _bucket(self, number: int, size: int) -> torch.Tensor:
        """The memory of a bucket, of at least `size` bytes. It is replaced only while the bucket is empty."""
        if number == len(self._room) or len(self._room[number]) < size:
            # Zeros, so that the bytes between tensors have a value.
            made = torch.zeros(max(size, self._bucket_bytes), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            self._room[number : number + 1] = [made]
        return self._room[number]


def pack_buckets(parameters: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int) -> list[WeightBucket]:
    """The buckets of one version, in order."""
    packer = BucketPacker(bucket_bytes)
    packer.begin()
    for name, tensor in parameters:
        packer.add(name, tensor)
    return list(packer.buckets())


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


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
