"""Disks that are full, for tests in this process."""

import errno
from collections.abc import Callable
from pathlib import Path


def full_disk(monkeypatch) -> Callable[[int | None], None]:
    """Returns a function that leaves room for so many bytes in every file opened from now on; None: for all."""
    opened = Path.open

    class Full:
        def __init__(self, file, room: int, unbuffered: bool):
            self.file, self.room, self.unbuffered = file, room, unbuffered

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            fits = self.room and (self.unbuffered or len(data) <= self.room)  # a buffered file writes all or raises
            written = self.file.write(data[: self.room])
            self.room -= written
            if not fits:
                raise OSError(errno.ENOSPC, "No space left on device")
            return written

        def __getattr__(self, name):
            return getattr(self.file, name)

    def set_room(room: int | None) -> None:
        full = (
            opened if room is None else lambda path, *a, **k: Full(opened(path, *a, **k), room, k.get("buffering") == 0)
        )
        monkeypatch.setattr(Path, "open", full)

    return set_room
