"""Weight buckets as files in shared memory: one copy per node, which all processes of all its engines map."""

import contextlib
import errno
import fcntl
import io
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.weights.buckets import Entries, WeightBucket, new_checksum
from pipeline.weights.deltas import BucketDelta, patched

SHARED_MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
BUCKET_FILE = "palimpsest-bucket-"  # followed by the bucket's checksum and size
PARTIAL = ".partial"  # ends the name of a file that is not yet verified
NAME = re.compile(rf"{BUCKET_FILE}[0-9a-f]{{16}}-\d+(\{PARTIAL})?")
POLL_S = 0.02  # between looks at a file that another process writes
READ_BYTES = 2**20  # per read; fits a CPU cache


class BucketError(RuntimeError):
    """A bucket cannot be used. The message gives the reason in one line."""


@dataclass
class BucketFile:
    """A bucket in shared memory. Whoever needs it keeps the file open, with a shared lock."""

    path: str
    size: int  # bytes
    entries: list  # as in `WeightBucket`
    checksum: int
    file: io.FileIO

    def release(self) -> None:
        """Give it up. The last one to do so removes the file."""
        with self.file:
            _remove_unless_locked(self.path, self.file.fileno())


def check_room(size: int, folder: Path = SHARED_MEMORY) -> None:
    """Check that a node has room for the bucket files of a model.

    Args:
        size: bytes of all that are there at the same time.
        folder: where they lie.

    Raises:
        BucketError: it has not.
    """
    ours = 0  # bytes of files that are there already; the engines of a node share them
    for path in folder.glob(f"{BUCKET_FILE}*"):
        with contextlib.suppress(OSError):  # it is gone
            about = path.lstat()
            ours += about.st_size if about.st_uid == os.getuid() else 0
    if shutil.disk_usage(folder).free + ours < size:
        raise no_room(folder, size)


def no_room(folder: Path, size: int) -> BucketError:
    """The error for bytes that do not fit."""
    room = shutil.disk_usage(folder)
    return BucketError(
        f"{folder} has no room for {size:,} bytes of new weights: {room.free:,} of {room.total:,} bytes are free, and "
        "each node with generators needs as many there as the model has, or twice as many with learner.weight_deltas. "
        "Make it larger (Docker: --shm-size=…; Kubernetes: an emptyDir of medium Memory; else mount -o remount,size=…)"
    )


def stage(bucket: WeightBucket, folder: Path = SHARED_MEMORY) -> BucketFile:
    """Copy a bucket into a file in shared memory and verify the copy, unless another process of this node has done so.

    Raises:
        BucketError: there is no room for it, or the checksum is wrong.
    """
    return _staged(bucket.entries, bucket.data.size, bucket.checksum, lambda: bucket.data, folder)


def stage_delta(delta: BucketDelta, base: BucketFile, folder: Path = SHARED_MEMORY) -> BucketFile:
    """The same for the bucket that a delta makes of the staged one before it.

    Raises:
        BucketError: there is no room for it, the delta is damaged or of another base, or the checksum is wrong.
    """
    if base.checksum != delta.base:
        raise BucketError(f"the delta is to bucket {delta.base:016x}, not to {base.checksum:016x}")

    def data() -> np.ndarray:
        try:
            return patched(read_bucket_file(base.path, base.size).numpy(), delta)
        except ValueError as error:
            raise BucketError(str(error)) from None

    return _staged(delta.entries, delta.size, delta.checksum, data, folder)


def _staged(entries: Entries, size: int, checksum: int, data: Callable[[], np.ndarray], folder: Path) -> BucketFile:
    path = folder / f"{BUCKET_FILE}{checksum:016x}-{size}"
    while True:
        file = _locked(path, os.O_RDONLY, fcntl.LOCK_SH)
        if file is not None:
            return BucketFile(str(path), size, [list(entry) for entry in entries], checksum, file)
        _write(entries, checksum, data, path)


def _write(entries: Entries, checksum: int, data: Callable[[], np.ndarray], path: Path) -> None:
    """Write and verify a bucket's file. Returns without doing so if another process is doing it or has done it."""
    partial = path.with_name(path.name + PARTIAL)
    file = _locked(partial, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if file is None:
        time.sleep(POLL_S)
        return
    with file:
        try:
            if path.exists():
                partial.unlink()
                return
            file.truncate(0)  # of a writer that died
            content = data()
            left = content.data
            while left:
                left = left[file.write(left) :]
            _verify(entries, checksum, file)
            partial.rename(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno != errno.ENOSPC:
                raise
            raise no_room(path.parent, content.size) from None
        except BucketError:
            partial.unlink()
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
    """Remove bucket files that nobody needs any more, because they occupy memory: their users were killed.

    Whoever needs a file keeps it locked until it is done with it or dies. The lock is reliable where process ids are
    not: they may be reused, or belong to another container.
    """
    for path in folder.glob(f"{BUCKET_FILE}*"):
        with contextlib.suppress(OSError):  # it is gone, belongs to another user, or is not a file
            about = path.lstat()
            if NAME.fullmatch(path.name) and stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid():
                handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                with os.fdopen(handle, "rb", buffering=0):
                    _remove_unless_locked(path, handle)


def _remove_unless_locked(path: str | Path, handle: int) -> None:
    """Remove a file that is open with this handle unless another process, or another handle, has a lock on it."""
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.stat(path), os.fstat(handle)):  # else the name is another file's by now
            os.unlink(path)


def _locked(path: Path, flags: int, lock: int) -> io.FileIO | None:
    """Open and lock a file; None if there is none, another process has the lock, or it was renamed or removed.

    Raises:
        BucketError: it is no file of this user. Anyone may write to shared memory, and names can be guessed.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BucketError(f"{path} cannot be used: {error.strerror}") from None
    file = os.fdopen(handle, "r+b" if flags & os.O_RDWR else "rb", buffering=0)
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid():
        file.close()
        raise BucketError(f"{path} is not a file of this user")
    with contextlib.suppress(FileNotFoundError, BlockingIOError):
        fcntl.flock(handle, lock)
        if os.path.samestat(os.stat(path), about):
            return file
    file.close()
    return None


def _verify(entries: Entries, checksum: int, file: io.FileIO) -> None:
    """Compare the checksum of the file's bytes with the one computed when the bucket was packed."""
    digest, part = new_checksum(entries), memoryview(bytearray(READ_BYTES))
    file.seek(0)
    while read := file.readinto(part):
        digest.update(part[:read])
    if digest.intdigest() != checksum:
        names = [entry[0] for entry in entries]
        raise BucketError(
            f"the weights from {names[0]} to {names[-1]} are not those that the learners packed: wrong checksum"
        )
