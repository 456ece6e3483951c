"""The keys of a server: the names of their owners, and hashes from which no key can be found."""

import contextlib
import fcntl
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ConfigError, DataError
from pipeline.private_files import make_private, write_private

PREFIX = "pal-"
KEY_BYTES = 32  # random bytes of a key; so many need no salt and no slow hash
NAME_CHARACTERS = 100  # at most, of a name


class Keys:
    """The keys of `folder`/keys.json. Other processes may make and remove keys meanwhile: the file is read when used.

    What belongs to a key belongs to its name: a key that is made for a name that was removed finds its files.

    Raises:
        DataError: the folder is another user's.
    """

    def __init__(self, folder: Path):
        make_private(folder, "set serve.folder")
        self._path = folder / "keys.json"
        self._state: tuple[int, ...] | None = None
        self._hashes: dict[str, str] = {}  # by name

    def make(self, name: str) -> str:
        """A new key. It is returned here and never again.

        Raises:
            ConfigError: the name is taken, or is no line of 1 to 100 printable characters.
        """
        if not (0 < len(name) <= NAME_CHARACTERS and name.isprintable() and name == name.strip()):
            raise ConfigError(
                f"a key's name is a line of 1 to {NAME_CHARACTERS} printable characters, without blanks around it"
            )
        key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
        with self._changing() as hashes:
            if name in hashes:
                raise ConfigError(f"there is a key {name!r}; remove it, or choose another name")
            hashes[name] = _hash(key)
        return key

    def names(self) -> list[str]:
        """The names of all keys, sorted."""
        return sorted(self._read())

    def remove(self, name: str) -> None:
        """Remove a key: no request with it is accepted from now on.

        Raises:
            ConfigError: there is no such key.
        """
        with self._changing() as hashes:
            if name not in hashes:
                raise ConfigError(f"there is no key {name!r}")
            del hashes[name]

    def name_of(self, given: str) -> str | None:
        """The name of a key; None: it is unknown. The time that this takes does not depend on which key is given."""
        hashed, found = _hash(given), None
        for name, known in self._read().items():
            if hmac.compare_digest(known, hashed):
                found = name
        return found

    def _read(self) -> dict[str, str]:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._state, self._hashes = None, {}
            return self._hashes
        state = (found.st_ino, found.st_mtime_ns, found.st_size)
        if state != self._state:
            try:
                rows = json.loads(self._path.read_bytes())["keys"]
                hashes = {str(row["name"]): str(row["sha256"]) for row in rows}
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DataError(f"{self._path} is damaged; remove it, and make new keys") from None
            self._state, self._hashes = state, hashes
        return self._hashes

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, str]]:
        """Context manager with the hashes by name; they are written when its block ends. One process at a time."""
        with self._path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            hashes = dict(self._read())
            yield hashes
            rows = [{"name": name, "sha256": hashed} for name, hashed in hashes.items()]
            write_private(self._path, json.dumps({"keys": rows}, indent=1).encode())


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()
