"""OpenAI's chat completions: a long message, an earlier one or a file is the document. Memories are its reasoning."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request

from actors.serving.readings import Run
from actors.serving.requests import (
    TASK_METHOD,
    UNSUPPORTED,
    EventStream,
    body_of,
    check_tools,
    documents_of,
    ended_with_client,
    fits,
    flag,
    refuse,
    sampling_of,
    whole_number,
)
from actors.serving.served import Served
from pipeline.asking.session import SectionRead
from pipeline.serving.errors import RequestError
from pipeline.serving.messages import asked, messages_of
from pipeline.serving.open_webui import unwrapped

# Fields that would change the answer, and the values with which they do not.
OF_CHATS: dict[str, tuple] = {
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
}


def add_routes(app: FastAPI, served: Served) -> None:
    """Add the route of chat completions."""
    readings = served.readings

    @app.post("/v1/chat/completions")
    async def create(request: Request):
        owner, body = request.state.owner, await body_of(request)
        refuse(body, UNSUPPORTED | OF_CHATS)
        check_tools(body)
        readings.admit(owner)  # before its files are stored
        stream, options = flag(body, "stream"), body.get("stream_options") or {}
        most = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
        sampling, answer_tokens = sampling_of(served, body), whole_number(body, most, 1, 10**9)
        model, method = served.method_of(body.get("model"))
        plain = unwrapped(messages_of(body.get("messages"), "messages"))
        if plain.is_task:
            model, method = served.method_of(f"{served.name}:{TASK_METHOD}")
        found = asked(plain.messages, "", await readings.check(method, fits), plain.text is not None)
        with contextlib.ExitStack() as files:  # the reading holds what it needs; nobody can ask for it later
            documents = await documents_of(served, owner, found.files, files)
            if text := plain.text or found.text:
                documents += (text,)
            run = await readings.start(owner, found.question, documents, method, sampling, model, answer_tokens)
        if stream:
            with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
            return EventStream(chunks(run, with_usage), ended_with_client(request, readings, run, keep=False))
        async with ended_with_client(request, readings, run, keep=False):
            memory = ""
            async for _, event in run.follow(run.dropped):
                memory = event.memory if isinstance(event, SectionRead) else memory
        if run.error is not None:
            raise run.error
        assert run.answered is not None
        message = {"role": "assistant", "content": run.answered.answer, "reasoning_content": memory, "refusal": None}
        return {
            **_head(run, "chat.completion"),
            "choices": [{"index": 0, "message": message, "finish_reason": _reason(run), "logprobs": None}],
            "usage": _usage(run),
        }

    async def chunks(run: Run, with_usage: bool) -> AsyncIterator[str]:
        head = _head(run, "chat.completion.chunk")

        def chunk(delta: dict[str, Any], reason: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
            return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

        yield chunk({"role": "assistant", "content": ""})
        try:
            async for _, event in run.follow(run.dropped):
                if event is None:
                    yield ": alive\n\n"
                elif isinstance(event, SectionRead):
                    of = "" if event.sections is None else f" of {'about ' * event.is_estimate}{event.sections}"
                    said = f"Memory after section {event.number}{of}:\n{event.memory}\n\n"
                    yield chunk({"reasoning_content": said})
            if run.error is not None:
                raise run.error
        except RequestError as error:
            yield f"data: {json.dumps(error.to_json())}\n\n"
            return
        assert run.answered is not None
        yield chunk({"content": run.answered.answer})
        yield chunk({}, _reason(run))
        if with_usage:
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': _usage(run)})}\n\n"
        yield "data: [DONE]\n\n"


def _head(run: Run, kind: str) -> dict[str, Any]:
    return {"id": run.id, "object": kind, "created": int(run.created), "model": run.model}


def _reason(run: Run) -> str:
    return "length" if run.answered is not None and run.answered.is_cut else "stop"


def _usage(run: Run) -> dict[str, int]:
    assert run.answered is not None
    prompt, response = run.answered.prompt_tokens, run.answered.response_tokens
    return {"prompt_tokens": prompt, "completion_tokens": response, "total_tokens": prompt + response}
