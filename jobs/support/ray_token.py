"""Protect Ray's token and folders on a machine with other users: no other user reads or receives the token, or reaches
a socket.

Anyone with the token can run code as the cluster's user. Ray writes it readable for all, sends it to any listener at an
address, and makes its temporary folders writable for all. Therefore this module prepares both before Ray starts.
"""

import contextlib
import os
import pwd
import secrets
import socket
import stat
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

ALLOWED_USER = "PALIMPSEST_CLUSTER_USER"  # a name or uid
SOCKET_BYTES = 107  # limit for the path of a Unix socket
SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # below Ray's temporary folder
LISTENING = "0A"  # state of a socket in /proc/net/tcp


class ClusterError(RuntimeError):
    """There is no usable Ray cluster. The message gives the reason and what to do."""


def require_token() -> None:
    """Ensure that there is a token that only this user can read, if Ray requires one (RAY_AUTH_MODE=token).

    If others can read the file, their access is removed and a line says so.

    Raises:
        ClusterError: the file belongs to another user, or cannot be made or protected.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = token_path()
    try:
        if path.is_dir():
            raise ClusterError(f"the Ray token {path} is a folder; name a file in RAY_AUTH_TOKEN_PATH")
        if not path.exists() or path.stat().st_size == 0:
            _write_token(path)
        state = path.stat()
        if state.st_uid != os.getuid():
            raise ClusterError(f"the Ray token {path} belongs to the user {user_name(state.st_uid)}; use one of yours")
        if stat.S_IMODE(state.st_mode) & 0o077:
            path.chmod(0o600)
            print(
                f"· other users could read the Ray token {path}; their access is now removed. If they may have read "
                "it, delete it and restart your clusters",
                flush=True,
            )
    except OSError as error:
        raise ClusterError(f"a private Ray token could not be made: {error}") from None


def token_path() -> Path:
    """The file where Ray looks for the token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _write_token(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent)  # 0600 from the start
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        if path.exists():  # an empty file
            os.replace(partial, path)
        else:
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.link(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def check_listener(address: str) -> None:
    """Check that the listener at an address of this machine is this user or the one in `ALLOWED_USER`.

    Other machines cannot be checked; the user chose the address. Without a token (RAY_AUTH_MODE), any user may listen.

    Args:
        address: host:port, or a URL with both.

    Raises:
        ClusterError: another user listens, nothing listens, or the address is invalid.
    """
    try:
        where = urlsplit(address if "://" in address else f"//{address}")
        host, port = where.hostname, where.port
        here = host is not None and port is not None and is_this_machine(host)
    except ValueError as error:
        raise ClusterError(f"{address!r} is not an address such as head:6379 or http://head:8265: {error}") from None
    if not here or port is None:
        return
    owners = listeners(port)
    if not owners:
        raise ClusterError(f"nothing listens at {address}")
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return  # there is no secret to send
    if others := owners - {os.getuid(), _allowed_user()}:
        names = ", ".join(map(user_name, sorted(others)))
        raise ClusterError(
            f"the listener at {address} is the user {names}, who is not sent your Ray token; if you trust that user "
            f"with it (for example, the cluster runs in a container), set {ALLOWED_USER}={user_name(min(others))}"
        )


def _allowed_user() -> int | None:
    """The uid of the other user who may receive the token, or None if the environment names none."""
    named = os.environ.get(ALLOWED_USER, "")
    try:
        return int(named) if named.isdecimal() else pwd.getpwnam(named).pw_uid if named else None
    except (KeyError, ValueError):
        raise ClusterError(f"{ALLOWED_USER}={named}: there is no such user on this machine") from None


def own_cluster() -> str:
    """The address of the cluster that this user started on this machine with `ray start`; empty if there is none."""
    from ray._private.utils import get_ray_address_file, read_ray_address

    file = Path(get_ray_address_file(None))
    # Check the owner: any user of the machine may have made the file's folder and can write to it.
    return read_ray_address() or "" if file.is_file() and file.stat().st_uid == os.getuid() else ""


def listeners(port: int) -> set[int]:
    """The uids of the users whose sockets listen on a TCP port of this machine."""
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/net/{table}") as lines:
            for line in list(lines)[1:]:
                _, local, _, state, _, _, _, uid, *_ = line.split()
                if state == LISTENING and int(local.rpartition(":")[2], 16) == port:
                    found.add(int(uid))
    return found


def is_this_machine(host: str) -> bool:
    """Whether a host's IPv4 or IPv6 address is one of this machine's. Raises ValueError if it cannot be a host name."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:  # unknown host: connecting to it will report that
        return False
    for family, kind, _, _, where in found:
        with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
            probe.bind(where)
            return True
    return False


def private_folder() -> Path:
    """This user's private folder for the temporary files of all runs. It is made if missing.

    Raises:
        ClusterError: the folder belongs to another user, cannot be made, or its path is too long for Ray.
    """
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / f"plm-{os.getuid()}"
    check_length(folder / "ray")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
            raise ClusterError(f"{folder} is not a folder of yours; remove it, or set TMPDIR to a folder of yours")
        folder.chmod(0o700)
    except OSError as error:
        raise ClusterError(f"no folder for temporary files: {error}; set RAY_TMPDIR to a folder of yours") from None
    return folder


def check_length(folder: Path) -> None:
    """Check that the paths of Ray's Unix sockets in this temporary folder are short enough.

    Raises:
        ClusterError: they would exceed the system's limit.
    """
    most = SOCKET_BYTES - len(SOCKET)
    if len(os.fsencode(folder)) > most:
        raise ClusterError(
            f"the folder for temporary files, {folder}, is too long: the paths of Ray's sockets in it would be over "
            f"{SOCKET_BYTES} bytes; set TMPDIR (or RAY_TMPDIR) to a shorter one"
        )


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
