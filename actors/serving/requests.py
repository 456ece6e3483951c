"""What the interfaces of responses and of chats have in common: fields of a request, documents, dropped clients."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from actors.serving.readings import Document, Readings, Run
from actors.serving.served import Served
from pipeline.agents.reader import Reader
from pipeline.errors import QuestionTooLong
from pipeline.problems import Problem
from pipeline.rollout.episodes import Sampling
from pipeline.serving.errors import FileMissing, RequestError
from pipeline.serving.files import FileStore, StoredFile
from pipeline.serving.messages import AttachedFile
from pipeline.serving.urls import fetch_url, name_of

BODY_BYTES = 64 << 20  # of a JSON request; larger files are uploaded
LONGEST_TOKEN = 256  # characters
# Fields that would change the answer, and the values with which they do not.
UNSUPPORTED: dict[str, tuple] = {
    "n": (1,),
    "tool_choice": ("auto", "none"),
    "stop": ([], ""),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "top_k": (0, -1),
    "min_p": (0,),
    "repeat_penalty": (1,),
}
TASK_METHOD = "direct"  # of Open WebUI's own tasks: not worth a reading of the whole chat for each


def number(body: dict[str, Any], key: str, least: float, most: float, default: Any = None) -> Any:
    """A number of a request. Raises `RequestError` if it is none, or outside its limits."""
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise RequestError(400, f"{key} must be a number from {least:g} to {most:g}", param=key)
    return value


def whole_number(body: dict[str, Any], key: str, least: int, most: int) -> int | None:
    """A whole number of a request, if it is there. Raises `RequestError` if it is none, or outside its limits."""
    value = number(body, key, least, most)
    if value is not None and value != int(value):
        raise RequestError(400, f"{key} must be a whole number", param=key)
    return None if value is None else int(value)


def flag(body: dict[str, Any], key: str, default: bool = False) -> bool:
    """A yes or no of a request. Raises `RequestError` if it is neither."""
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise RequestError(400, f"{key} must be true or false", param=key)
    return value


def refuse(body: dict[str, Any], unsupported: dict[str, tuple]) -> None:
    """Refuse fields that would change the answer, unless they have one of the values that change nothing."""
    for key, harmless in unsupported.items():
        if body.get(key) is not None and body[key] not in harmless:
            raise RequestError(400, f"{key} is not supported", code="unsupported_parameter", param=key)


def check_tools(body: dict[str, Any]) -> None:
    """Raises `RequestError` unless all tools are functions, which may be offered: the model chooses to call none."""
    tools = body.get("tools") or []
    if not isinstance(tools, list) or any(not isinstance(t, dict) or t.get("type") != "function" for t in tools):
        raise RequestError(400, "tools must be a list of functions", code="unsupported_parameter", param="tools")


def sampling_of(served: Served, body: dict[str, Any]) -> Sampling:
    plain = served.sampling
    return Sampling(
        float(number(body, "temperature", 0, 2, plain.temperature)),
        float(number(body, "top_p", 0.001, 1, plain.top_p)),
        whole_number(body, "seed", 0, 2**31 - 1),
    )


def fits(agent: Reader, text: str) -> bool:
    """Whether a text fits a question."""
    if len(text) > LONGEST_TOKEN * agent.config.problem_tokens:  # a document, which would take long to encode
        return False
    try:
        agent.encode_question(Problem("asked", text, ()))
    except QuestionTooLong:
        return False
    return True


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        RequestError: it is none, or too large.
    """
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > BODY_BYTES:
            raise RequestError(413, f"the request has more than {BODY_BYTES >> 20} MiB, the limit; upload its files")
    return await asyncio.to_thread(_object, bytes(data))


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()  # no halves of surrogate pairs
    except (ValueError, RecursionError):
        raise RequestError(400, "the request is no JSON of whole characters and finite numbers") from None
    if not isinstance(found, dict):
        raise RequestError(400, "the request must be a JSON object")
    return found


async def documents_of(
    served: Served, owner: str, files: tuple[AttachedFile, ...], undo: contextlib.ExitStack
) -> tuple[Document, ...]:
    """The stored files of a request; those that came with it are stored now, and removed when `undo` is closed.

    Raises:
        RequestError: there is no such file, it cannot be read, or URLs are not allowed.
    """
    found: list[Document] = []
    for file in files:
        if file.id is not None:
            found.append(served.files.get(owner, file.id))
        elif file.data is not None:
            found.append(await add_file(served.files, owner, file.name or "file", once(file.data), undo))
        else:
            url = str(file.url)
            if not served.config.serve.urls:
                raise RequestError(400, "this server fetches no URLs (serve.urls); upload the file", param="file_url")
            chunks = fetch_url(url, served.config.serve.limits)
            found.append(await add_file(served.files, owner, file.name or name_of(url), chunks, undo))
    return tuple(found)


async def add_file(
    files: FileStore, owner: str, name: str, chunks: AsyncIterator[bytes], undo: contextlib.ExitStack
) -> StoredFile:
    """Store a file, as `FileStore.add` does, that is removed when `undo` is closed."""
    stored = await files.add(owner, name, chunks)
    undo.callback(_remove, files, stored)
    return stored


def _remove(files: FileStore, stored: StoredFile) -> None:
    with contextlib.suppress(FileMissing):  # its owner was faster
        files.remove(stored.owner, stored.id)


async def once(data: bytes) -> AsyncIterator[bytes]:
    """The data as one chunk."""
    yield data


class EventStream(StreamingResponse):
    """Server-sent events of a reading.

    Args:
        events: the events.
        ending: entered before the first byte: a client that goes before that must end its reading, too.
    """

    def __init__(self, events: AsyncIterator[str], ending: contextlib.AbstractAsyncContextManager):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._ending:
            await super().__call__(scope, receive, send)


@contextlib.asynccontextmanager
async def ended_with_client(request: Request, readings: Readings, run: Run, keep: bool) -> AsyncIterator[None]:
    """Context manager that cancels a reading if the client goes, or the block ends, before its end.

    Args:
        keep: whether it can be asked for afterwards.
    """

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        await readings.cancel(run)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await (readings.cancel(run) if keep else readings.remove(run))
