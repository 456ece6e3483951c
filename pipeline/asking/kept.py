"""Kept readings: the finished conversations of a reading on disk, so that it resumes, and its answer.

A reading has a file of its own, named by a digest of all that its answer depends on (`reading_key`). The file is JSON
lines: a header, then each finished conversation with a digest of its prompt, in the end the answer. An agent is run
again from the start and gets the responses that are there, as in pipeline/rollout/replay.py; they are read from the
file when they are needed, so that a long reading takes no memory.
"""

import contextlib
import fcntl
import json
import os
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.private_files import make_private, user_folder
from pipeline.rollout.episodes import Completion
from pipeline.rollout.replay import digest

HEADER = {"palimpsest": "reading", "format": 1}
SUFFIX = ".jsonl"
MOST_READINGS = 200
MOST_BYTES = 2**29  # of all readings together


@dataclass(frozen=True)
class KeptCompletion(Completion):
    """A response from an earlier reading."""


def default_folder() -> Path:
    """The folder of kept readings: in $XDG_CACHE_HOME, by default ~/.cache."""
    return user_folder("XDG_CACHE_HOME", ".cache") / "asked"


def reading_key(parts: Mapping[str, Any]) -> str:
    """A digest of everything that a reading depends on; the values can be written as JSON."""
    return blake2b(json.dumps([HEADER, parts], sort_keys=True).encode(), digest_size=20).hexdigest()


class NothingKept:
    """The readings of somebody who wants none kept."""

    answered: dict | None = None

    def take(self, prompt: list[int]) -> KeptCompletion | None:
        """Return the response to this prompt and forget it; None if there is none."""
        return None

    def add(self, prompt: list[int], response: Completion) -> None:
        """Keep a finished conversation."""

    def finish(self, answered: dict) -> None:
        """Keep the answer."""

    def close(self) -> None:
        """Close the file."""


class KeptReading(NothingKept):
    """One reading's file, for one process at a time.

    Attributes:
        answered: the answer that `finish` kept; None if the reading has not come to its end.

    Args:
        folder: the folder of all readings. It is made with permissions for its owner only; the oldest readings in it
            are removed beyond `MOST_READINGS` and `MOST_BYTES`.
        key: the reading's key.

    Raises:
        DataError: the folder belongs to somebody else, the file is damaged, or another process has it.
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path, key: str):
        make_private(folder, "set ask.folder, or use --no-keep")
        _remove_oldest(folder, key)
        self.answered = None
        self._path = folder / f"{key}{SUFFIX}"
        self._places: defaultdict[bytes, deque[int]] = defaultdict(deque)
        self._file = open(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except BlockingIOError:
            self._file.close()
            raise DataError(
                "another process is asking the same question about the same document; wait for its answer, or use "
                "--no-keep"
            ) from None
        except BaseException:
            self._file.close()
            raise

    def _load(self) -> None:
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):  # the process died while it wrote
                break
            try:
                row = json.loads(line)
                if end == 0:
                    if row != HEADER:
                        raise ValueError
                elif "answered" in row:
                    self.answered = dict(row["answered"])
                else:
                    self._places[bytes.fromhex(row["prompt"])].append(end)
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DataError(f"{self._path} is damaged; remove it, or use --no-keep") from None
            end += len(line)
        self._file.truncate(end)
        self._file.seek(end)
        if end == 0:
            self._write(HEADER)
        os.utime(self._path)

    def take(self, prompt: list[int]) -> KeptCompletion | None:
        places = self._places.get(digest(prompt))
        if not places:
            return None
        self._file.seek(places.popleft())
        try:
            row = json.loads(self._file.readline())
            tokens = [int(token) for token in row["tokens"]]
            logprobs = [float(value) for value in row["logprobs"]]
            return KeptCompletion(
                tokens, logprobs, [0] * len(tokens), str(row["finish_reason"]), max_tokens=int(row["max_tokens"])
            )
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{self._path} is damaged; remove it, or use --no-keep") from None

    def add(self, prompt: list[int], response: Completion) -> None:
        self._write(
            {
                "prompt": digest(prompt).hex(),
                "tokens": list(response.tokens),
                "logprobs": [round(value, 6) for value in response.logprobs],
                "finish_reason": response.finish_reason,
                "max_tokens": response.max_tokens,
            }
        )

    def finish(self, answered: dict) -> None:
        self._write({"answered": answered})

    def close(self) -> None:
        self._file.close()

    def _write(self, row: dict) -> None:
        self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()


def _remove_oldest(folder: Path, but: str) -> None:
    """Remove the readings that were used longest ago, until their number and size are within the limits."""
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            found.append((path.stem == but, path.stat().st_mtime_ns, path.stat().st_size, path))
    size = 0
    for number, (is_used, _, of_this, path) in enumerate(sorted(found, reverse=True)):
        size += of_this
        if not is_used and (number >= MOST_READINGS or size > MOST_BYTES):
            path.unlink(missing_ok=True)
