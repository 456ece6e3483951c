"""The HTTP interface: who may ask, what a refusal looks like, and all routes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.serving import chat_api, files_api, mcp_http, metrics, page_routes, responses_api
from actors.serving.served import METHODS, Served
from pipeline.serving.errors import RequestError

OPEN = ("/", "/health")  # without a key, beside the page's files
EXPIRE_S = 60.0
THREADS = 64  # of parsing, encoding and writing


def make_app(served: Served) -> FastAPI:
    """All routes, with the check of keys and errors in OpenAI's form."""
    app = FastAPI(title="palimpsest", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan(served))
    app.add_middleware(_WithKey, served=served)
    app.add_middleware(_InTime, seconds=served.config.serve.limits.upload_s)
    app.add_exception_handler(RequestError, _refused)  # type: ignore[arg-type] # it gets this error only
    app.add_exception_handler(HTTPException, _not_found)  # type: ignore[arg-type] # the same
    app.add_exception_handler(Exception, _failed)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        rows = [{"id": id, "object": "model", "created": 0, "owned_by": "palimpsest"} for id in served.models()]
        return {"object": "list", "data": rows}

    @app.get("/v1/models/{id:path}")
    async def model(id: str) -> dict[str, Any]:
        found, _ = served.method_of(id)
        return {"id": found, "object": "model", "created": 0, "owned_by": "palimpsest"}

    files_api.add_routes(app, served.files, served.config.serve.limits.file_mib)
    responses_api.add_routes(app, served)
    chat_api.add_routes(app, served)
    metrics.add_routes(app, served.readings)
    mcp_http.add_routes(
        app,
        served.files,
        lambda owner, question, files: served.readings.ask(owner, question, files, METHODS[0], served.sampling),
    )
    page_routes.add_routes(app)
    return app


def _lifespan(served: Served):
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def expire() -> None:
            while True:
                await asyncio.sleep(min(EXPIRE_S, served.config.serve.limits.keep_s))
                served.readings.expire()
                served.files.expire()

        # Ray Serve gives five threads, of which a few readings that wait for a parser would take all.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "app"))
        expiring = asyncio.create_task(expire())
        try:
            yield
        finally:
            expiring.cancel()
            await served.readings.close()
            served.files.close()

    return lifespan


class _WithKey:
    """Lets requests with a key pass, and notes whose it is in `request.state.owner`."""

    def __init__(self, app: ASGIApp, served: Served):
        self._app, self._served = app, served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"]
        if path not in OPEN and not path.startswith(page_routes.FOLDER):
            given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            kind, _, key = given.partition(" ")
            owner = self._served.keys.name_of(key.strip()) if kind.lower() == "bearer" else None
            if owner is None:
                said = "the key is not known" if given else "a key is needed: Authorization: Bearer pal-…"
                refusal = _response(RequestError(401, said, "authentication_error", "invalid_api_key"))
                refusal.headers["WWW-Authenticate"] = "Bearer"
                return await refusal(scope, receive, send)
            scope.setdefault("state", {})["owner"] = owner
        await self._app(scope, receive, send)


class _InTime:
    """Refuses a request whose body does not arrive in time: who sends a byte now and then holds a place for good."""

    def __init__(self, app: ASGIApp, seconds: float):
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        end, is_whole = asyncio.get_running_loop().time() + self._seconds, False

        async def received() -> Message:
            nonlocal is_whole
            if is_whole:  # what comes now is the end of the connection
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                said = f"the request did not arrive within {self._seconds:g} seconds, the limit"
                raise RequestError(408, said, code="too_slow") from None
            is_whole = not message.get("more_body", False)
            return message

        await self._app(scope, received if scope["type"] == "http" else receive, send)


def _response(error: RequestError) -> JSONResponse:
    return JSONResponse(error.to_json(), error.status, error.headers())


async def _refused(request: Request, error: RequestError) -> JSONResponse:
    return _response(error)


async def _not_found(request: Request, error: HTTPException) -> JSONResponse:
    said = {404: "there is no such path", 405: "this path has no such method"}.get(error.status_code, str(error.detail))
    return _response(RequestError(error.status_code, said))


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return _response(RequestError(500, f"the server failed: {type(error).__name__}", "server_error"))
