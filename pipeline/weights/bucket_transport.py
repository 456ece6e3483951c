"""The transport "buckets": byte buckets go through Ray's object store to shared memory, mapped by engine workers."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import ray
import torch

from pipeline.weights.bucket_files import BucketFile, read_bucket_file, remove_orphans, stage
from pipeline.weights.buckets import pack_buckets, unpack_bucket
from pipeline.weights.transport import Parameters, Weights, WeightsLost, WeightTransport


class BucketSender:
    """Rank 0 puts all buckets into the object store; the other ranks only take part in gathering."""

    def __init__(self, config, rank: int, ranks: int):
        self._rank, self._bucket_bytes = rank, config.learner.bucket_mib * 2**20

    def send(self, version: int, parameters: Parameters) -> list[ray.ObjectRef]:
        """Publish this rank's buckets and return the references of its `WeightBucket`s."""
        gathered = parameters(self._bucket_bytes)
        if self._rank == 0:
            # Copied, because gathering the next tensors frees these, and a bucket may span several gathers.
            copied = ((name, tensor.detach().cpu().clone()) for name, tensor in gathered)
            return [ray.put(bucket) for bucket in pack_buckets(copied, self._bucket_bytes)]
        for _ in gathered:
            pass
        return []


class BucketReceiver:
    """Stages and verifies a version in shared memory. Each part is one bucket file."""

    @contextlib.asynccontextmanager
    async def fetch(self, weights: Weights) -> AsyncIterator[list[dict]]:
        """Stage all buckets.

        Raises:
            WeightsLost: a bucket is no longer in the object store.
            BucketError: a bucket cannot be staged or has a wrong checksum.
        """
        remove_orphans()  # they occupy the room that this version needs
        staged: list[BucketFile] = []
        try:
            for ref in itertools.chain(*weights.pieces):
                try:
                    bucket = await ref
                except ray.exceptions.RayError as error:
                    raise WeightsLost(str(error)) from None
                staged.append(await asyncio.to_thread(stage, bucket))
            yield [{"path": file.path, "size": file.size, "entries": file.entries} for file in staged]
        finally:
            for file in staged:
                file.remove()

    def read(self, part: dict) -> list[tuple[str, torch.Tensor]]:
        """The tensors of a part as views of the mapped file. Raises `BucketError` if the file cannot be read."""
        return unpack_bucket(part["entries"], read_bucket_file(part["path"], part["size"]))


TRANSPORT = WeightTransport(BucketSender, BucketReceiver)
