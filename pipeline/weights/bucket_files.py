"""Weight buckets as files in shared memory: one copy per node, which all processes of all its engines map.

A file has two locks, and each process that uses it has both on a handle of its own. The lock on the file (flock) says
who keeps it: a file that nobody keeps is an orphan. The lock on its bytes (fcntl's open file description locks, which
do not see flock's) says who reads or writes it. Who keeps a file without reading it has a spare.
"""

import contextlib
import errno
import fcntl
import io
import os
import re
import shutil
import stat
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
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
    """A bucket in shared memory. Whoever needs it keeps the file open, with a shared lock on it and on its bytes."""

    path: str
    size: int  # bytes
    entries: list  # as in `WeightBucket`
    checksum: int
    file: io.FileIO

    def release(self) -> None:
        """Give it up. The last one to do so removes the file."""
        with self.file:
            _remove_unless_locked(self.path, self.file.fileno())


class Spares:
    """Files of buckets that a process no longer needs, for new buckets of their sizes.

    Overwriting a file is faster than making one: the kernel neither allocates nor clears memory, and a process that has
    mapped the file keeps its mapping. All processes that used a bucket keep its file as a spare, and each of them may
    overwrite it when nobody reads it. Until then the bucket is there for a process that needs it.
    """

    def __init__(self) -> None:
        self._files: list[io.FileIO] = []  # the oldest first
        self._lock = threading.Lock()

    def add(self, file: BucketFile) -> None:
        """Keep the file of a bucket that is no longer needed."""
        _lock_bytes(file.file, fcntl.F_UNLCK)
        with self._lock:
            self._files.append(file.file)

    def remove(self, file: io.FileIO) -> None:
        """Forget the spare that is this file: it is in use again."""
        with self._lock:
            for spare in [each for each in self._files if os.path.sameopenfile(each.fileno(), file.fileno())]:
                self._files.remove(spare)
                spare.close()

    def take(self, size: int, path: Path) -> io.FileIO | None:
        """Rename a file of this size that nobody reads, and lock its bytes for writing; None if there is none.

        It may also be a file that only other processes keep, so that new files are made only if all others are in use.
        """
        with self._lock:
            for spare in [each for each in self._files if os.fstat(each.fileno()).st_size == size]:
                if _lock_bytes(spare, fcntl.F_WRLCK):
                    self._files.remove(spare)
                    if name := _name_of(spare):
                        os.rename(name, path)
                        return spare
                    spare.close()
        for other in path.parent.glob(f"{BUCKET_FILE}*-{size}"):
            with contextlib.suppress(BucketError):  # of another user
                if file := _locked(other, fcntl.F_WRLCK):
                    os.rename(other, path)
                    return file
        return None

    def trim(self, sizes: Iterable[int]) -> None:
        """Keep no more spares than buckets of these sizes need, the newest. Free the memory of others, unless read."""
        need = Counter(sizes)
        with self._lock:
            files, self._files = self._files, []
            for spare in reversed(files):
                size = os.fstat(spare.fileno()).st_size
                if need[size] and _name_of(spare):
                    need[size] -= 1
                    self._files.insert(0, spare)
                    continue
                with spare:
                    if _lock_bytes(spare, fcntl.F_WRLCK) and (name := _name_of(spare)):
                        spare.truncate(0)  # other processes keep it, and with it its memory
                        os.unlink(name)

    def close(self) -> None:
        """Give all of them up. The last process to do so removes a file."""
        with self._lock:
            for spare in self._files:
                with spare:
                    if name := _name_of(spare):
                        _remove_unless_locked(name, spare.fileno())
            self._files = []


def check_room(size: int) -> None:
    """Check that a node has room for the bucket files of a model.

    Args:
        size: bytes of all that are there at the same time.

    Raises:
        BucketError: it has not.
    """
    ours = 0  # bytes of files that are there already; the engines of a node share them
    for path in SHARED_MEMORY.glob(f"{BUCKET_FILE}*"):
        with contextlib.suppress(OSError):  # it is gone
            about = path.lstat()
            ours += about.st_size if about.st_uid == os.getuid() else 0
    if shutil.disk_usage(SHARED_MEMORY).free + ours < size:
        raise no_room(SHARED_MEMORY, size)


def no_room(folder: Path, size: int) -> BucketError:
    """The error for bytes that do not fit."""
    room = shutil.disk_usage(folder)
    return BucketError(
        f"{folder} has no room for {size:,} bytes of new weights: {room.free:,} of {room.total:,} bytes are free, and "
        "each node with generators needs as many there as the model has, or twice as many with learner.weight_deltas. "
        "Make it larger (Docker: --shm-size=…; Kubernetes: an emptyDir of medium Memory; else mount -o remount,size=…)"
    )


def stage(bucket: WeightBucket, folder: Path = SHARED_MEMORY, spares: Spares | None = None) -> BucketFile:
    """Copy a bucket into a file in shared memory and verify the copy, unless another process of this node has done so.

    Args:
        bucket: the bucket.
        folder: where the file lies.
        spares: files of which one may be overwritten; None: a new file is made.

    Raises:
        BucketError: there is no room for it, or the checksum is wrong.
    """
    return _staged(bucket.entries, bucket.data.size, bucket.checksum, lambda: bucket.data, folder, spares)


def stage_delta(
    delta: BucketDelta, base: BucketFile, folder: Path = SHARED_MEMORY, spares: Spares | None = None
) -> BucketFile:
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

    return _staged(delta.entries, delta.size, delta.checksum, data, folder, spares)


def _staged(
    entries: Entries,
    size: int,
    checksum: int,
    data: Callable[[], np.ndarray],
    folder: Path,
    spares: Spares | None,
) -> BucketFile:
    path = folder / f"{BUCKET_FILE}{checksum:016x}-{size}"
    while True:
        file = _locked(path, fcntl.F_RDLCK) or _written(entries, checksum, data, path, spares)
        if file is not None:
            if spares:
                spares.remove(file)
            return BucketFile(str(path), size, [list(entry) for entry in entries], checksum, file)


def _written(
    entries: Entries, checksum: int, data: Callable[[], np.ndarray], path: Path, spares: Spares | None
) -> io.FileIO | None:
    """Write and verify a bucket's file; None if another process is doing it or has done it."""
    partial = path.with_name(path.name + PARTIAL)
    file = _locked(partial, fcntl.F_WRLCK, os.O_CREAT)
    if file is None:
        time.sleep(POLL_S)
        return None
    with contextlib.ExitStack() as unless_done:
        unless_done.enter_context(file)
        try:
            if path.exists():
                partial.unlink()
                return None
            content = data()
            if spares and os.fstat(file.fileno()).st_size != content.size:  # else of a writer that died
                if spare := spares.take(content.size, partial):
                    file = unless_done.enter_context(spare)
            file.truncate(content.size)
            file.seek(0)
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
        unless_done.pop_all()
    _lock_bytes(file, fcntl.F_RDLCK)
    return file


def read_bucket_file(path: str, size: int) -> torch.Tensor:
    """Map the bytes of a staged bucket privately, uint8 [size].

    Raises:
        BucketError: the file is missing or has another size.
    """
    try:
        has = os.path.getsize(path)
    except OSError as error:
        raise BucketError(f"the weights in {path} cannot be read: {error.strerror}") from None
    check_size(path, has, size)
    # Not shared: with shared=True, torch creates a missing file, and fills up a short one with zeros.
    return torch.from_file(path, shared=False, size=size, dtype=torch.uint8)


def check_size(path: str, has: int, size: int) -> None:
    """Raise `BucketError` if a bucket's file has another size than the bucket."""
    if has != size:
        raise BucketError(f"{path} has {has:,} bytes, and its weights have {size:,}")


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


def _locked(path: Path, lock: int, flags: int = 0) -> io.FileIO | None:
    """Open a file, keep it, and lock its bytes.

    Args:
        path: the file.
        lock: `fcntl.F_RDLCK` or `fcntl.F_WRLCK`.
        flags: further flags of `os.open`.

    Returns:
        None if there is no such file, another process has locked the bytes, or the file was renamed or removed.

    Raises:
        BucketError: it is no file of this user. Anyone may write to shared memory, and names can be guessed.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o600)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BucketError(f"{path} cannot be used: {error.strerror}") from None
    file = os.fdopen(handle, "r+b", buffering=0)
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid():
        file.close()
        raise BucketError(f"{path} is not a file of this user")
    with contextlib.suppress(FileNotFoundError):
        fcntl.flock(handle, fcntl.LOCK_SH)
        if _lock_bytes(file, lock) and os.path.samestat(os.stat(path), about):
            return file
    file.close()
    return None


def _name_of(file: io.FileIO) -> str | None:
    """The path of an open file, which another process may have renamed; None if it was removed."""
    return os.readlink(f"/proc/self/fd/{file.fileno()}") if os.fstat(file.fileno()).st_nlink else None


def _lock_bytes(file: io.FileIO, lock: int) -> bool:
    """Change the lock on a file's bytes; return whether other locks allow it. A lock is changed at once or stays."""
    with contextlib.suppress(BlockingIOError):
        # struct flock: type, beginning and length (0, 0: all bytes), and a process id, which these locks leave 0.
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi", lock, os.SEEK_SET, 0, 0, 0))
        return True
    return False


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
