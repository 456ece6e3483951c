"""The HTTP side of a server as a deployment of Ray Serve: one replica, on the head node, where the files are."""

import copy
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.serving.app import make_app
from actors.serving.engine_replica import engine_application, generate_with
from actors.serving.served import METHODS, Served
from pipeline.agents import load_agent
from pipeline.agents.reader import Reader
from pipeline.asking.session import check_agent
from pipeline.serving.config import ServeConfig, model_name, serve_folder
from pipeline.serving.files import FileStore
from pipeline.serving.keys import Keys
from pipeline.text import load_tokenizer

MOST_REQUESTS = 10_000  # at once; the limits of the app are far below
APPLICATION = "palimpsest"


@serve.ingress()
class Frontend:
    """The app and all its state.

    Args:
        config: the configuration.
        engines: the handle of the replicas.
    """

    def __init__(self, config: ServeConfig, engines: Any):
        for method in METHODS:
            new_agent(config, method)  # imports libraries, which several threads would do at once at the first requests
        folder = serve_folder(config)
        self._served = Served(
            config,
            lambda method: new_agent(config, method),
            generate_with(engines, config.serve.replicas.timeout_s),
            model_name(config),
            Keys(folder),
            FileStore(folder, config.serve.limits, config.agent.document_characters),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = make_app(self._served)
        app.add_middleware(GoneClients)
        return app


class GoneClients:
    """Tells the app that a client has gone, where Ray Serve raises because its proxy has ended the request."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def received() -> Message:
            try:
                return await receive()
            except RayError:
                return {"type": "http.disconnect"}

        await self._app(scope, received if scope["type"] == "http" else receive, send)


def new_agent(config: ServeConfig, method: str) -> Reader:
    """An agent with a tokenizer of its own: two threads must not use one at once."""
    tokenizer = copy.deepcopy(load_tokenizer(config.model.path, config.model.trust_remote_code))
    return check_agent(method, load_agent(method))(tokenizer, config.agent)


def application(config: ServeConfig) -> serve.Application:
    """The whole server, for `serve.run`."""
    frontend = serve.deployment(
        Frontend,
        name="frontend",
        num_replicas=1,
        max_ongoing_requests=MOST_REQUESTS,
        ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
        graceful_shutdown_timeout_s=5,
    )
    return frontend.bind(config, engine_application(config))
