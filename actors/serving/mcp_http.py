"""MCP over HTTP, at /mcp: the same tool for files that were uploaded before."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Annotated

from fastapi import FastAPI
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import Field
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.asking.session import Event
from pipeline.errors import BadRow, DataError, RunFailed, reason_of
from pipeline.serving import mcp_tool
from pipeline.serving.errors import RequestError
from pipeline.serving.files import FileStore, StoredFile

FILE_ID = "The id of an uploaded file (file-…), from POST /v1/files with the same key."
PATH = "/mcp"

# (key's name, question, files) -> the events of a reading; closing it ends the reading
Ask = Callable[[str, str, list[StoredFile]], AsyncGenerator[Event, None]]


def add_routes(app: FastAPI, files: FileStore, ask: Ask) -> None:
    """Add MCP at /mcp, and its sessions to what the app starts and ends.

    Args:
        app: the application; its middleware checks keys and sets `request.state.owner` to the key's name.
        files: where files are kept.
        ask: starts a reading within the limits of a key.
    """
    server = MCPServer(mcp_tool.NAME, log_level="WARNING")

    @server.tool(name=mcp_tool.TOOL, title=mcp_tool.TITLE, description=mcp_tool.DESCRIPTION)
    async def ask_document(
        file_id: Annotated[str, Field(description=FILE_ID)],
        question: Annotated[str, Field(description=mcp_tool.QUESTION)],
        context: Context,
    ) -> mcp_tool.Answer:
        owner = context.request_context.request.state.owner  # of this call, not of the session's first
        try:
            events = ask(owner, question, [files.get(owner, file_id)])
            return await mcp_tool.answer(events, context.report_progress)
        except RequestError as error:
            raise ToolError(error.message) from None
        except (DataError, BadRow, RunFailed) as error:
            raise ToolError(reason_of(error)) from None

    # Without a key nobody gets here, so the names that a browser may be tricked into calling need no check.
    server.streamable_http_app(transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False))
    manager = server.session_manager
    app.router.routes.append(Route(PATH, endpoint=_Owned(manager.handle_request)))
    _run_with(app, manager)


class _Owned:
    """Tells MCP whose request it is, so that no key can use another's session."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        owner = scope["state"]["owner"]
        user = AuthenticatedUser(AccessToken(token="", client_id=owner, scopes=[]))
        await self._app({**scope, "user": user}, receive, send)


def _run_with(app: FastAPI, manager: StreamableHTTPSessionManager) -> None:
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator:
        async with inner(app) as state, manager.run():
            yield state

    app.router.lifespan_context = lifespan
