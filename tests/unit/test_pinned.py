"""Pinned weight files: CUDA registers each once, however many versions overwrite it. A double stands in for CUDA."""

import asyncio
import logging
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline.weights import bucket_transport
from pipeline.weights.bucket_files import BUCKET_FILE, BucketError
from pipeline.weights.bucket_transport import BucketReceiver, Sent
from pipeline.weights.buckets import pack_buckets
from pipeline.weights.pinned import PinnedFiles
from pipeline.weights.transport import BUCKETS, Weights

NUMBERS = 5000


class Cuda:
    """Notes what is registered, by address.

    Args:
        error: what `cudaHostRegister` returns.
    """

    def __init__(self, error: int = 0):
        self.error, self.registered, self.calls = error, {}, []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        assert flags == 0 and address % os.sysconf("SC_PAGE_SIZE") == 0 and address not in self.registered
        self.calls.append(size)
        if not self.error:
            self.registered[address] = size
        return self.error

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.registered[address]
        return 0

    def cudaGetErrorString(self, error: int) -> str:  # noqa: N802
        return "out of memory"


@pytest.fixture
def cuda(monkeypatch, tmp_path):
    cuda = Cuda()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    for function in ("stage", "stage_delta", "remove_orphans"):
        monkeypatch.setattr(bucket_transport, function, partial(getattr(bucket_transport, function), folder=tmp_path))
    return cuda


async def fetched(value):
    return value


def weights_of(version: int, sizes: tuple[int, ...] = (NUMBERS, NUMBERS)) -> tuple[Weights, dict[str, torch.Tensor]]:
    tensors = {f"w{at}": torch.full((size,), float(version + at)) for at, size in enumerate(sizes)}
    sent = []
    for place, tensor in enumerate(tensors.items()):
        (bucket,) = pack_buckets([tensor], 1)
        sent.append(Sent(place, bucket.data.size, fetched(bucket)))
    return Weights(version, BUCKETS, (sent,)), tensors


async def load(receiver: BucketReceiver, worker: BucketReceiver, *given) -> None:
    weights, tensors = weights_of(*given)
    async with receiver.fetch(weights) as parts:
        read = dict(tensor for part in parts for tensor in worker.read(part))
        assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in read)


def test_each_file_is_registered_once_over_many_versions_and_unregistered_at_the_end(cuda, tmp_path):
    receiver, worker = BucketReceiver(), BucketReceiver()

    async def run() -> None:
        for version in range(1, 8):
            await load(receiver, worker, version)
            assert len(cuda.calls) == len(cuda.registered) == 2

    asyncio.run(run())
    assert worker.pinned.counts() == (sum(cuda.calls), sum(cuda.calls))
    worker.close()
    receiver.close()
    assert cuda.registered == {} and list(tmp_path.iterdir()) == []


def test_a_file_that_is_gone_is_unregistered_with_the_next_version(cuda):
    """Learners that restart with another number of ranks pack other buckets."""
    receiver, worker = BucketReceiver(), BucketReceiver()

    async def run() -> None:
        await load(receiver, worker, 1)
        await load(receiver, worker, 2, (NUMBERS, 2 * NUMBERS, 64))

    asyncio.run(run())
    assert len(cuda.calls) == 4 and len(cuda.registered) == 3  # one of the two files is still needed
    worker.close()
    receiver.close()


def test_memory_that_cannot_be_pinned_is_used_as_it_is_and_said_once(cuda, monkeypatch, caplog):
    cuda.error = 2
    launched = []

    def empty(size, device):
        launched.append(device)
        raise RuntimeError("CUDA error: out of memory")  # the one of cudaHostRegister, which CUDA keeps

    monkeypatch.setattr(torch, "empty", empty)
    receiver, worker = BucketReceiver(), BucketReceiver()

    async def run() -> None:
        for version in range(1, 4):
            await load(receiver, worker, version)

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not pinned" in caplog.text and "out of memory" in caplog.text and "ulimit -l" in caplog.text
    assert len(cuda.calls) == 1 and launched == ["cuda"] and worker.pinned.counts()[0] == 0 < worker.pinned.counts()[1]
    worker.close()
    receiver.close()


def test_without_a_gpu_nothing_is_registered(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    receiver, worker = BucketReceiver(), BucketReceiver()
    asyncio.run(load(receiver, worker, 1))
    worker.close()
    receiver.close()
    assert cuda.calls == [] and worker.pinned is None


def test_a_file_that_is_missing_or_has_another_size_is_an_error(cuda, tmp_path):
    path = tmp_path / f"{BUCKET_FILE}x"
    pinned = PinnedFiles()
    with pytest.raises(BucketError, match="No such file"):
        pinned.read(str(path), 64, 1)
    Path(path).write_bytes(bytes(32))
    with pytest.raises(BucketError, match="has 32 bytes, and its weights have 64"):
        pinned.read(str(path), 64, 1)
    assert cuda.calls == [] and pinned.counts() == (0, 0)
