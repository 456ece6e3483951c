"""Files that a request names by URL, fetched without reaching into this machine's own networks.

Whoever can send a URL could have the server ask what only the server can reach: a cloud's metadata, a database, a
router. So the address that a name resolves to is checked, and exactly that address is connected to. Each redirect is
checked again.
"""

import ipaddress
import socket
import time
from collections.abc import AsyncGenerator
from urllib.parse import unquote

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from pipeline.serving.config import LimitSection
from pipeline.serving.errors import RequestError

PARAM = "file_url"
CONNECT_SECONDS = 10
SECONDS = 300  # of all, redirects included
REDIRECTS = 5
URL_CHARACTERS = 8192
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all others are local, or hold an IPv4 address
SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")  # holds an IPv4 address too


def is_public(address: str) -> bool:
    """Whether an IP address belongs to a host of the public internet."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and (ip not in GLOBAL_UNICAST or ip in SIX_TO_FOUR):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses only. A name with any other address is refused as a whole.

    Raises:
        RequestError: the name has an address that is not public.
    """

    def __init__(self, resolver: AbstractResolver):
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for result in found:
            _check_address(result["host"])
        return found

    async def close(self) -> None:
        await self._resolver.close()


async def fetch_url(
    url: str, limits: LimitSection, resolver: AbstractResolver | None = None
) -> AsyncGenerator[bytes, None]:
    """The bytes at a URL, as they come.

    Args:
        url: an http or https URL.
        limits: file_mib is the most MiB that are fetched.
        resolver: resolves names; None: as this machine does.

    Raises:
        RequestError: the URL or a redirect is refused (400), its host does not send the file (400), or too much (413).
    """
    place, most, sent = _checked(url), limits.file_mib << 20, 0
    ends = time.monotonic() + SECONDS
    connector = aiohttp.TCPConnector(
        resolver=PublicResolver(resolver or ThreadedResolver()), use_dns_cache=False, force_close=True
    )
    # Proxies, .netrc and cookies are this machine's, and compressed bytes could unpack to any size.
    session = aiohttp.ClientSession(
        connector=connector,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "palimpsest"},
    )
    try:
        async with session:
            for _ in range(REDIRECTS + 1):
                # asyncio.timeout would cancel whoever reads this generator; to aiohttp, 0 is no limit.
                timeout = aiohttp.ClientTimeout(total=max(ends - time.monotonic(), 1e-3), connect=CONNECT_SECONDS)
                async with session.get(place, allow_redirects=False, timeout=timeout) as response:
                    if response.status in (301, 302, 303, 307, 308) and "Location" in response.headers:
                        place = _checked(response.headers["Location"], place)
                        continue
                    if response.status != 200:
                        raise _refused(f"{place.host} answers with the status {response.status}")
                    if response.headers.get("Content-Encoding", "identity") != "identity":
                        raise _refused(f"{place.host} sends it compressed, although asked not to")
                    async for chunk in response.content.iter_any():
                        sent += len(chunk)
                        if sent > most:
                            message = f"the file at the URL has more than {limits.file_mib:,} MiB, the limit"
                            raise RequestError(413, message, code="file_too_large", param=PARAM)
                        yield chunk
                    return
            raise _refused(f"it redirects more than {REDIRECTS} times")
    except TimeoutError:
        raise _refused(f"{place.host} takes too long") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _refused(f"{place.host} cannot be reached, or breaks off ({type(error).__name__})") from None


def name_of(url: str) -> str:
    """A name for the file at a URL: the last part of its path, else its host."""
    try:
        found = URL(url)
        return unquote(found.raw_path.rstrip("/").rsplit("/", 1)[-1]) or found.host or "file"
    except ValueError:
        return "file"


def _checked(url: str, base: URL | None = None) -> URL:
    """The URL, if it may be fetched; `base` is where a redirect came from."""
    if len(url) > URL_CHARACTERS:
        raise _refused(f"it has more than {URL_CHARACTERS} characters")
    try:
        place = base.join(URL(url)) if base else URL(url)
        host, port = place.host, place.port
    except ValueError:
        host = port = None
    if host is None or port is None or place.scheme not in ("http", "https"):
        raise _refused("only http and https URLs of a host can be fetched")
    if place.user is not None or place.password is not None:
        raise _refused("it holds a user or a password")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return place  # a name: the resolver checks its addresses
    _check_address(host)  # aiohttp asks no resolver for an address
    return place


def _check_address(address: str) -> None:
    if not is_public(address):
        raise _refused("its host has an address that is not public")


def _refused(reason: str) -> RequestError:
    return RequestError(400, f"the URL cannot be fetched: {reason}", code="url_refused", param=PARAM)
