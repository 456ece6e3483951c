"""The transport "buckets": byte buckets go through Ray's object store to shared memory, mapped by engine workers."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from operator import itemgetter

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
        self._places: dict[int, int] = {}  # by bucket: the place of its first parameter in the model

    def copy(self, version: int, parameters: Parameters) -> None:
        """Copy this rank's share to host memory."""
        self._packer.begin()
        self._places = {}
        shares = [0] * self._ranks  # bytes
        for place, (name, tensor) in enumerate(parameters(self._bucket_bytes)):
            owner = shares.index(min(shares))
            shares[owner] += tensor.numel() * tensor.element_size()
            if owner == self._rank:
                self._places.setdefault(self._packer.add(name, tensor), place)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def send(self) -> list[tuple[int, ray.ObjectRef]]:
        """Put the buckets into the object store.

        Returns:
            For each, the place of its first parameter in the model, and the reference of its `WeightBucket`.
        """
        return [(self._places[number], ray.put(bucket)) for number, bucket in enumerate(self._packer.buckets())]


class BucketReceiver:
    """Stages and verifies a version in shared memory, once per node. Each part is one bucket file.

    Parts come in the model's order, whichever rank sent them: until a layer is complete, vLLM keeps its loaded tensors.
    """

    @contextlib.asynccontextmanager
    async def fetch(self, weights: Weights) -> AsyncIterator[list[dict]]:
        """Stage all buckets.

        Raises:
            WeightsLost: a bucket is no longer in the object store.
            BucketError: a bucket cannot be staged or has a wrong checksum.
        """
        remove_orphans()  # they occupy the room that this version needs
        limit = asyncio.Semaphore(AT_ONCE)
        ordered = sorted(itertools.chain(*weights.pieces), key=itemgetter(0))
        staging = [_staged(ref, limit) for _, ref in ordered]
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
