"""The files of a server's users: streamed to disk, parsed once so that a broken file is refused, found by their ids.

    FOLDER/files/<id>/content     the bytes, with .md or .html if the name says so: that decides how text is read
    FOLDER/files/<id>/meta.json   the rest; written last: a folder without it was never complete

A file's name is data. It is in meta.json and never part of a path. One process owns the folder; all methods run in
its event loop.
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.asking.parsing import BY_NAME, ParseLimits, kind_of, printable, read_document
from pipeline.errors import DataError, UnreadableDocument
from pipeline.private_files import make_private, write_private
from pipeline.serving.config import LimitSection
from pipeline.serving.errors import FileMissing, RequestError

ID = re.compile(r"file-[0-9a-f]{24}")
CONTENT = ["content", *(f"content{suffix}" for suffix in BY_NAME)]
META = "meta.json"
NAME_CHARACTERS = 4096  # at most, of a name
WRITE_BYTES = 1 << 20  # written at a time, in a thread
PARSERS = 2  # files that are parsed at once; others wait
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class StoredFile:
    """A complete file.

    Attributes:
        id: "file-" and 24 hexadecimal digits. Ids sort as the files came.
        owner: the name of the key that it belongs to.
        name: its name, as the user gave it: any characters but lone surrogates.
        bytes: its size.
        created: seconds since 1970.
        kind: "text", "markdown", "html", "pdf" or "docx".
        path: its content.
        characters: of its text.
    """

    id: str
    owner: str
    name: str
    bytes: int
    created: int
    kind: str
    path: Path
    characters: int | None


class FileStore:
    """The files of all keys in `folder`/files. Those of an earlier process are found again; halves are removed.

    Args:
        folder: the server's folder.
        limits: what one key may store, and for how long.
        characters: most characters of a file's text.

    Raises:
        DataError: the folder is another user's, or another server's.
    """

    def __init__(self, folder: Path, limits: LimitSection, characters: int = ParseLimits.characters):
        make_private(folder, "set serve.folder")
        self._folder = folder / "files"
        make_private(self._folder, "set serve.folder")
        self._lock = _locked(folder / "files.lock")
        self._limits = limits
        self.parse_limits = ParseLimits(limits.file_mib << 20, characters, limits.parse_s)
        self._parsers = ThreadPoolExecutor(PARSERS, "parse")
        self._files: dict[str, StoredFile] = {}
        self._used: dict[str, float] = {}  # when each was last used, in seconds since 1970
        self._holds: Counter[str] = Counter()
        self._count: Counter[str] = Counter()  # files by owner, with those that are coming in
        self._bytes: Counter[str] = Counter()
        for path in self._folder.iterdir():
            if ID.fullmatch(path.name):
                self._find(path)

    async def add(self, owner: str, name: str, chunks: AsyncIterator[bytes]) -> StoredFile:
        """Store a file as its bytes come in. If it is not stored, nothing of it is left, and `chunks` is closed.

        Raises:
            RequestError: it is too large (413), of no kind that can be read (415), empty or broken (400), or the disk
                is full (507).
            Exception: an error of `chunks`.
        """
        id, size = f"file-{time.time_ns() // 1000:014x}{secrets.token_hex(5)}", 0
        folder = self._folder / id
        self._count[owner] += 1
        try:
            self._admit(owner, name)
            folder.mkdir(mode=0o700)
            suffix = PurePosixPath(name).suffix.lower()
            path = folder / ("content" + (suffix if suffix in BY_NAME else ""))
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as file:
                async for data in _gathered(chunks):
                    size += len(data)
                    self._bytes[owner] += len(data)
                    self._check_size(owner, size)
                    await _in_thread(_write, file, data)
            kind, characters = await self._parsed(path, name)
            name = name.encode(errors="replace").decode()
            stored = StoredFile(id, owner, name, size, int(time.time()), kind, path, characters)
            write_private(folder / META, _to_json(stored))
            self._files[id], self._used[id] = stored, time.time()
            return stored
        except BaseException as error:
            self._count[owner] -= 1
            self._bytes[owner] -= size
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in FULL:
                raise RequestError(
                    507, "the server's disk is full; try again later", "server_error", "insufficient_storage"
                ) from error
            raise
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    def get(self, owner: str, id: str) -> StoredFile:
        """A file of this owner; it counts as used now.

        Raises:
            FileMissing: there is none.
        """
        stored = self._files.get(id)
        if stored is None or stored.owner != owner:
            raise FileMissing(id)
        self._use(stored)
        return stored

    def list(self, owner: str) -> list[StoredFile]:
        """All files of this owner as they came."""
        return sorted((file for file in self._files.values() if file.owner == owner), key=lambda file: file.id)

    def expires(self, file: StoredFile) -> int:
        """When the file will be removed if nobody uses it, in seconds since 1970."""
        return int(self._used[file.id] + self._limits.keep_s)

    def remove(self, owner: str, id: str) -> None:
        """Remove a file of this owner. A reading that holds it still has its content.

        Raises:
            FileMissing: there is none.
        """
        stored = self.get(owner, id)
        (stored.path.parent / META).unlink(missing_ok=True)  # if this process is killed, it does not come back
        del self._files[id], self._used[id]
        self._count[owner] -= 1
        self._bytes[owner] -= stored.bytes
        if not self._holds[id]:
            shutil.rmtree(stored.path.parent, ignore_errors=True)

    def expire(self) -> int:
        """Remove the files that were last used longer than keep_s ago and are not held; return how many."""
        before = time.time() - self._limits.keep_s
        expired = [file for id, file in self._files.items() if self._used[id] < before and not self._holds[id]]
        for file in expired:
            self.remove(file.owner, file.id)
        return len(expired)

    @contextlib.contextmanager
    def hold(self, file: StoredFile) -> Iterator[None]:
        """Context manager in which the file's content stays, even if the file is removed.

        Raises:
            FileMissing: it was removed before.
        """
        if file.id not in self._files:
            raise FileMissing(file.id)
        self._holds[file.id] += 1
        try:
            yield
        finally:
            self._holds[file.id] -= 1
            if self._holds[file.id] <= 0:
                del self._holds[file.id]
                if file.id not in self._files:
                    shutil.rmtree(file.path.parent, ignore_errors=True)
            if file.id in self._files:
                self._use(file)

    def close(self) -> None:
        """Give the folder back: another process may own it."""
        self._parsers.shutdown(wait=False, cancel_futures=True)
        self._lock.close()

    def _use(self, file: StoredFile) -> None:
        self._used[file.id] = time.time()
        with contextlib.suppress(OSError):  # then a restarted server takes it for used at an earlier time
            os.utime(file.path.parent / META)

    def _find(self, folder: Path) -> None:
        """Know a file of an earlier process again, or remove what is left of it."""
        try:
            stored = _from_json(folder, (folder / META).read_bytes())
            used = (folder / META).stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            shutil.rmtree(folder, ignore_errors=True)
            return
        self._files[stored.id], self._used[stored.id] = stored, used
        self._count[stored.owner] += 1
        self._bytes[stored.owner] += stored.bytes

    def _admit(self, owner: str, name: str) -> None:
        self.expire()
        if len(name) > NAME_CHARACTERS:
            raise RequestError(400, f"the file's name has more than {NAME_CHARACTERS} characters", param="file")
        most = self._limits.files
        if self._count[owner] > most:
            raise RequestError(413, f"this key has {most} files, the limit; delete some", code="quota_exceeded")

    def _check_size(self, owner: str, size: int) -> None:
        most, together = self._limits.file_mib, self._limits.files_mib
        if size > most << 20:
            raise RequestError(413, f"the file has more than {most:,} MiB, the limit", code="file_too_large")
        if self._bytes[owner] > together << 20:
            raise RequestError(
                413, f"this key's files have {together:,} MiB together, the limit; delete some", code="quota_exceeded"
            )

    async def _parsed(self, path: Path, name: str) -> tuple[str, int]:
        """The kind and the number of characters of a file that can be read to its end."""
        given_up, loop = threading.Event(), asyncio.get_running_loop()

        def said(error: UnreadableDocument) -> str:
            return f"{printable(Path(name[:200] or 'file'))}: " + str(error).removeprefix(f"{printable(path)}: ")

        try:
            if not path.stat().st_size:
                raise UnreadableDocument("it is empty")
            try:
                kind = kind_of(path)
            except UnreadableDocument as error:
                raise RequestError(415, said(error), code="unsupported_file", param="file") from None
            parsing = loop.run_in_executor(self._parsers, _characters, path, self.parse_limits, given_up)
            return kind, await parsing
        except UnreadableDocument as error:
            raise RequestError(400, said(error), code="unreadable_file", param="file") from None
        finally:
            given_up.set()


def _characters(path: Path, limits: ParseLimits, given_up: threading.Event) -> int:
    count = 0
    for block in read_document(path, limits):
        count += len(block.text)
        if given_up.is_set():
            break
    return count


def _write(file, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


async def _gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of `WRITE_BYTES` at least, and the rest."""
    gathered = bytearray()
    async for chunk in chunks:
        gathered += chunk
        if len(gathered) >= WRITE_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


async def _in_thread(function, *arguments) -> None:
    """Run a function in a thread, and wait for its end even if cancelled: it uses an open file."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        await asyncio.shield(running)
    finally:
        await asyncio.wait([running])


def _to_json(file: StoredFile) -> bytes:
    row = {**vars(file), "path": file.path.name}
    return json.dumps(row).encode()


def _from_json(folder: Path, row: bytes) -> StoredFile:
    """Raises ValueError, KeyError, TypeError or OSError if the file is not complete."""
    file = StoredFile(**json.loads(row))
    path = folder / CONTENT[CONTENT.index(str(file.path))]
    if file.id != folder.name or path.stat().st_size != file.bytes:
        raise ValueError("not the file that was written")
    return StoredFile(**{**vars(file), "path": path})


def _locked(path: Path):
    """An open file with a lock that ends with this process.

    Raises:
        DataError: another process has it.
    """
    file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise DataError(f"another server uses {path.parent}; end it, or give this one a folder: serve.folder") from None
    return file
