"""Writing where a disk may be full and a file server may hang: no caller waits longer than it wants, and nothing that
could not be written is lost in silence."""

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

LIMIT_S = 10.0  # storage that takes longer hangs
MOST_KEPT = 1 << 26  # characters of lines that wait for the storage

Result = TypeVar("Result")


class StorageHung(OSError):
    """The storage did not answer in time. The call may still end, once the storage is back."""


class StorageClosed(OSError):
    """No more calls are made there."""


class Storage:
    """Makes calls that touch one place of storage, in a thread of their own and in their order.

    A call that hangs occupies this thread alone: neither its caller, nor the end of the process, nor the threads that
    asyncio shares wait for it.

    Args:
        place: for the messages.
        limit_s: how long a caller waits.
    """

    def __init__(self, place: str | Path, limit_s: float = LIMIT_S):
        self.place, self.limit_s = place, limit_s
        self.closed = ""  # why, once it is
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._overdue: concurrent.futures.Future | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[..., Result], *arguments, limit_s: float | None = None) -> Result:
        """What the function returns. It is not called while an earlier call hangs.

        Raises:
            StorageHung: not within the limit.
            Exception: what the function raises.
        """
        call, limit_s = self.begin(function, *arguments), self.limit_s if limit_s is None else limit_s
        concurrent.futures.wait([call], limit_s)
        return self._result(call, limit_s)

    async def call_async(self, function: Callable[..., Result], *arguments, limit_s: float | None = None) -> Result:
        """See `call`; the event loop runs meanwhile."""
        call, limit_s = self.begin(function, *arguments), self.limit_s if limit_s is None else limit_s
        ended = asyncio.wrap_future(call)
        ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # `call` is what is looked at
        await asyncio.wait([ended], timeout=limit_s)
        return self._result(call, limit_s)

    def begin(self, function: Callable, *arguments) -> concurrent.futures.Future:
        """Make a call that nobody waits for.

        Raises:
            StorageHung: an earlier one hangs.
            StorageClosed: it is closed.
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
        """Make no more calls. Those that wait are not made either and raise `StorageClosed`, with the reason."""
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
    """A file to which lines are added, all that wait or none of them at a time. Lines that cannot be written wait for
    the next attempt.

    Args:
        path: of the file; its folder is made with the first line.
        storage: of its folder; None: one of its own.
    """

    def __init__(self, path: Path, storage: Storage | None = None):
        self.path, self.storage = path, storage or Storage(path.parent)
        self.lost = 0  # lines that there was no room to keep
        self._failed = ""  # why the last attempt did
        self._since: float | None = None  # when the attempt began that nobody waits for
        self._asked = False  # the storage will get to what waits
        self._waiting: list[str] = []
        self._size = 0  # characters of them
        self._lock = threading.Lock()

    @property
    def problem(self) -> str:
        """Why lines are not written; empty: they are, or are about to be."""
        since = self._since
        if since is not None and time.monotonic() - since > self.storage.limit_s:
            return f"the storage of {self.storage.place} does not answer"
        return self._failed

    @property
    def unwritten(self) -> int:
        """Lines that are not in the file: they wait, or are lost."""
        return len(self._waiting) + self.lost

    def add(self, *lines: str) -> str:
        """Add lines, given without their ends; return why they could not be written now, if so."""
        self._keep(lines)
        return self.write()

    def put(self, *lines: str) -> None:
        """Add lines and do not wait until they are written; `problem` tells of it later."""
        self._keep(lines)
        with self._lock, contextlib.suppress(StorageHung, StorageClosed):
            if not self._asked:
                self.storage.begin(self._write)
                self._asked = True
                self._since = self._since or time.monotonic()

    def write(self) -> str:
        """Try to write what waits; return why that failed, if so."""
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


def append(text: str, path: Path) -> None:
    """Add lines to a file, all or none of them. A last line that was cut off with its writer stays a line of its own.

    Raises:
        OSError: they could not be written; the file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode(errors="backslashreplace")  # what is not valid Unicode becomes its JSON escape
    file = path.open("a+b", buffering=0)
    end = file.seek(0, os.SEEK_END)
    try:
        with contextlib.closing(file):  # a file server may say only now that it is full
            if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
                data = b"\n" + data
            while data:
                data = data[file.write(data) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, end)
        raise
