"""Writes that cope with full disks and hung file servers.

No caller waits longer than its limit, and nothing that could not be written is lost silently.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

LIMIT_S = 10.0  # storage that takes longer counts as hung
MOST_KEPT = 1 << 26  # characters of waiting lines

Result = TypeVar("Result")


class StorageHung(OSError):
    """The storage did not answer in time. The call may still complete once the storage is back."""


class StorageClosed(OSError):
    """The storage was closed: no more calls are made there."""


class Storage:
    """Makes the calls to one place of storage, in order, in a thread of its own.

    A call that hangs blocks only this thread: not its caller, the exit of the process, or asyncio's shared threads.

    Args:
        place: the place, for messages.
        limit_s: seconds that a caller waits.
    """

    def __init__(self, place: str | Path, limit_s: float = LIMIT_S):
        self.place, self.limit_s = place, limit_s
        self.closed = ""  # the reason, once closed
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._overdue: concurrent.futures.Future | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[..., Result], *arguments, limit_s: float | None = None) -> Result:
        """Call the function and return its result. It is not called while an earlier call hangs.

        Raises:
            StorageHung: no result within the limit, or an earlier call hangs.
            StorageClosed: the storage is closed.
            Exception: any error of the function.
        """
        call, limit_s = self.begin(function, *arguments), self.limit_s if limit_s is None else limit_s
        concurrent.futures.wait([call], limit_s)
        return self._result(call, limit_s)

    async def call_async(self, function: Callable[..., Result], *arguments, limit_s: float | None = None) -> Result:
        """Like `call`, without blocking the event loop."""
        call, limit_s = self.begin(function, *arguments), self.limit_s if limit_s is None else limit_s
        ended = asyncio.wrap_future(call)
        ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # marks the error as retrieved
        await asyncio.wait([ended], timeout=limit_s)
        return self._result(call, limit_s)

    def begin(self, function: Callable, *arguments) -> concurrent.futures.Future:
        """Make a call without waiting for it; return its future.

        Raises:
            StorageHung: an earlier call hangs.
            StorageClosed: the storage is closed.
        """
        with self._lock:
            if self.closed:
                raise StorageClosed(self.closed)
            if self._overdue and not self._overdue.done():
                raise StorageHung(f"the storage of {self.place} does not answer")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"storage {self.place}", daemon=True)
                self._thread.start()
            call: concurrent.futures.Future = concurrent.futures.Future()
            self._calls.put((call, function, arguments))
        return call

    def close(self, why: str) -> None:
        """Make no more calls. Waiting calls are not made either: they raise `StorageClosed` with the reason `why`."""
        self.closed = why

    def _result(self, call: concurrent.futures.Future, limit_s: float):
        if call.done():
            return call.result()
        self._overdue = call
        raise StorageHung(f"the storage of {self.place} did not answer within {limit_s:g} s")

    def _work(self) -> None:
        while True:
            call, function, arguments = self._calls.get()
            if not call.set_running_or_notify_cancel():
                continue
            try:
                if self.closed:
                    raise StorageClosed(self.closed)
                call.set_result(function(*arguments))
            except BaseException as error:
                call.set_exception(error)


class LineFile:
    """A file to append lines to. Each write appends all waiting lines or none; on failure they wait for the next one.

    Args:
        path: the file; its folder is created with the first line.
        storage: the storage of its folder; None: one of its own.
    """

    def __init__(self, path: Path, storage: Storage | None = None):
        self.path, self.storage = path, storage or Storage(path.parent)
        self.lost = 0  # lines dropped because too much was waiting
        self._failed = ""  # why the last write failed
        self._since: float | None = None  # start of the unfinished write that no caller waits for
        self._asked = False  # a queued write will include all waiting lines
        self._waiting: list[str] = []
        self._size = 0  # characters in the waiting lines
        self._lock = threading.Lock()

    @property
    def problem(self) -> str:
        """Why lines are not being written; empty if they are, or are about to be."""
        since = self._since
        if since is not None and time.monotonic() - since > self.storage.limit_s:
            return f"the storage of {self.storage.place} does not answer"
        return self._failed

    @property
    def unwritten(self) -> int:
        """The number of lines that are not in the file: waiting or lost."""
        return len(self._waiting) + self.lost

    def add(self, *lines: str) -> str:
        """Add lines, given without line ends, and write them; return why that failed, or "" if it did not."""
        self._keep(lines)
        return self.write()

    def put(self, *lines: str) -> None:
        """Add lines without waiting for the write; a failure shows later in `problem`."""
        self._keep(lines)
        with self._lock, contextlib.suppress(StorageHung, StorageClosed):
            if not self._asked:
                self.storage.begin(self._write)
                self._asked = True
                self._since = self._since or time.monotonic()

    def write(self) -> str:
        """Try to write the waiting lines; return why that failed, or "" if it did not."""
        try:
            if self._waiting:
                self.storage.call(self._write)
        except OSError as error:
            self._failed = str(error)
        return self.problem

    def _keep(self, lines: Sequence[str]) -> None:
        with self._lock:
            for line in lines:
                if self._size + len(line) > MOST_KEPT:
                    self.lost += 1
                else:
                    self._waiting.append(line)
                    self._size += len(line)

    def _write(self) -> None:
        with self._lock:
            lines, self._asked = list(self._waiting), False
        try:
            if lines:
                append("".join(f"{line}\n" for line in lines), self.path)
        except OSError as error:
            self._failed = str(error)
            raise
        finally:
            self._since = None
        self._failed = ""
        with self._lock:
            del self._waiting[: len(lines)]
            self._size = sum(map(len, self._waiting))


def has_lines(path: Path) -> bool:
    """Whether there is a file with anything in it."""
    return path.exists() and path.stat().st_size > 0


def append(text: str, path: Path) -> None:
    """Append lines to a file, all or none. A last line that was cut off when its writer died stays a separate line.

    Raises:
        OSError: the lines could not be written; the file is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode(errors="backslashreplace")  # invalid Unicode becomes its JSON escape
    file = path.open("a+b", buffering=0)
    end = file.seek(0, os.SEEK_END)
    try:
        with contextlib.closing(file):  # a file server may report only on close that it is full
            if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
                data = b"\n" + data
            while data:
                data = data[file.write(data) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, end)
        raise
