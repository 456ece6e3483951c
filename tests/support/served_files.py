"""Parts of the interface on a server in a thread: a key's name is the key itself."""

import threading
import time
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from starlette.responses import JSONResponse

from actors.serving.files_api import add_routes
from pipeline.serving.errors import RequestError


def files_app(store, file_mib: int) -> FastAPI:
    app = keyed_app()
    add_routes(app, store, file_mib)
    return app


def keyed_app() -> FastAPI:
    """An app without routes, with the errors of requests."""
    app = FastAPI()

    @app.middleware("http")
    async def owner(request, call_next):
        request.state.owner = request.headers.get("authorization", "").removeprefix("Bearer ")
        return await call_next(request)

    @app.exception_handler(RequestError)
    async def error(_, error):
        return JSONResponse(error.to_json(), error.status, error.headers())

    return app


@contextmanager
def running(app):
    """Context manager with the URL of an app that uvicorn serves in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
