"""Four receivers of a node, in processes of their own: what shared memory holds, and what their engines read."""

import asyncio
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from pipeline.weights import bucket_transport
from pipeline.weights.bucket_files import SHARED_MEMORY
from pipeline.weights.buckets import WeightBucket, new_checksum
from pipeline.weights.deltas import BucketDelta, delta_of
from pipeline.weights.transport import BUCKETS, Weights

RECEIVERS, VERSIONS = 4, 8
BUCKETS_OF_A_VERSION, BUCKET_BYTES = 12, 2**18
FORK = multiprocessing.get_context("fork")


@cache
def data_of(version: int, number: int) -> np.ndarray:
    """A bucket's bytes, of which one in a thousand changes from version to version."""
    data = np.random.default_rng(number).integers(0, 256, BUCKET_BYTES, dtype=np.uint8)
    data[version::1000] ^= 1 + number
    return data


@cache
def bucket_of(version: int, number: int) -> WeightBucket:
    entries, data = ((f"w{number}", "uint8", (BUCKET_BYTES,), 0),), data_of(version, number)
    checksum = new_checksum(entries)
    checksum.update(data.data)
    return WeightBucket(entries, data, checksum.intdigest())


@cache
def delta_to(version: int, number: int) -> BucketDelta | None:
    return delta_of(bucket_of(version - 1, number), bucket_of(version, number))


async def fetched(value):
    """What awaiting an object reference returns, after a moment."""
    await asyncio.sleep(random.random() / 500)
    return value


def sent(version: int, deltas: bool) -> Weights:
    pieces = []
    for number in range(BUCKETS_OF_A_VERSION):
        bucket, base, delta = bucket_of(version, number), 0, None
        if deltas and version > 1:
            base, delta = bucket_of(version - 1, number).checksum, fetched(delta_to(version, number))
        pieces.append(bucket_transport.Sent(number, BUCKET_BYTES, fetched(bucket), base, delta, keep=deltas))
    return Weights(version, BUCKETS, (pieces,))


def receive(folder: Path, deltas: bool, connection) -> None:
    """A generator with its engine: loads each version that is asked for, and says so.

    If it is to hold the version, it reads it when it is told to, after others have staged the next one.
    """
    for function in ("stage", "stage_delta", "remove_orphans"):
        setattr(bucket_transport, function, partial(getattr(bucket_transport, function), folder=folder))

    async def run() -> None:
        receiver = bucket_transport.BucketReceiver()
        while (asked := await asyncio.to_thread(connection.recv)) is not None:
            version, holds = asked
            async with receiver.fetch(sent(version, deltas)) as parts:
                tensors = [tensor.numpy() for part in parts for _, tensor in receiver.read(part)]
                connection.send("reads")
                if holds:
                    await asyncio.to_thread(connection.recv)
                equal = [np.array_equal(data_of(version, number), data) for number, data in enumerate(tensors)]
                assert all(equal) and len(equal) == BUCKETS_OF_A_VERSION
                del tensors
            connection.send("done")
        receiver.close()

    asyncio.run(run())
    connection.send("closed")


@dataclass
class Receiver:
    process: multiprocessing.process.BaseProcess
    connection: multiprocessing.connection.Connection

    def load(self, version: int, holds: bool = False) -> None:
        self.connection.send((version, holds))

    def says(self, *expected: str) -> None:
        for each in expected:
            assert self.connection.poll(60), "it says nothing"
            assert self.connection.recv() == each


class Watch(threading.Thread):
    """Notes how many bytes of memory files take, those included that have no name but are open."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.most, self.ends = folder, 0, threading.Event()
        self.processes: list[int] = []

    def blocks_now(self) -> dict[int, int]:
        """Bytes by inode. Files that come and go while this looks around may be counted together."""
        blocks: dict[int, int] = {}
        for place in (self.folder, *(Path(f"/proc/{process}/fd") for process in list(self.processes))):
            with contextlib.suppress(OSError):
                for path in place.iterdir():
                    with contextlib.suppress(OSError):
                        if place == self.folder or os.readlink(path).startswith(str(self.folder)):
                            about = path.stat()
                            blocks[about.st_ino] = about.st_blocks * 512
        return blocks

    def run(self) -> None:
        while not self.ends.wait(0.001):
            blocks = self.blocks_now()
            if blocks == self.blocks_now():  # so there was a moment with just these
                self.most = max(self.most, sum(blocks.values()))


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="palimpsest-test-", dir=SHARED_MEMORY))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def node(folder):
    """Starts receivers, and ends them."""
    watch, receivers = Watch(folder), []

    def start(deltas: bool) -> Receiver:
        here, there = FORK.Pipe()
        receiver = Receiver(FORK.Process(target=receive, args=(folder, deltas, there)), here)
        receiver.process.start()
        there.close()
        receivers.append(receiver)
        watch.processes.append(receiver.process.pid)
        return receiver

    yield start, watch
    watch.ends.set()
    for receiver in receivers:
        receiver.process.kill()
        receiver.process.join()


@pytest.mark.parametrize("deltas", [False, True])
def test_a_node_has_two_versions_at_most_and_nobody_sees_another_one(node, folder, deltas):
    """One receiver holds each version while the others stage the next. One is killed while it stages, and replaced."""
    start, watch = node
    for version, number in product(range(2, VERSIONS + 1), range(BUCKETS_OF_A_VERSION)):
        assert delta_to(version, number)  # here, for all processes
    *receivers, slow = [start(deltas) for _ in range(RECEIVERS)]
    watch.start()
    slow.load(1, holds=True)
    slow.says("reads")
    inodes = set()
    for version in range(2, VERSIONS + 1):
        for receiver in receivers:
            receiver.load(version, holds=receiver is receivers[-1])
        if version % 3 == 0:
            time.sleep(random.random() / 50)
            receivers[0].process.kill()
            receivers[0] = start(deltas)
            receivers[0].load(version)
        receivers[-1].says("reads")
        for receiver in receivers[:-1]:
            receiver.says("reads", "done")
        slow.connection.send("read it")
        slow.says("done")
        slow.load(version)
        slow.says("reads", "done")
        inodes |= {path.stat().st_ino for path in folder.iterdir()}
        *receivers, slow = slow, *receivers
    slow.connection.send("read it")
    slow.says("done")
    for receiver in [*receivers, slow]:
        receiver.connection.send(None)
        receiver.says("closed")
    watch.ends.set()
    watch.join()
    assert list(folder.iterdir()) == []
    one = BUCKETS_OF_A_VERSION * BUCKET_BYTES
    assert one < watch.most <= 2 * one
    if deltas:  # else one that still reads the version before leaves nothing to overwrite
        killed = VERSIONS // 3
        assert len(inodes) <= 2 * BUCKETS_OF_A_VERSION + killed * bucket_transport.AT_ONCE
