"""URLs are fetched from public addresses only. Here 127.0.0.2 stands for a public one."""

import asyncio
import gzip
import socket
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver
from hypothesis import given
from hypothesis import strategies as st

import pipeline.serving.urls
from pipeline.serving.config import LimitSection
from pipeline.serving.errors import RequestError
from pipeline.serving.urls import fetch_url, is_public, name_of

OPEN, PRIVATE = "127.0.0.2", "127.0.0.1"
MIB = 1 << 20
checked = is_public


@pytest.fixture(autouse=True)
def open_address(monkeypatch):
    monkeypatch.setattr(pipeline.serving.urls, "is_public", lambda address: address == OPEN or checked(address))


class Names(AbstractResolver):
    """Resolves names from a table; a list of lists gives another answer each time."""

    def __init__(self, **names):
        self.names = names

    async def resolve(self, host, port=0, family=socket.AF_UNSPEC):
        found = self.names.get(host.replace(".", "_"))
        if found is None:
            raise OSError("no such name")
        if isinstance(found[0], list):
            found = found.pop(0)
        return [
            {"hostname": host, "host": a, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0} for a in found
        ]

    async def close(self):
        pass


@asynccontextmanager
async def server(address: str, *replies):
    """A server that gives these replies in turn; yields its port and the paths that it was asked for."""
    asked, left = [], list(replies)

    async def reply(request):
        asked.append(request.path)
        given = left.pop(0)
        return await given(request) if callable(given) else given

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", reply)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, address, 0)
    await site.start()
    try:
        yield site._server.sockets[0].getsockname()[1], asked
    finally:
        await runner.cleanup()


async def fetched(url: str, names: Names | None = None, **limits) -> bytes:
    return b"".join([chunk async for chunk in fetch_url(url, LimitSection(**limits), names or Names())])


def run(address, *replies, url="http://site.example:{port}/a.txt", names=None, **limits):
    """What is fetched, or the error, and what the server was asked for."""

    async def run_():
        async with server(address, *replies) as (port, asked):
            try:
                return await fetched(url.format(port=port), names or Names(site_example=[OPEN]), **limits), asked
            except RequestError as error:
                return error, asked

    return asyncio.run(run_())


def moved(url: str):
    async def reply(request):
        port = request.transport.get_extra_info("sockname")[1]
        return web.Response(status=302, headers={"Location": url.format(port=port)})

    return reply


def test_a_file_is_fetched():
    assert run(OPEN, web.Response(body=b"text")) == (b"text", ["/a.txt"])


PRIVATE_ADDRESSES = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.8.8.8", "169.254.169.254", "172.16.0.1", "192.0.0.1",
    "192.168.1.1", "198.18.0.1", "192.0.2.1", "203.0.113.9", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::7f00:1", "fe80::1",
    "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1", "fec0::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE_ADDRESSES)
def test_an_address_that_is_not_public(address):
    assert not checked(address)
    name = f"[{address}]" if ":" in address else address
    if "%" not in address:
        with pytest.raises(RequestError, match="not public"):
            asyncio.run(fetched(f"http://{name}/"))
    with pytest.raises(RequestError, match="not public"):
        asyncio.run(fetched("http://site.example/", Names(site_example=[address])))


@given(st.ip_addresses(v=4))
def test_what_holds_an_ipv4_address_is_never_public(address):
    number = int(address)
    for holder in (
        f"::ffff:{address}",
        f"::{address}",
        f"64:ff9b::{address}",
        f"2002:{number >> 16:x}:{number & 0xFFFF:x}::",
    ):
        assert not checked(holder)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001:81b::200e"])
def test_a_public_address(address):
    assert checked(address)


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f.1", "0177.0.0.1", "localhost", "127.0.0.1.", "①②⑦.⓪.⓪.①"]
)
def test_other_ways_to_write_this_machine_reach_nothing(host):
    async def try_():
        async with server(PRIVATE, web.Response(body=b"secret")) as (port, asked):
            with pytest.raises(RequestError):
                async for _ in fetch_url(f"http://{host}:{port}/", LimitSection()):  # with this machine's own resolver
                    pass
            return asked

    assert asyncio.run(try_()) == []


def test_a_name_with_one_private_address_is_refused():
    error, asked = run(PRIVATE, web.Response(body=b"secret"), names=Names(site_example=[OPEN, PRIVATE]))
    assert (error.status, error.param, asked) == (400, "file_url", [])


def test_the_address_that_was_checked_is_the_one_that_is_connected_to():
    names = Names(site_example=[[OPEN], [PRIVATE]])  # a name whose address changes after the first question
    assert run(OPEN, web.Response(body=b"text"), names=names) == (b"text", ["/a.txt"])
    assert names.names["site_example"] == [[PRIVATE]]


def test_a_redirect_is_followed_and_its_name_resolved_again():
    names = Names(site_example=[OPEN], other_example=[OPEN])
    content, asked = run(
        OPEN, moved("http://other.example:{port}/b"), moved("/c"), web.Response(body=b"c"), names=names
    )
    assert (content, asked) == (b"c", ["/a.txt", "/b", "/c"])


@pytest.mark.parametrize(
    "target, reason",
    [
        ("http://127.0.0.1:{port}/secret", "not public"),
        ("http://inside.example:{port}/secret", "not public"),
        ("//169.254.169.254/latest/meta-data", "not public"),
        ("http://[::ffff:127.0.0.1]:{port}/", "not public"),
        ("file:///etc/passwd", "only http and https"),
        ("gopher://site.example/", "only http and https"),
        ("http://user:secret@site.example/", "a user or a password"),
    ],
)
def test_a_redirect_is_checked_again(target, reason):
    names = Names(site_example=[OPEN], inside_example=[PRIVATE])
    error, asked = run(OPEN, moved(target), names=names)
    assert reason in error.message
    assert asked == ["/a.txt"]


def test_redirects_end():
    error, asked = run(OPEN, *[moved("/again")] * 10)
    assert "redirects more than 5 times" in error.message
    assert len(asked) == 6


def test_a_name_that_starts_to_point_inside_between_redirects():
    error, asked = run(OPEN, moved("/again"), names=Names(site_example=[[OPEN], [PRIVATE]]))
    assert "not public" in error.message and len(asked) == 1


@pytest.mark.parametrize(
    "url", ["", "x", "file:///etc/passwd", "ftp://site.example/", "http://", "http:///x", "https://site.example:x/",
            "http://u@site.example/", "data:text/plain,x", "http://[::1", "http://site.example/" + "a" * 9000, "http://%00/"]
)  # fmt: skip
def test_what_is_no_url_to_fetch(url):
    with pytest.raises(RequestError) as caught:
        asyncio.run(fetched(url, Names(site_example=[OPEN])))
    assert caught.value.status == 400


@given(st.text())
def test_any_text_is_refused_clearly(text):
    name_of(text)
    with pytest.raises(RequestError):
        pipeline.serving.urls._checked(f"file:{text}")


def test_too_much_is_refused_as_it_comes():
    async def endless(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b"a" * MIB)
        return response

    error, _ = run(OPEN, endless, file_mib=2)
    assert error.status == 413


def test_compressed_bytes_are_refused():
    reply = web.Response(body=gzip.compress(b"a" * MIB), headers={"Content-Encoding": "gzip"})
    assert "compressed" in run(OPEN, reply)[0].message


@pytest.mark.parametrize("status", [204, 206, 304, 401, 404, 500])
def test_another_status_is_an_error(status):
    error, _ = run(OPEN, web.Response(status=status))
    assert f"status {status}" in error.message


def test_a_slow_host_is_given_up(monkeypatch):
    async def slow(request):
        await asyncio.sleep(1)

    monkeypatch.setattr(pipeline.serving.urls, "SECONDS", 0.1)
    assert "takes too long" in run(OPEN, slow)[0].message


def test_redirects_share_the_time_of_a_fetch(monkeypatch):
    async def slow(request):
        await asyncio.sleep(0.3)
        return await moved("/again")(request)

    monkeypatch.setattr(pipeline.serving.urls, "SECONDS", 1)
    error, _ = run(OPEN, *[slow] * 5, web.Response(body=b"text"))
    assert isinstance(error, RequestError) and "takes too long" in error.message


def test_a_host_that_breaks_off_is_an_error():
    async def breaks(request):
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        request.transport.close()
        return response

    assert "breaks off" in run(OPEN, breaks)[0].message


def test_a_host_that_nobody_listens_on_is_an_error():
    error, _ = run(OPEN, url="http://site.example:1/")
    assert "cannot be reached" in error.message


def test_no_proxy_of_this_machine_is_used(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert run(OPEN, web.Response(body=b"text"))[0] == b"text"


def test_the_name_of_a_file_at_a_url():
    assert name_of("https://site.example/papers/a%20b.pdf?x=1#y") == "a b.pdf"
    assert name_of("https://site.example/") == "site.example"
    assert name_of("https://site.example/a%2F..%2Fb") == "a/../b"
