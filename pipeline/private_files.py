"""Folders and files of the user, which nobody else can read."""

import os
import stat
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files import atomic_output


def user_folder(variable: str, default: str) -> Path:
    """palimpsest's folder in a base folder of the XDG specification.

    Args:
        variable: the environment variable that names the base folder; a relative path there does not count.
        default: the base folder without it, relative to the home folder.
    """
    base = Path(os.environ.get(variable, ""))
    return (base if base.is_absolute() else Path.home() / default) / "palimpsest"


def make_private(folder: Path, advice: str) -> None:
    """Make a folder, and take the permissions of others away if it is there.

    Args:
        advice: for the user whose folder it is not.

    Raises:
        DataError: it belongs to another user, or is no folder.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise DataError(f"{folder} is not a folder of yours; {advice}")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)


def write_private(path: Path, data: bytes) -> None:
    """Write a file atomically, readable by its owner only."""
    with atomic_output(path) as partial:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(data)
