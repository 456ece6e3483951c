"""OpenAI's Responses: a response is a reading; its memories are items of reasoning."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fastapi import FastAPI, Request

from actors.serving.readings import Readings, Run
from actors.serving.requests import (
    TASK_METHOD,
    UNSUPPORTED,
    EventStream,
    add_file,
    body_of,
    check_tools,
    documents_of,
    ended_with_client,
    fits,
    flag,
    once,
    refuse,
    sampling_of,
    whole_number,
)
from actors.serving.served import Served
from pipeline.asking.session import SectionRead
from pipeline.serving.errors import RequestError
from pipeline.serving.messages import asked, messages_of
from pipeline.serving.open_webui import unwrapped
from pipeline.serving.responses import (
    FIRST_EVENTS,
    SECTION_EVENTS,
    first_events,
    last_events,
    response_object,
    section_events,
)

# Fields that would change the answer, and the values with which they do not.
OF_RESPONSES: dict[str, tuple] = {
    "text": ({}, {"format": {"type": "text"}}),
    "conversation": (),
    "prompt": (),
    "top_logprobs": (0,),
    "max_tool_calls": (),
}


def add_routes(app: FastAPI, served: Served) -> None:
    """Add the routes of responses."""
    readings = served.readings

    @app.post("/v1/responses")
    async def create(request: Request):
        owner, body = request.state.owner, await body_of(request)
        refuse(body, UNSUPPORTED | OF_RESPONSES)
        check_tools(body)
        readings.admit(owner)  # before its files are stored
        stream, background = flag(body, "stream"), flag(body, "background")
        store = flag(body, "store", default=True)
        sampling, answer_tokens = sampling_of(served, body), whole_number(body, "max_output_tokens", 1, 10**9)
        if background and not store:
            raise RequestError(400, "background needs store", param="store")
        model, method = served.method_of(body.get("model"))
        instructions = body.get("instructions") or ""
        if not isinstance(instructions, str):
            raise RequestError(400, "instructions must be a text", param="instructions")
        repeated = {key: body.get(key) for key in ("metadata", "previous_response_id", "temperature", "top_p")}
        if not isinstance(repeated["metadata"] or {}, dict) or len(json.dumps(repeated["metadata"])) > 16_384:
            raise RequestError(400, "metadata must be an object of at most 16,384 characters", param="metadata")
        before = _previous(readings, owner, body.get("previous_response_id"))
        plain = unwrapped(messages_of(body.get("input"), "input"))
        if plain.is_task:
            model, method = served.method_of(f"{served.name}:{TASK_METHOD}")
        found = asked(
            plain.messages,
            instructions,
            await readings.check(method, fits),
            before is not None or plain.text is not None,
        )
        with contextlib.ExitStack() as undo:
            documents = await documents_of(served, owner, found.files, undo)
            if text := plain.text or found.text:  # on disk, where limits hold: a later question may be about it
                documents += (await add_file(served.files, owner, "message.txt", once(text.encode()), undo),)
            if not documents and before is not None:
                documents = before.documents
            repeated |= {"instructions": instructions or None, "background": background}
            run = await readings.start(
                owner, found.question, documents, method, sampling, model, answer_tokens, repeated
            )
            undo.pop_all()
        if stream:
            ending = contextlib.nullcontext() if background else ended_with_client(request, readings, run, keep=store)
            return EventStream(events(run, -1), ending)
        if not background:
            async with ended_with_client(request, readings, run, keep=store):
                async for _ in run.follow(run.dropped):
                    pass
            if run.error is not None:
                raise run.error
        return shown(run)

    @app.get("/v1/responses/{id}")
    async def retrieve(request: Request, id: str, stream: str = "", starting_after: str = ""):
        run = readings.get(request.state.owner, id)
        if stream.lower() not in ("true", "1"):
            return shown(run)
        try:
            after = int(starting_after) if starting_after else -1
        except ValueError:
            raise RequestError(400, "starting_after must be a number", param="starting_after") from None
        if run.dropped and (after + 1 - FIRST_EVENTS) // SECTION_EVENTS < run.dropped:
            raise RequestError(400, "these events are not held any more; get the response", code="events_dropped")
        return EventStream(events(run, after), contextlib.nullcontext())

    @app.delete("/v1/responses/{id}")
    async def delete(request: Request, id: str) -> dict[str, Any]:
        await readings.remove(readings.get(request.state.owner, id))
        return {"id": id, "object": "response", "deleted": True}

    @app.post("/v1/responses/{id}/cancel")
    async def cancel(request: Request, id: str) -> dict[str, Any]:
        run = readings.get(request.state.owner, id)
        await readings.cancel(run)
        return shown(run)

    @app.post("/v1/responses/{id}/stop")
    async def stop(request: Request, id: str) -> dict[str, Any]:
        run = readings.get(request.state.owner, id)
        readings.stop(run)
        return shown(run)

    async def events(run: Run, after: int) -> AsyncIterator[str]:
        """The events of a stream whose numbers are above `after`, those of a section as one piece."""
        yield sse(first_events(shown(run, begun=True)), after)
        try:
            begin = max(0, after + 1 - FIRST_EVENTS) // SECTION_EVENTS
            async for number, read in run.follow(min(begin, run.read)):
                if read is None:
                    yield ": alive\n\n"
                elif isinstance(read, SectionRead):
                    yield sse(section_events(run.id, number, read), after)
        except RequestError as error:  # this client is too slow
            yield sse([{"type": "error", "code": error.code, "message": error.message, "param": None}])
            return
        yield sse(last_events(shown(run), run.read), after)


def sse(events: Iterable[dict[str, Any]], after: int | None = None) -> str:
    """Events as text; those whose numbers are not above `after` are left out."""
    return "".join(
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
        for event in events
        if after is None or event["sequence_number"] > after
    )


def shown(run: Run, begun: bool = False) -> dict[str, Any]:
    """OpenAI's object of a reading; `begun`: as it was when it began."""
    return response_object(
        id=run.id,
        model=run.model,
        created=run.created,
        status="in_progress" if begun else run.status,
        question=run.question,
        file_ids={name: file.id for name, file in run.names().items()},
        answered=None if begun else run.answered,
        error=None if begun else run.error,
        repeated=run.repeated,
    )


def _previous(readings: Readings, owner: str, id: Any) -> Run | None:
    if id is None:
        return None
    if not isinstance(id, str):
        raise RequestError(400, "previous_response_id must be a text", param="previous_response_id")
    return readings.get(owner, id)
