"""Weight buckets as files in shared memory. All processes of an engine map them instead of copying."""

import contextlib
import errno
import fcntl
import io
import os
import re
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.weights.buckets import WeightBucket, new_checksum

SHARED_MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
BUCKET_FILE = "palimpsest-bucket-"  # followed by the owner's process id and a unique suffix
NAME = re.compile(rf"{BUCKET_FILE}\d+-\w+")
READ_BYTES = 2**20  # per read; fits a CPU cache


class BucketError(RuntimeError):
    """A bucket cannot be used. The message gives the reason in one line."""


@dataclass
class BucketFile:
    """A bucket in shared memory. Its owner keeps the file open and locked while it is needed."""

    path: str
    size: int  # bytes
    entries: list  # as in `WeightBucket`
    file: io.FileIO

    def remove(self) -> None:
        Path(self.path).unlink(missing_ok=True)
        self.file.close()


def stage(bucket: WeightBucket, folder: Path = SHARED_MEMORY) -> BucketFile:
    """Copy a bucket into a file in shared memory and verify the copy.

    Raises:
        BucketError: there is no room for it, or the checksum is wrong.
    """
    path, file = _new_file(folder)
    staged = BucketFile(path, bucket.data.size, [list(entry) for entry in bucket.entries], file)
    try:
        left = bucket.data.data
        while left:
            left = left[file.write(left) :]
        _verify(bucket, file)
        return staged
    except OSError as error:
        staged.remove()
        if error.errno != errno.ENOSPC:
            raise
        room = shutil.disk_usage(folder)
        raise BucketError(
            f"{folder} has no room for {bucket.data.size:,} bytes of new weights: {room.free:,} of {room.total:,} "
            "bytes are free, and each generator needs as many there as the model has. Make it larger (Docker: "
            "--shm-size=…; Kubernetes: an emptyDir of medium Memory; else mount -o remount,size=…)"
        ) from None
    except BucketError:
        staged.remove()
        raise


def read_bucket_file(path: str, size: int) -> torch.Tensor:
    """Map the bytes of a staged bucket privately, uint8 [size].

    Raises:
        BucketError: the file is missing or has another size.
    """
    try:
        has = os.path.getsize(path)
    except OSError as error:
        raise BucketError(f"the weights in {path} cannot be read: {error.strerror}") from None
    if has != size:
        raise BucketError(f"{path} has {has:,} bytes, and its weights have {size:,}")
    # Not shared: with shared=True, torch creates a missing file, and fills up a short one with zeros.
    return torch.from_file(path, shared=False, size=size, dtype=torch.uint8)


def remove_orphans(folder: Path = SHARED_MEMORY) -> None:
    """Remove bucket files whose owner was killed, because they occupy memory.

    An owner keeps its files locked until it is done with them or dies. The lock is reliable where process ids are not:
    they may be reused, or belong to another container.
    """
    for path in folder.glob(f"{BUCKET_FILE}*"):
        with contextlib.suppress(OSError):  # it is gone, belongs to another user, or is not a file
            about = path.lstat()
            if NAME.fullmatch(path.name) and stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid():
                _remove_unless_locked(path)


def _remove_unless_locked(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its owner is alive
        path.unlink()
    finally:
        os.close(handle)


def _new_file(folder: Path) -> tuple[str, io.FileIO]:
    """Create an empty, locked file. Retries if `remove_orphans` removed the file before it was locked."""
    while True:
        handle, path = tempfile.mkstemp(prefix=f"{BUCKET_FILE}{os.getpid()}-", dir=folder)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return path, os.fdopen(handle, "w+b", buffering=0)
        os.close(handle)


def _verify(bucket: WeightBucket, file: io.FileIO) -> None:
    """Compare the checksum of the file's bytes with the one computed when the bucket was packed."""
    checksum, part = new_checksum(bucket.entries), memoryview(bytearray(READ_BYTES))
    file.seek(0)
    while read := file.readinto(part):
        checksum.update(part[:read])
    if checksum.intdigest() != bucket.checksum:
        names = [entry[0] for entry in bucket.entries]
        raise BucketError(
            f"the weights from {names[0]} to {names[-1]} are not those that the learners packed: wrong checksum"
        )
