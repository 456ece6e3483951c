"""The transport "buckets": byte buckets go through Ray's object store to shared memory, mapped by engine workers."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from operator import attrgetter

import ray
import torch

from pipeline.weights.bucket_files import BucketFile, Spares, read_bucket_file, remove_orphans, stage, stage_delta
from pipeline.weights.buckets import BucketPacker, WeightBucket, unpack_bucket
from pipeline.weights.deltas import delta_of
from pipeline.weights.pinned import PinnedFiles
from pipeline.weights.transport import Parameters, Weights, WeightsLost, WeightTransport

AT_ONCE = 4  # buckets that a receiver fetches and stages concurrently


@dataclass(frozen=True)
class Sent:
    """A bucket in the object store.

    Attributes:
        place: the place of its first parameter in the model.
        size: bytes of the bucket.
        bucket: reference of the `WeightBucket`.
        base: checksum of the bucket in the version before; 0: unknown.
        delta: reference of the `BucketDelta` between the two; None: there is none.
        delta_size: its bytes.
        keep: whether the next version may come as a delta to this one.
    """

    place: int
    size: int
    bucket: ray.ObjectRef
    base: int = 0
    delta: ray.ObjectRef | None = None
    delta_size: int = 0
    keep: bool = False


class BucketSender:
    """Each rank sends its share of the parameters, whole ones; the shares have about as many bytes.

    With learner.weight_deltas it keeps the version before, and also sends what changed.
    """

    def __init__(self, config, rank: int, ranks: int):
        self._rank, self._ranks, self._bucket_bytes = rank, ranks, config.learner.bucket_mib * 2**20
        self._deltas = config.learner.weight_deltas
        self._packer, self._other_packer = (BucketPacker(self._bucket_bytes) for _ in range(2))
        self._places: dict[int, int] = {}  # by bucket: the place of its first parameter in the model
        self._packed: list[WeightBucket] = []  # the version that was sent last, in this packer's memory
        self._before: list[WeightBucket] = []  # the one before, in the other packer's

    def copy(self, version: int, parameters: Parameters) -> None:
        """Copy this rank's share to host memory."""
        if self._deltas:
            self._packer, self._other_packer = self._other_packer, self._packer
            self._before, self._packed = self._packed, []
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

    def send(self) -> list[Sent]:
        """Put the buckets into the object store."""
        self._packed = list(self._packer.buckets())
        sent = []
        for number, bucket in enumerate(self._packed):
            base, delta = 0, None
            if self._before:
                base, delta = self._before[number].checksum, delta_of(self._before[number], bucket)
            refs = ray.put(bucket), base, delta and ray.put(delta)
            delta_size = len(delta.data) if delta else 0
            sent.append(Sent(self._places[number], bucket.data.size, *refs, delta_size, keep=self._deltas))
        return sent


class BucketReceiver:
    """Stages and verifies a version in shared memory, once per node. Each part is one bucket file.

    Parts come in the model's order, whichever rank sent them: until a layer is complete, vLLM keeps its loaded tensors.
    If the senders make deltas, the files of a version stay until the next one is made from them. The files of an older
    version are overwritten, so a node has at most two versions.
    """

    def __init__(self) -> None:
        self._kept: dict[int, BucketFile] = {}  # by checksum
        self._spares = Spares()
        self._closed = False
        self.pinned: PinnedFiles | None = None  # in a worker with a GPU

    @contextlib.asynccontextmanager
    async def fetch(self, weights: Weights) -> AsyncIterator[list[dict]]:
        """Stage all buckets.

        Raises:
            WeightsLost: a bucket is no longer in the object store.
            BucketError: a bucket cannot be staged or has a wrong checksum.
        """
        remove_orphans()  # they occupy the room that this version needs
        limit = asyncio.Semaphore(AT_ONCE)
        sent: list[Sent] = sorted(itertools.chain(*weights.pieces), key=attrgetter("place"))
        sizes = [each.size for each in sent]
        self._spares.trim(sizes)  # other ranks pack other buckets
        # Each receiver begins elsewhere, so that nodes have different buckets to pass on (`jobs.bench broadcast`).
        begin = random.randrange(max(1, len(sent)))
        sent = sent[begin:] + sent[:begin]
        results = await asyncio.gather(*(self._staged(each, limit) for each in sent), return_exceptions=True)
        staged = [result for result in results if isinstance(result, BucketFile)]
        try:
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            in_order = sorted(zip(sent, staged, strict=True), key=lambda pair: pair[0].place)
            before, self._kept = self._kept, {}
            for file in before.values():  # now, so that other engines may overwrite them while this one loads
                self._spares.add(file)
            yield [
                {"version": weights.version, "path": file.path, "size": file.size, "entries": file.entries}
                for _, file in in_order
            ]
            if any(each.keep for each in sent) and not self._closed:
                self._kept, staged = {file.checksum: file for file in staged}, []
        finally:
            for file in staged:
                self._spares.add(file)
            self._spares.trim(sizes)
            if self._closed:
                self._spares.close()

    async def _staged(self, sent: Sent, limit: asyncio.Semaphore) -> BucketFile:
        async with limit:
            base = self._kept.get(sent.base)
            try:
                if base and sent.delta:
                    return await asyncio.to_thread(stage_delta, await sent.delta, base, spares=self._spares)
                return await asyncio.to_thread(stage, await sent.bucket, spares=self._spares)
            except ray.exceptions.RayError as error:
                raise WeightsLost(str(error)) from None

    def read(self, part: dict) -> list[tuple[str, torch.Tensor]]:
        """The tensors of a part as views of the mapped file, which is pinned if this process uses a GPU.

        Raises:
            BucketError: the file cannot be read.
        """
        path, size = part["path"], part["size"]
        if not torch.cuda.is_initialized():
            return unpack_bucket(part["entries"], read_bucket_file(path, size))
        self.pinned = self.pinned or PinnedFiles()
        return unpack_bucket(part["entries"], self.pinned.read(path, size, part["version"]))

    def close(self) -> None:
        self._closed = True
        for file in self._kept.values():
            file.release()
        self._kept = {}
        self._spares.close()
        if self.pinned:
            self.pinned.close()


def bytes_share(pieces: tuple[list[Sent], ...]) -> float | None:
    """The bytes of a version's deltas, and of the buckets without one, divided by those of all buckets."""
    sent = list(itertools.chain(*pieces))
    whole = sum(each.size for each in sent)
    return sum(each.delta_size if each.delta else each.size for each in sent) / whole if whole else None


TRANSPORT = WeightTransport(BucketSender, BucketReceiver, bytes_share)
