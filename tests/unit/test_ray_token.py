"""Ray's token and the clusters that it is sent to, on this machine: whose they are is checked first."""

import contextlib
import os
from pathlib import Path

import pytest

from jobs.support.ray_token import ClusterError, check_listener, private_folder, require_token

pytestmark = pytest.mark.usefixtures("soon")


@pytest.fixture
def token(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray" / "auth_token"))
    return tmp_path / "ray" / "auth_token"


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_token_is_made_for_its_user_alone(token):
    before = os.umask(0)
    try:
        require_token()
    finally:
        os.umask(before)
    assert mode_of(token) == 0o600 and mode_of(token.parent) == 0o700 and len(token.read_text()) == 64
    made = token.read_text()
    require_token()
    assert token.read_text() == made and list(token.parent.iterdir()) == [token]


def test_a_token_that_others_can_read_is_closed_to_them(token, capsys):
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    require_token()
    assert mode_of(token) == 0o600 and token.read_text() == "secret"
    said = capsys.readouterr().out
    assert f"other users could read the Ray token {token}; their access is now removed" in said and "secret" not in said


def test_an_empty_token_is_none(token):
    token.parent.mkdir()
    token.touch(0o644)
    require_token()
    assert mode_of(token) == 0o600 and len(token.read_text()) == 64


def test_another_users_token_is_refused(token, monkeypatch):
    require_token()
    monkeypatch.setattr("os.getuid", lambda: token.stat().st_uid + 1)
    with pytest.raises(ClusterError, match="belongs to the user"):
        require_token()


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "http://127.0.0.1:{port}", "http://localhost:{port}/x"])
@pytest.mark.parametrize("at", ["127.0.0.1", ""])
def test_the_token_is_sent_to_listeners_of_the_same_user_only(address, at, monkeypatch):
    import socket

    with socket.create_server((at, 0)) as server:
        address = address.format(port=server.getsockname()[1])
        check_listener(address)
        uid = os.getuid()
        monkeypatch.setattr("os.getuid", lambda: uid + 1)
        with pytest.raises(ClusterError, match=f"the listener at {address} is the user .* is not sent your Ray token"):
            check_listener(address)
    with pytest.raises(ClusterError, match=f"nothing listens at {address}"):
        check_listener(address)


def test_of_ipv6_the_listener_is_known_too(monkeypatch):
    import socket

    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6")
    with server:
        address = f"http://[::1]:{server.getsockname()[1]}"
        check_listener(address)
        uid = os.getuid()
        monkeypatch.setattr("os.getuid", lambda: uid + 1)
        with pytest.raises(ClusterError, match="is not sent your Ray token"):
            check_listener(address)


def test_another_users_listener_may_be_allowed(monkeypatch):
    import socket

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address, uid = f"127.0.0.1:{server.getsockname()[1]}", os.getuid()
        monkeypatch.setattr("os.getuid", lambda: uid + 1)
        with pytest.raises(ClusterError, match="set PALIMPSEST_CLUSTER_USER="):
            check_listener(address)
        monkeypatch.setenv("PALIMPSEST_CLUSTER_USER", "no such user")
        with pytest.raises(ClusterError, match="no such user on this machine"):
            check_listener(address)
        monkeypatch.setenv("PALIMPSEST_CLUSTER_USER", str(uid))
        check_listener(address)
        monkeypatch.delenv("PALIMPSEST_CLUSTER_USER")
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # nothing is sent
        check_listener(address)


@pytest.mark.parametrize("address", ["127.0.0.1:999999", "127.0.0.1:abc", "http://[::1", "é..:5"])
def test_what_is_no_address_of_a_cluster(address, monkeypatch):
    import jobs.support.local_head
    from jobs.support.driver import cluster_to_join

    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    for find in (cluster_to_join, jobs.support.local_head.find_cluster):
        with pytest.raises(ClusterError, match="is not an address such as head:6379"):
            find()


def test_a_token_that_is_a_folder_is_refused(token):
    token.mkdir(parents=True)
    with pytest.raises(ClusterError, match="is a folder; name a file in RAY_AUTH_TOKEN_PATH"):
        require_token()


def test_no_room_for_temporary_files(short_folder, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/no/such")
    with pytest.raises(ClusterError, match="no folder for temporary files: .*; set RAY_TMPDIR to"):
        private_folder()
    monkeypatch.setenv("RAY_TMPDIR", f"{short_folder}/{'x' * 40}")
    with pytest.raises(ClusterError, match="over 107 bytes; set TMPDIR .* to a shorter one"):
        private_folder()


def test_of_another_machine_nothing_is_known():
    check_listener("http://198.51.100.1:8265")


def test_another_users_dashboard_is_not_asked(monkeypatch, capsys):
    import socket

    import jobs.support.local_head

    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jobs.support.local_head, "JobSubmissionClient", lambda *_: pytest.fail("it was asked"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, uid = server.getsockname()[1], os.getuid()
        monkeypatch.setattr("os.getuid", lambda: uid + 1)
        assert jobs.support.local_head.find_cluster(port) is None
        assert "is not sent your Ray token" in capsys.readouterr().out
        monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{port}")
        with pytest.raises(ClusterError, match="is not sent your Ray token"):
            jobs.support.local_head.find_cluster()


@pytest.mark.parametrize(
    ("named", "file", "joined"),
    [
        ("", None, ""),
        ("", "127.0.0.1:{free}", ""),  # left by a cluster that is gone
        ("", "127.0.0.1:{taken}", "127.0.0.1:{taken}"),
        ("auto", "127.0.0.1:{taken}", "127.0.0.1:{taken}"),
        ("auto", None, "RAY_ADDRESS=auto, but no cluster of yours runs"),
        ("local", "127.0.0.1:{taken}", ""),
        ("127.0.0.1:{taken}", None, "127.0.0.1:{taken}"),
        ("127.0.0.1:{free}", None, "nothing listens at"),
        ("198.51.100.1:6379", None, "198.51.100.1:6379"),
    ],
)
def test_the_cluster_to_join(named, file, joined, tmp_path, monkeypatch):
    import socket

    from jobs.support.driver import cluster_to_join

    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # and does not listen
        ports = {"taken": server.getsockname()[1], "free": other.getsockname()[1]}
        if file:
            (tmp_path / "current").write_text(file.format(**ports))
        monkeypatch.setattr("ray._private.utils.get_ray_address_file", lambda _: str(tmp_path / "current"))
        monkeypatch.setenv("RAY_ADDRESS", named.format(**ports))
        try:
            assert cluster_to_join() == joined.format(**ports)
        except ClusterError as error:
            assert joined in str(error) and joined
        if file == "127.0.0.1:{taken}" and named != "local":  # written by another user
            (tmp_path / "current").chmod(0o644)
            uid = os.getuid()
            monkeypatch.setattr("os.getuid", lambda: uid + 1)
            with pytest.raises(ClusterError) if named else contextlib.nullcontext():
                assert cluster_to_join() == ""


def test_temporary_files_are_in_a_folder_of_ones_own(short_folder, monkeypatch):
    tmp_path = short_folder
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = private_folder()
    assert folder.parent == tmp_path and mode_of(folder) == 0o700
    folder.chmod(0o777)
    assert private_folder() == folder and mode_of(folder) == 0o700
    uid = os.getuid()
    folder.rename(tmp_path / f"plm-{uid + 1}")
    monkeypatch.setattr("os.getuid", lambda: uid + 1)
    with pytest.raises(ClusterError, match="is not a folder of yours"):
        private_folder()
    (tmp_path / f"plm-{uid}").symlink_to(tmp_path)
    monkeypatch.setattr("os.getuid", lambda: uid)
    with pytest.raises(ClusterError, match="is not a folder of yours"):
        private_folder()
