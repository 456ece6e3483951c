"""Files over HTTP, with OpenAI's client and by hand."""

import io
import socket
import time
import tracemalloc
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.serving.config import LimitSection
from pipeline.serving.files import FileStore
from tests.support.document_files import pdf
from tests.support.served_files import files_app, running

MIB = 1 << 20


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FileStore(tmp_path_factory.mktemp("store"), LimitSection(file_mib=4, files=50))


@pytest.fixture(scope="module")
def url(store):
    with running(files_app(store, file_mib=4)) as url:
        yield url


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="Anna", max_retries=0) as client:
        yield client


@pytest.fixture(autouse=True)
def clean(store):
    yield
    for file in store.list("Anna"):
        store.remove("Anna", file.id)


def post(url: str, body: bytes, boundary: str = "b", **headers: str) -> httpx.Response:
    kind = {"content-type": f"multipart/form-data; boundary={boundary}", "authorization": "Bearer Anna"}
    return httpx.post(f"{url}/v1/files", content=body, headers=kind | headers)


def part(content: bytes, name: str = "file", filename: str | None = "a.txt", boundary: str = "b") -> bytes:
    given = "" if filename is None else f'; filename="{filename}"'
    return f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{given}\r\n\r\n'.encode() + content + b"\r\n"


PURPOSE = part(b"user_data", "purpose", None)
END = b"--b--\r\n"


def test_a_file_is_made_found_read_and_deleted(client):
    made = client.files.create(file=("notes.txt", b"The quay is closed."), purpose="user_data")
    assert (made.object, made.filename, made.bytes, made.status) == ("file", "notes.txt", 19, "processed")
    assert abs(made.created_at - time.time()) < 60
    assert made.expires_at == pytest.approx(made.created_at + LimitSection.keep_s, abs=2)
    assert client.files.retrieve(made.id).filename == "notes.txt"
    assert client.files.content(made.id).read() == b"The quay is closed."
    assert [file.id for file in client.files.list()] == [made.id]
    deleted = client.files.delete(made.id)
    assert (deleted.id, deleted.deleted) == (made.id, True)
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        client.files.retrieve(made.id)


def test_a_file_like_object_and_a_pdf(client):
    file = io.BytesIO(pdf([["Page one"]]))
    file.name = "a.pdf"
    made = client.files.create(file=file, purpose="user_data")
    assert made.palimpsest == {"kind": "pdf", "characters": 9}


def test_files_are_listed_by_pages(client):
    ids = [client.files.create(file=(f"{n}.txt", b"text"), purpose="user_data").id for n in range(5)]
    assert [file.id for file in client.files.list()] == ids[::-1]
    assert [file.id for file in client.files.list(order="asc", limit=2)] == ids  # page by page
    page = client.files.list(order="asc", limit=2)
    assert ([file.id for file in page.data], page.has_more) == (ids[:2], True)
    page = client.files.list(order="asc", after=ids[2])
    assert ([file.id for file in page.data], page.has_more) == (ids[3:], False)
    client.files.delete(ids[2])
    assert [file.id for file in client.files.list(after=ids[2]).data] == ids[1::-1]
    assert client.files.list(purpose="batch").data == []


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "limit=x", "limit=٣", "order=up", "after=x", "limit=-1"])
def test_a_wrong_query_is_refused(url, query):
    reply = httpx.get(f"{url}/v1/files?{query}", headers={"authorization": "Bearer Anna"})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == query.split("=")[0]


def test_files_of_another_key_are_not_there(client, url):
    made = client.files.create(file=("a.txt", b"text"), purpose="user_data")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="Ben", max_retries=0) as other:
        for use in (other.files.retrieve, other.files.delete, other.files.content):
            with pytest.raises(openai.NotFoundError):
                use(made.id)
        assert other.files.list().data == []


NAMES = ["../../etc/passwd", 'quote".txt', "a\0b", "line\r\nX-Evil: 1", "日本語.md", "ü" * 4096, "x\\y.txt"]


@pytest.mark.parametrize("name", NAMES)
def test_names_come_back_as_they_were(client, name):
    made = client.files.create(file=(name, b"text"), purpose="user_data")
    assert made.filename == name
    content = client.files.content(made.id)
    assert content.read() == b"text"
    assert "x-evil" not in content.response.headers
    assert content.response.headers["content-disposition"].startswith("attachment")
    assert content.response.headers["content-type"] == "application/octet-stream"


@given(
    body=st.binary(max_size=300) | st.lists(st.sampled_from([PURPOSE, END, part(b"x"), b"--b", b"\r\n"])).map(b"".join)
)
@settings(max_examples=60, deadline=None)
def test_no_body_breaks_the_server(url, body):
    assert post(url, body).status_code in (200, 400)


@pytest.mark.parametrize(
    "body, reason",
    [
        (part(b"text") + END, "purpose must be"),
        (part(b"text") + part(b"batch", "purpose", None) + END, "purpose must be"),
        (PURPOSE + END, "has no file"),
        (PURPOSE + part(b"text") + part(b"more") + END, "unknown field 'file'"),
        (part(b"text") + part(b"1", "expires_after[seconds]", None) + END, "unknown field 'expires_after"),
        (part(b"u" * 2000, "purpose", None) + END, "more than 1024 bytes"),
        (PURPOSE + part(b"text"), "before its last boundary"),
        (PURPOSE + part(b"text")[:-3], "before its last boundary"),
        (b"nonsense", "malformed"),
        (b"", "before its last boundary"),
        (part(b"text", filename="a" * 70_000) + END, "malformed"),
        (b"--b\r\nX: y\r\n\r\ntext\r\n" + END, "has no name"),
    ],
)
def test_a_wrong_form_is_refused_and_leaves_nothing(url, store, body, reason):
    reply = post(url, body)
    assert reply.status_code == 400
    assert reason in reply.json()["error"]["message"]
    assert not list(store._folder.iterdir())


def test_a_request_that_is_no_form_is_refused(url):
    reply = httpx.post(f"{url}/v1/files", json={"file": "x"}, headers={"authorization": "Bearer Anna"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")


def test_fields_come_in_any_order(url, client):
    for body in (PURPOSE + part(b"text") + END, part(b"text") + PURPOSE + END):
        assert post(url, body).status_code == 200


@pytest.mark.parametrize("content, error", [(b"", 400), (b"\0\1\2", 415), (b"a" * 5 * MIB, 413), (b"a" * 7 * MIB, 413)])
def test_what_cannot_be_stored_is_refused(client, store, content, error):
    with pytest.raises(openai.APIStatusError) as caught:
        client.files.create(file=("a.bin", content), purpose="user_data")
    assert caught.value.status_code == error
    assert not list(store._folder.iterdir())


def test_a_body_without_a_length_is_counted_as_it_comes(url, store):
    def body():
        yield PURPOSE + part(b"")[:-2]
        for _ in range(50):
            yield b"a" * MIB

    kind = {"content-type": "multipart/form-data; boundary=b", "authorization": "Bearer Anna"}
    assert httpx.post(f"{url}/v1/files", content=body(), headers=kind).status_code == 413
    assert not list(store._folder.iterdir())


def raw(url: str, length: int, body: bytes, wait: bool = True) -> bytes:
    """The reply to a request that says that its body has so many bytes."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=120) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer Anna\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n" % length + body
        )
        return connection.recv(4096) if wait else b""


def test_a_length_that_is_too_large_is_refused_at_once(url):
    assert raw(url, 100 * MIB, PURPOSE).startswith(b"HTTP/1.1 413")


def test_a_length_that_is_too_small_cuts_the_form(url, store):
    body = PURPOSE + part(b"text" * 1000) + END
    assert raw(url, len(PURPOSE) + 200, body).startswith(b"HTTP/1.1 400")
    assert not list(store._folder.iterdir())


def test_a_client_that_goes_leaves_nothing(url, store):
    raw(url, 3 * MIB, PURPOSE + part(b"a" * 2 * MIB), wait=False)
    end = time.monotonic() + 10
    while list(store._folder.iterdir()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_file_is_never_whole_in_memory(tmp_path):
    store = FileStore(tmp_path, LimitSection(file_mib=100))
    head, line = PURPOSE + part(b"")[:-2], b"The quay is closed.\n" * 3276

    def body():
        yield head
        for _ in range(60 * MIB // len(line)):
            yield line
        yield b"\r\n" + END

    kind = {"content-type": "multipart/form-data; boundary=b", "authorization": "Bearer Anna"}
    with running(files_app(store, file_mib=100)) as url:
        tracemalloc.start()
        try:
            assert httpx.post(f"{url}/v1/files", content=body(), headers=kind, timeout=60).status_code == 200
            assert tracemalloc.get_traced_memory()[1] < 12 * MIB
        finally:
            tracemalloc.stop()
