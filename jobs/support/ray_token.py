"""Ray's token and folders on a machine with other users: nobody else reads the token, is sent it, or gets at a socket.

Who has the token runs code as the cluster's user. Ray itself writes it readable for all, sends it to whoever listens
at an address, and makes its temporary folders writable for all; so it is done here, before Ray begins.
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
SOCKET_BYTES = 107  # of a Unix socket's path, at most
SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # below Ray's temporary folder
LISTENING = "0A"  # state of a socket in /proc/net/tcp


class ClusterError(RuntimeError):
    """There is no Ray cluster to work on. The message says why and what to do."""


def require_token() -> None:
    """See that there is a token which only this user can read, if Ray asks for one (RAY_AUTH_MODE=token).

    A file that others can read is closed to them, which is said.

    Raises:
        ClusterError: the file is another user's, or it cannot be made or closed.
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
                f"· others could read the Ray token {path}: closed to them; if they may have, delete it and start your "
                "clusters again",
                flush=True,
            )
    except OSError as error:
        raise ClusterError(f"no Ray token that others cannot read: {error}") from None


def token_path() -> Path:
    """Where Ray looks for the token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _write_token(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent)  # 0600 from the start
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        if path.exists():  # and is empty
            os.replace(partial, path)
        else:
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.link(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def check_listener(address: str) -> None:
    """Who listens at an address of this machine is this user, or one whom the environment allows (`ALLOWED_USER`).

    Of other machines nothing is known: the user named it. Without a token (RAY_AUTH_MODE) it may be anybody.

    Args:
        address: host:port, or a URL with both.

    Raises:
        ClusterError: it is another user, or nobody, or the address is none.
    """
    try:
        where = urlsplit(address if "://" in address else f"//{address}")
        host, port = where.hostname, where.port
        here = host is not None and port is not None and is_this_machine(host)
    except ValueError as error:
        raise ClusterError(f"{address!r} is no address, like head:6379 or http://head:8265: {error}") from None
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
            f"who listens at {address} is the user {names}, and is not sent your Ray token; if you trust that user "
            f"with it (say the cluster runs in a container), set {ALLOWED_USER}={user_name(min(others))}"
        )


def _allowed_user() -> int | None:
    """The uid of the other user to whom the token may be sent, if the environment names one."""
    named = os.environ.get(ALLOWED_USER, "")
    try:
        return int(named) if named.isdecimal() else pwd.getpwnam(named).pw_uid if named else None
    except (KeyError, ValueError):
        raise ClusterError(f"{ALLOWED_USER}={named}: there is no such user of this machine") from None


def own_cluster() -> str:
    """The address of the cluster that this user has started on this machine by `ray start`; empty if there is none."""
    from ray._private.utils import get_ray_address_file, read_ray_address

    file = Path(get_ray_address_file(None))
    # Its folder is one that any user of the machine may have made and may write into.
    return read_ray_address() or "" if file.is_file() and file.stat().st_uid == os.getuid() else ""


def listeners(port: int) -> set[int]:
    """The users (uids) whose sockets listen at a TCP port of this machine."""
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/net/{table}") as lines:
            for line in list(lines)[1:]:
                _, local, _, state, _, _, _, uid, *_ = line.split()
                if state == LISTENING and int(local.rpartition(":")[2], 16) == port:
                    found.add(int(uid))
    return found


def is_this_machine(host: str) -> bool:
    """Whether a host's address, of IPv4 or IPv6, is one of this machine's. Raises ValueError if it cannot be a name."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:  # there is no such host, as whoever connects to it will say
        return False
    for family, kind, _, _, where in found:
        with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
            probe.bind(where)
            return True
    return False


def private_folder() -> Path:
    """This user's folder for temporary files of all runs, into which nobody else can look.

    Raises:
        ClusterError: a folder of this name is another user's, it cannot be made, or its path is too long for Ray.
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
    """Ray's Unix sockets find room below its temporary folder.

    Raises:
        ClusterError: their paths would be longer than the system allows.
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
