"""MCP over standard input and output: `python -m jobs.serve --mcp [--root DIR …] [option …] [key=value …]`.

The model is that of `jobs.ask`, with its options and keys: a local engine in this process, or a server (--endpoint).
Files are read where they are, but only inside the folders that the client names as its roots, and those of --root.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from mcp.server.mcpserver import Context, ListRoots, MCPServer, Resolve
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ListRootsResult
from pydantic import Field

from jobs.support.asked_files import events_of, split_arguments
from jobs.support.asked_model import AskedModel, open_model
from pipeline.asking.config import load_ask_config
from pipeline.asking.documents import find_files
from pipeline.asking.session import Event
from pipeline.errors import BadRow, ConfigError, DataError, RunFailed, reason_of
from pipeline.serving import mcp_tool

PATH = "The file to read (text, Markdown, HTML, PDF or DOCX), or a folder of such files: inside one of your roots."


def main(arguments: list[str]) -> int:
    """Serve one client until it ends; return the exit status: 0 ended by the client, 1 failed, 2 wrong arguments.

    Args:
        arguments: those after --mcp.
    """
    try:
        roots, rest = _split_roots(arguments)
        settings, words, as_json = split_arguments(rest)
        if words or as_json:
            raise ConfigError(f"--mcp takes no {'--json' if as_json else repr(words[0])}; the client sends questions")
        config = load_ask_config(settings)
        return asyncio.run(_serve(config, roots))
    except (ConfigError, DataError) as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    except (RunFailed, OSError) as error:
        print(reason_of(error), file=sys.stderr)
        return 1


async def _serve(config, roots: list[Path]) -> int:
    model = await open_model(config, lambda line: print(line, file=sys.stderr, flush=True))
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    serving = asyncio.create_task(make_server(model, roots).run_stdio_async())
    try:
        await asyncio.wait([serving, asyncio.create_task(ended.wait())], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await model.client.close()
    if not serving.done():
        os._exit(0)  # a thread waits for a line of stdin, and nothing can wake it
    await serving
    return 0


def make_server(model: AskedModel, roots: list[Path]) -> MCPServer:
    """A server with the tool; it answers one question after the other.

    Args:
        model: what answers.
        roots: folders whose files may be read, beside the client's roots.
    """
    server = MCPServer(mcp_tool.NAME, log_level="WARNING")
    turn = asyncio.Lock()  # the agent and its tokenizer are one reading's at a time

    @server.tool(name=mcp_tool.TOOL, title=mcp_tool.TITLE, description=mcp_tool.DESCRIPTION)
    async def ask_document(
        path: Annotated[str, Field(description=PATH)],
        question: Annotated[str, Field(description=mcp_tool.QUESTION)],
        client_roots: Annotated[ListRootsResult, Resolve(_client_roots)],
        context: Context,
    ) -> mcp_tool.Answer:
        uris = [str(root.uri) for root in client_roots.roots]
        try:
            allowed = allowed_path(path, [*local_roots(uris), *roots])
            async with turn:
                return await mcp_tool.answer(read(model, question, allowed), context.report_progress)
        except (ConfigError, DataError, BadRow, RunFailed, OSError) as error:
            raise ToolError(str(error)) from None

    return server


async def _client_roots(context: Context) -> ListRoots | ListRootsResult:
    capabilities = context.client_capabilities
    if capabilities is None or capabilities.roots is None:
        return ListRootsResult(roots=[])
    return ListRoots()


def local_roots(uris: Iterable[str]) -> list[Path]:
    """The folders of file:// URIs; others are left out."""
    found = []
    for uri in uris:
        with contextlib.suppress(ValueError):
            parts = urlsplit(uri)
            if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
                found.append(Path(unquote(parts.path)))
    return found


def allowed_path(path: str, roots: list[Path]) -> Path:
    """The path without links, if it is inside one of the roots. A relative path is looked for in each of them.

    Raises:
        DataError: it is not, or there is no such file.
    """
    if not roots:
        raise DataError(
            "no path can be read: this client names no roots; start the server with --root DIR to allow a folder"
        )
    for root in roots:
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # no such file, a NUL, a circle of links
            found = (root / path).resolve(strict=True)
            if any(found.is_relative_to(root.resolve()) for root in roots):
                return found
    # The message does not tell whether the file exists: a client must not learn what is outside its roots.
    shown = ", ".join(str(root) for root in roots)
    raise DataError(f"{path[:200]!r} is no file in the folders that may be read: {shown}")


async def read(model: AskedModel, question: str, path: Path) -> AsyncGenerator[Event, None]:
    """The events of a reading. What was finished in an earlier one is kept, as in `jobs.ask`.

    Raises:
        DataError, BadRow, RunFailed, OSError: it cannot be answered; the message says why.
    """
    files, _ = await asyncio.to_thread(find_files, [path])
    async with contextlib.aclosing(events_of(model, question, files)) as events:
        async for event in events:
            yield event


def _split_roots(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """The folders of --root, and the other arguments. Raises `ConfigError` if one is no folder."""
    roots, rest, left = [], [], list(arguments)
    while left:
        argument = left.pop(0)
        flag, equals, value = argument.partition("=")
        if flag != "--root":
            rest.append(argument)
            continue
        if not equals and not left:
            raise ConfigError("--root needs a folder")
        root = Path(value if equals else left.pop(0)).expanduser()
        if not root.is_dir():
            raise ConfigError(f"--root {root}: there is no such folder")
        roots.append(root.resolve())
    return roots, rest


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
