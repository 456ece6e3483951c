"""The files of a server's users."""

import asyncio
import errno
import io
import os
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.serving.files
from pipeline.errors import DataError
from pipeline.serving.config import LimitSection
from pipeline.serving.errors import FileMissing, RequestError
from pipeline.serving.files import FileStore
from tests.support.document_files import encrypted, pdf, word

MIB = 1 << 20


def chunks_of(*chunks: bytes):
    async def chunks_():
        for chunk in chunks:
            yield chunk

    return chunks_()


def add(store: FileStore, *chunks: bytes, name: str = "a.txt", owner: str = "Anna"):
    return asyncio.run(store.add(owner, name, chunks_of(*chunks)))


def refused(store: FileStore, *chunks: bytes, **given) -> RequestError:
    """The error of a file that is refused; nothing of it is left."""
    with pytest.raises(RequestError) as caught:
        add(store, *chunks, **given)
    assert not list((store._folder).iterdir())
    return caught.value


@pytest.fixture
def store(tmp_path):
    store = FileStore(tmp_path / "state", LimitSection())
    yield store
    store.close()


def limited(folder: Path, **limits) -> FileStore:
    return FileStore(folder, LimitSection(**limits))


def test_a_file_is_stored_as_it_came(store):
    stored = add(store, b"The quay ", b"is closed.\n", name="notes.txt")
    assert stored.path.read_bytes() == b"The quay is closed.\n"
    assert (stored.name, stored.bytes, stored.kind, stored.characters) == ("notes.txt", 20, "text", 20)
    assert store.get("Anna", stored.id) == stored
    assert store.list("Anna") == [stored]


def test_folders_and_files_are_private(store):
    stored = add(store, b"text")
    folder = stored.path.parent
    for path in (folder.parent.parent, folder.parent, folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in (stored.path, folder / "meta.json", folder.parent.parent / "files.lock"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_belongs_to_its_key(store):
    stored = add(store, b"text")
    for use in (store.get, store.remove):
        with pytest.raises(FileMissing) as caught:
            use("Ben", stored.id)
        assert caught.value.status == 404
    assert store.list("Ben") == []
    assert store.get("Anna", stored.id)


def test_content_decides_the_kind_and_the_name_only_where_it_cannot_tell(store):
    assert add(store, pdf([["Page one"]]), name="a.txt").kind == "pdf"
    assert add(store, b"<!doctype html><p>Hello</p>", name="a.pdf").kind == "html"
    assert add(store, word(lambda d: d.add_paragraph("Hello")), name="a").kind == "docx"
    assert add(store, b"# Title", name="a.MD").kind == "markdown"
    assert add(store, b"<p>Hello</p>", name="dir/a.html").kind == "html"
    assert add(store, b"# Title", name="a.exe").kind == "text"


@given(name=st.text(st.characters(exclude_categories=()), max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_name_is_data(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("store")
    store = limited(folder)
    stored = add(store, b"text", name=name)
    assert stored.name == name.encode(errors="replace").decode()
    assert stored.path.parent == folder / "files" / stored.id
    assert stored.path.name.startswith("content")
    store.close()
    assert limited(folder).list("Anna") == [stored]
    assert {path.name for path in folder.iterdir()} == {"files", "files.lock"}


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a\0.md", "\\..\\x", ".", "..", "", "ü" * 4096])
def test_hard_names(store, name):
    stored = add(store, b"text", name=name)
    assert stored.name == name
    assert store.get("Anna", stored.id).path.read_bytes() == b"text"


def test_a_longer_name_is_refused(store):
    assert refused(store, b"text", name="a" * 4097).status == 400


def zip_of(name: str, size: int) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b" " * size)
    return written.getvalue()


@pytest.mark.parametrize(
    "content, status, reason",
    [
        (b"", 400, "it is empty"),
        (b" \n\t\n", 400, "it holds no text"),
        (b"MZ\0\0\1\2", 415, "it is not text"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 415, "old Word file"),
        (b"text \xff text", 400, "neither UTF-8"),
        (b"a" * 5000 + b"\0", 400, "it is not text"),
        (b"%PDF-1.7\nnothing", 400, "it is broken"),
        (pdf([["Page one"]])[:-300], 400, "it is broken"),
        (pdf([[""]]), 400, "text recognition"),
        (encrypted(pdf([["Page one"]]), "AES-256", "secret"), 400, "password"),
        (zip_of("a.txt", 10), 400, "ZIP"),
        (zip_of("word/document.xml", 700 * MIB), 400, "unpack"),
    ],
)
def test_what_cannot_be_read_is_refused_when_it_comes(store, content, status, reason):
    error = refused(store, content, name="my file")
    assert error.status == status
    assert reason in error.message
    assert error.message.startswith("my file: ")
    assert str(store._folder) not in error.message


def test_a_file_over_the_limit_is_refused_while_it_comes(tmp_path):
    store = limited(tmp_path, file_mib=2)
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 1
            yield b"a" * (MIB // 4)

    with pytest.raises(RequestError, match="more than 2 MiB") as caught:
        asyncio.run(store.add("Anna", "a", endless()))
    assert caught.value.status == 413
    assert sent <= 12
    assert not list(store._folder.iterdir())


def test_a_key_has_so_many_files(tmp_path):
    store = limited(tmp_path, files=2)
    first, _ = add(store, b"one"), add(store, b"two")
    with pytest.raises(RequestError, match="has 2 files, the limit") as caught:
        add(store, b"three")
    assert caught.value.status == 413
    add(store, b"of another key", owner="Ben")
    store.remove("Anna", first.id)
    add(store, b"three")
    assert len(store.list("Anna")) == 2


def test_a_keys_files_have_so_many_bytes_together_with_those_that_come_in(tmp_path):
    store = limited(tmp_path, files_mib=3)

    async def two_at_once():
        both = (store.add("Anna", "a", chunks_of(*[b"a" * MIB] * 2)) for _ in range(2))
        return await asyncio.gather(*both, return_exceptions=True)

    results = asyncio.run(two_at_once())
    errors = [result for result in results if isinstance(result, Exception)]
    assert [error.status for error in errors] == [413]
    assert "3 MiB together" in errors[0].message
    add(store, b"a" * MIB)  # what was refused counts no more
    assert len(list(store._folder.iterdir())) == 2


def test_a_full_disk_is_said_and_leaves_nothing(store, monkeypatch):
    def full(file, data):
        file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pipeline.serving.files, "_write", full)
    error = refused(store, b"a" * 3 * MIB)
    assert (error.status, error.to_json()["error"]["code"]) == (507, "insufficient_storage")


def test_a_disk_that_is_full_at_the_end_leaves_nothing(store, monkeypatch):
    def full(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(pipeline.serving.files, "write_private", full)
    assert refused(store, b"text").status == 507


def test_a_client_that_goes_leaves_nothing(store):
    closed = False

    async def stalls():
        nonlocal closed
        try:
            yield b"a" * 2 * MIB
            await asyncio.sleep(60)
        finally:
            closed = True

    async def cancel():
        adding = asyncio.create_task(store.add("Anna", "a", stalls()))
        while not list(store._folder.glob("*/content")):
            await asyncio.sleep(0.01)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding

    asyncio.run(cancel())
    assert closed
    assert not list(store._folder.iterdir())
    assert store._count["Anna"] == store._bytes["Anna"] == 0


KILLED = """
import asyncio, sys
from pathlib import Path
from pipeline.serving.config import LimitSection
from pipeline.serving.files import FileStore

async def chunks(whole):
    yield b"a" * (3 << 20)
    if not whole:
        print("half", flush=True)
        await asyncio.sleep(600)

async def main():
    store = FileStore(Path(sys.argv[1]), LimitSection())
    await store.add("Anna", "whole", chunks(True))
    await store.add("Anna", "half", chunks(False))

asyncio.run(main())
"""


def test_a_killed_server_leaves_no_half_file(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"half\n"
    assert len(list((tmp_path / "files").iterdir())) == 2
    with pytest.raises(DataError, match="another server uses"):
        FileStore(tmp_path, LimitSection())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = FileStore(tmp_path, LimitSection())
    assert [file.name for file in store.list("Anna")] == ["whole"]
    assert len(list((tmp_path / "files").iterdir())) == 1
    assert store._bytes["Anna"] == 3 * MIB


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"id": 1}', b"[" * 100_000])
def test_a_damaged_file_is_removed_at_the_start(store, damage):
    stored, kept = add(store, b"text"), add(store, b"other")
    (stored.path.parent / "meta.json").write_bytes(damage)
    store.close()
    again = FileStore(store._folder.parent, LimitSection())
    assert again.list("Anna") == [kept]
    assert not stored.path.parent.exists()
    again.close()


def test_meta_json_names_no_other_path(store, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"text")
    stored = add(store, b"text")
    meta = stored.path.parent / "meta.json"
    meta.write_bytes(meta.read_bytes().replace(b'"content"', f'"{secret}"'.encode()))
    store.close()
    again = FileStore(store._folder.parent, LimitSection())
    assert again.list("Anna") == []
    assert secret.exists()
    again.close()


def old(stored, seconds: float = 10.0) -> None:
    meta = stored.path.parent / "meta.json"
    os.utime(meta, (meta.stat().st_atime - seconds, meta.stat().st_mtime - seconds))


def test_files_expire_after_their_last_use_also_over_a_restart(tmp_path):
    store = limited(tmp_path, keep_s=5.0)
    unused, used = add(store, b"unused"), add(store, b"used")
    old(unused), old(used)
    store.close()
    store = limited(tmp_path, keep_s=5.0)
    store.get("Anna", used.id)
    assert store.expire() == 1
    assert store.list("Anna") == [used]
    assert not unused.path.parent.exists()
    store.close()
    store = limited(tmp_path, keep_s=5.0)
    assert store.expire() == 0
    store.close()


def test_what_a_reading_holds_does_not_expire(tmp_path):
    store = limited(tmp_path, keep_s=-1.0)
    stored = add(store, b"text")
    with store.hold(stored), store.hold(stored):
        assert store.expire() == 0
    assert store.expire() == 1
    assert not stored.path.parent.exists()


def test_the_time_to_live_begins_when_a_reading_ends(tmp_path, monkeypatch):
    store = limited(tmp_path, keep_s=5.0)
    stored = add(store, b"text")
    now = pipeline.serving.files.time.time()
    with store.hold(stored):
        monkeypatch.setattr(pipeline.serving.files.time, "time", lambda: now + 60)
    assert store.expire() == 0


def test_a_file_that_is_removed_while_it_is_held_is_gone_but_readable(store):
    stored = add(store, b"text")
    with store.hold(stored):
        store.remove("Anna", stored.id)
        assert store.list("Anna") == []
        assert stored.path.read_bytes() == b"text"
        assert not (stored.path.parent / "meta.json").exists()  # if the server is killed here, it stays removed
        with pytest.raises(FileMissing), store.hold(stored):
            pass
    assert not stored.path.parent.exists()


def test_expired_files_make_room(tmp_path):
    store = limited(tmp_path, files=1, keep_s=0.0)
    add(store, b"one")
    add(store, b"two")
    assert len(store.list("Anna")) == 1
