"""The transport "buckets": byte buckets go through Ray's object store to shared memory, mapped by engine workers."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import ray
import torch

from pipeline.weights.bucket_files import BucketFile, read_bucket_file, remove_orphans, stage
from pipeline.weights.buckets import BucketPacker, unpack_bucket
from pipeline.weights.transport import Parameters, Weights, WeightsLost, WeightTransport

AT_ONCE = 4  # buckets that a receiver fetches and stages concurrently


class BucketSender:
    """Each rank sends its share of the parameters, whole ones; the shares have about as many bytes."""

    def __init__(self, config, rank: int, ranks: int):
        self._rank, self._ranks, self._bucket_bytes = rank, ranks, config.learner.bucket_mib * 2**20
        self._packer = BucketPacker(self._bucket_bytes)

    def copy(self, version: int, parameters: Parameters) -> None:
        """Copy this rank's share to host memory."""
        self._packer.begin()
        shares = [0] * self._ranks  # bytes
        for name, tensor in parameters(self._bucket_bytes):
            owner = shares.index(min(shares))
            shares[owner] += tensor.numel() * tensor.element_size()
            if owner == self._rank:
                self._packer.add(name, tensor)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def send(self) -> list[ray.ObjectRef]:
        """Put the buckets into the object store; return the references of these `WeightBucket`s."""
        return [ray.put(bucket) for bucket in self._packer.buckets()]


class BucketReceiver:
    """Stages and verifies a version in shared memory, once per node. Each part is one bucket file."""

    @contextlib.asynccontextmanager
    async def fetch(self, weights: Weights) -> AsyncIterator[list[dict]]:
        """Stage all buckets.

        Raises:
            WeightsLost: a bucket is no longer in the object store.
            BucketError: a bucket cannot be staged or has a wrong checksum.
        """
        remove_orphans()  # they occupy the room that this version needs
        limit = asyncio.Semaphore(AT_ONCE)
        staging = [_staged(ref, limit) for ref in itertools.chain(*weights.pieces)]
        results = await asyncio.gather(*staging, return_exceptions=True)
        staged = [result for result in results if isinstance(result, BucketFile)]
        try:
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            yield [{"path": file.path, "size": file.size, "entries": file.entries} for file in staged]
        finally:
            for file in staged:
                file.release()

    def read(self, part: dict) -> list[tuple[str, torch.Tensor]]:
        """The tensors of a part as views of the mapped file. Raises `BucketError` if the file cannot be read."""
        return unpack_bucket(part["entries"], read_bucket_file(part["path"], part["size"]))


async def _staged(ref: ray.ObjectRef, limit: asyncio.Semaphore) -> BucketFile:
    async with limit:
        try:
            bucket = await ref
        except ray.exceptions.RayError as error:
            raise WeightsLost(str(error)) from None
        return await asyncio.to_thread(stage, bucket)


TRANSPORT = WeightTransport(BucketSender, BucketReceiver)
