"""The page: static files without a key, under a policy that lets it run and ask nothing but this server's own."""

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI, Request, Response

# `/` is the page; its other files are below this path. None of them needs a key.
FOLDER = "/page/"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for again each time, and answered with 304 by the ETag
}


def add_routes(app: FastAPI) -> None:
    """Add `/` and the files of the page, which are read now and kept."""
    for path, (content, kind) in page_files().items():
        app.add_route(path, _route(content, kind), methods=["GET"], include_in_schema=False)


def page_files() -> dict[str, tuple[bytes, str]]:
    """The content and the type of each file of the page, by the path that it is served at."""
    found = {}
    for file in files("pipeline.serving").joinpath("page").iterdir():
        kind = TYPES.get("." + file.name.rpartition(".")[2])
        if kind is not None:
            found["/" if file.name == "index.html" else FOLDER + file.name] = (file.read_bytes(), kind)
    return found


def _route(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = HEADERS | {"ETag": tag}

    async def served(request: Request) -> Response:
        given = [one.strip().removeprefix("W/") for one in request.headers.get("If-None-Match", "").split(",")]
        if tag in given or "*" in given:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=kind)

    return served
