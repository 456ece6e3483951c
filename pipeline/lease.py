"""The lease of a run folder: two runs never write to the same folder, even from different clusters.

`lease.json` in the folder names the run that holds the folder and has a counter, the heartbeat, which goes up every
`BEAT_S`. The folder on shared storage is all that two clusters have in common, so there is no other lock.

- The file is created with O_EXCL, which file servers honour too (NFS from version 3). Only the holder of the lease
  makes the run's id, so the id enters the lease with the first heartbeat.
- A heartbeat overwrites the file in place: that needs no room on a full disk, and on NFS every process that opens the
  file after it was closed reads the new content.
- Hosts' clocks differ, so they are never compared. A run that finds a lease watches it: if the heartbeat changes, the
  lease is alive; if it stays the same for `STALE_S`, the lease is stale. (The age in messages compares two times of
  the file server itself.)
- On one machine there is no wait: a process that does not exist has no heartbeat. A process is identified by its id
  and its start time in clock ticks since boot, so clocks play no part there either.
- A stale lease is replaced by a rename. If two runs do so at once, the last one holds the lease. The other finds out
  when it looks again `SETTLE_S` later, or at its next heartbeat.
- A run that was only suspended, or whose storage hung, finds another run's lease at its next heartbeat and must end.
  Two runs overlap for one heartbeat at most; after that the older one begins no other write (actors/job_actor.py).
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.files import write_text
from pipeline.summary import duration

LEASE, RUN_ID = "lease.json", "run.id"
BEAT_S = 5.0
STALE_S = 60.0
SETTLE_S = 1.0
LOOK_S = 0.5  # between two looks at a watched lease
LENGTH = 1024  # bytes of the file; a heartbeat never changes its size


class LeaseLost(RuntimeError):
    """Another run holds the folder now. The message names it."""


@dataclass(frozen=True)
class Holder:
    """The process that keeps a lease alive."""

    host: str
    pid: int
    ticks: int  # the process's start time, because process ids are reused
    machine: str  # the boot of this machine, and the namespace (container) that the process id belongs to

    @classmethod
    def here(cls) -> "Holder":
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _process(pid)[1] if _machine() else 0, _machine())

    def is_dead(self) -> bool:
        """Whether the process is known to be gone. Only its own machine can know."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            state, ticks = _process(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return True
        except OSError:
            return False
        return ticks != self.ticks or state == "Z"


@dataclass(frozen=True)
class Lease:
    """A lease that this run took.

    Any process that has this object can keep the lease alive, but one at a time: the last one that called `keep`.
    """

    folder: str
    run: str  # the run's id, which stays the same when the run is resumed
    token: str  # new each time the lease is taken

    @property
    def path(self) -> Path:
        return Path(self.folder) / LEASE

    def keep(self) -> None:
        """Send one heartbeat. From now on this process keeps the lease. Raises: as `beat`."""
        self._write(take_over=True)

    def beat(self) -> bool:
        """Send one heartbeat and return True; return False if another process keeps the lease by now.

        Raises:
            LeaseLost: another run holds the lease.
            OSError: the heartbeat could not be written.
        """
        return self._write(take_over=False)

    def _write(self, take_over: bool) -> bool:
        try:
            file = self.path.open("r+b", buffering=0)
        except FileNotFoundError:
            raise LeaseLost(f"the lease {self.path} of this run is gone: somebody removed it, or its folder") from None
        with file:
            there = _parsed(file.read())
            if there is None:
                raise OSError(f"{self.path} cannot be read")
            if there.token != self.token:
                raise LeaseLost(
                    f"the run folder {self.folder} was taken over by {there}, because this run sent no heartbeat "
                    f"for {duration(STALE_S)}; this run ends and writes nothing more"
                )
            if not take_over and there.holder != Holder.here():
                return False
            file.seek(0)
            file.write(replace(there, run=self.run, holder=Holder.here(), beats=there.beats + 1).bytes())
        return True

    def release(self) -> None:
        """Release the folder. Raises `OSError`."""
        there = _look(self.path)
        if there and there.token == self.token:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Content:
    """The content of lease.json."""

    run: str  # the run's id; empty until it has one
    token: str
    holder: Holder
    beats: int = 0

    def __str__(self) -> str:
        return f"{f'run {self.run}' if self.run else 'a run'} on {self.holder.host} (process {self.holder.pid})"

    def bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode().ljust(LENGTH - 1) + b"\n"


class Heartbeat:
    """Keeps a lease alive from a thread of this process, until another process keeps it or `end` is called."""

    def __init__(self, lease: Lease):
        self._lease, self._ended = lease, threading.Event()
        threading.Thread(target=self._beat, name="lease", daemon=True).start()

    def end(self) -> None:
        self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):
                try:
                    if not self._lease.beat():
                        return
                except LeaseLost:
                    return  # the process that keeps the lease reports it


def run_id(folder: Path) -> str:
    """The id of the run in this folder, made if there is none. Call this only while holding the lease.

    Raises:
        OSError: the id cannot be read or written.
    """
    path = folder / RUN_ID
    with contextlib.suppress(FileNotFoundError):
        if there := path.read_text(encoding="utf-8", errors="replace").strip():
            return there
    new = uuid.uuid4().hex
    write_text(path, f"{new}\n")
    return new


def is_unused(folder: Path) -> bool:
    """Whether a folder is missing, or holds at most what a run that never began leaves: its id and its lease."""
    return not folder.exists() or all(path.name.startswith((LEASE, RUN_ID)) for path in folder.iterdir())


def take_lease(
    folder: Path,
    say: Callable[[str], None] = print,
    asked_to_stop: Callable[[], bool] = lambda: False,
    stale_s: float | None = None,
) -> Lease:
    """Take the lease of a run folder, which is created if it is missing.

    Args:
        folder: the run folder.
        say: called with each line about a stale lease.
        asked_to_stop: returns True to end the wait.
        stale_s: seconds after which an unchanged heartbeat is stale; None: STALE_S.

    Raises:
        ConfigError: another run holds the folder.
        KeyboardInterrupt: `asked_to_stop` returned True.
        OSError: the folder cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, stale_s = folder / LEASE, STALE_S if stale_s is None else stale_s
    mine = _Content("", uuid.uuid4().hex, Holder.here())
    while True:
        if not _made(path, mine):
            found = _look(path)
            if not _is_stale(path, found, say, asked_to_stop, stale_s):
                continue  # it was released
            if not _replaced(path, mine):
                continue  # another run replaced it later
            say(f"· took over the run folder {folder} from {found or 'an unknown run'}, which has ended")
        with contextlib.suppress(LeaseLost):  # if lost again, look at the new holder
            return _with_id(folder, mine.token)


def _made(path: Path, content: _Content) -> bool:
    """Make a lease; False if there is one already. Raises `OSError`, and then leaves none."""
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content.bytes())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _replaced(path: Path, content: _Content) -> bool:
    """Replace a stale lease; False if another run did so later. Raises `OSError`, and then the lease is unchanged."""
    partial = path.with_name(f"{LEASE}.{content.token}")
    try:
        partial.write_bytes(content.bytes())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    time.sleep(SETTLE_S)
    now = _look(path)
    return now is not None and now.token == content.token


def _with_id(folder: Path, token: str) -> Lease:
    """The lease that was just taken, with the run's id in it.

    Raises:
        LeaseLost: another run holds the lease by now.
        OSError: the id cannot be read or written. The folder is released.
    """
    try:
        lease = Lease(str(folder), run_id(folder), token)
        lease.keep()
    except OSError:
        Lease(str(folder), "", token).release()
        raise
    return lease


def _is_stale(
    path: Path,
    found: _Content | None,
    say: Callable[[str], None],
    asked_to_stop: Callable[[], bool],
    stale_s: float,
) -> bool:
    """Watch a lease until it is known to be stale; False if it disappears. Raises: as `take_lease`."""
    if found and found.holder.is_dead():
        return True
    begin, said = time.monotonic(), False
    while (waited := time.monotonic() - begin) < stale_s:
        if asked_to_stop():
            raise KeyboardInterrupt
        now = _look(path)
        if now is None and not path.exists():
            return False
        if now and now != found:
            raise ConfigError(
                f"the run folder {path.parent} is in use by {now}, whose last heartbeat came "
                f"{duration(_age_s(path))} ago; stop that run, or choose another run.name"
            )
        if not said and waited > min(2 * BEAT_S, stale_s / 2):
            said = True
            say(
                f"· the run folder {path.parent} is leased to {found or 'an unknown run'}, whose last heartbeat came "
                f"{duration(_age_s(path))} ago; it is taken over if none comes within {duration(stale_s - waited)}"
            )
        time.sleep(min(LOOK_S, stale_s / 4))
    return True


def _look(path: Path) -> _Content | None:
    """The content of a lease; None if there is none, or it is being written."""
    try:
        return _parsed(path.read_bytes())
    except FileNotFoundError:
        return None


def _parsed(data: bytes) -> _Content | None:
    try:
        values = json.loads(data)
        return _Content(**values | {"holder": Holder(**values["holder"])})
    except (ValueError, TypeError, KeyError):
        return None


def _age_s(path: Path) -> float:
    """Seconds since a file was written, by its file server's clock."""
    probe = path.with_name(f"{LEASE}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        probe.touch()
        try:
            return max(0.0, probe.stat().st_mtime - path.stat().st_mtime)
        finally:
            probe.unlink(missing_ok=True)
    return 0.0


def _process(pid: int) -> tuple[str, int]:
    """The state of a process, and its start time in clock ticks since boot. Raises `OSError`."""
    # proc_pid_stat(5): the third field and the 22nd. The second, the name in parentheses, may hold any character.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _machine() -> str:
    """An id of this machine's boot and this process's namespace of process ids; empty where Linux does not tell."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""
