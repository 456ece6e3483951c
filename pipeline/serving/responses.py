"""OpenAI's objects and stream events of a reading. What OpenAI has no field for is in `palimpsest`."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from pipeline.asking.session import Answered, SectionRead
from pipeline.serving.errors import RequestError

SECTION_EVENTS = 6  # of a section
FIRST_EVENTS = 2  # before the first section


def response_object(
    *,
    id: str,
    model: str,
    created: float,
    status: str,
    question: str,
    file_ids: Mapping[str, str],
    answered: Answered | None = None,
    error: RequestError | None = None,
    repeated: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The response.

    Args:
        status: in_progress, completed, failed or cancelled.
        file_ids: the ids of files by the names that places have.
        answered: the answer, once it is there.
        error: why there is none.
        repeated: fields of the request that OpenAI's interface repeats.
    """
    is_cut = answered is not None and answered.is_cut
    found: dict[str, Any] = {
        "id": id,
        "object": "response",
        "created_at": int(created),
        "status": "incomplete" if is_cut else status,
        "model": model,
        "error": {"code": error.code or "server_error", "message": error.message}
        if status == "failed" and error
        else None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "output": [],
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
        "usage": None,
        **(repeated or {}),
    }
    if answered is not None:
        found["output"] = [*_last_memory(id, answered), message_item(id, answered, file_ids)]
        found["usage"] = {
            "input_tokens": answered.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": answered.response_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answered.prompt_tokens + answered.response_tokens,
        }
        found["palimpsest"] = _details(question, answered, file_ids)
    return found


def first_events(response: dict[str, Any]) -> list[dict[str, Any]]:
    """The events before the first section. `response` is in progress."""
    kinds = ("response.created", "response.in_progress")
    return [{"type": kind, "sequence_number": n, "response": response} for n, kind in enumerate(kinds)]


def section_events(id: str, number: int, event: SectionRead) -> Iterator[dict[str, Any]]:
    """The events of a section: its memory is an item of reasoning.

    Args:
        id: the response's.
        number: of the event in the reading, from 0.
        event: the section.
    """
    item = memory_item(f"rs_{id}_{number}", event.memory) | {"palimpsest": _section(event)}
    at = {"item_id": item["id"], "output_index": number}
    part = {**at, "summary_index": 0}
    text = {"type": "summary_text", "text": event.memory}
    begun = {"type": "reasoning", "id": item["id"], "status": "in_progress", "summary": []}
    yield from _numbered(
        FIRST_EVENTS + SECTION_EVENTS * number,
        ("response.output_item.added", {"output_index": number, "item": begun}),
        ("response.reasoning_summary_part.added", {**part, "part": {"type": "summary_text", "text": ""}}),
        ("response.reasoning_summary_text.delta", {**part, "delta": event.memory}),
        ("response.reasoning_summary_text.done", {**part, "text": event.memory}),
        ("response.reasoning_summary_part.done", {**part, "part": text}),
        ("response.output_item.done", {"output_index": number, "item": item}),
    )


def last_events(response: dict[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """The events of the answer, if there is one, and of the end.

    Args:
        response: the response, which is over.
        number: how many sections have events.
    """
    first = FIRST_EVENTS + SECTION_EVENTS * number
    events: list[tuple[str, dict[str, Any]]] = []
    if response["output"]:
        item = response["output"][-1]
        (content,) = item["content"]
        at = {"item_id": item["id"], "output_index": number, "content_index": 0}
        empty = {**content, "text": "", "annotations": []}
        events = [
            (
                "response.output_item.added",
                {"output_index": number, "item": item | {"status": "in_progress", "content": []}},
            ),
            ("response.content_part.added", {**at, "part": empty}),
            ("response.output_text.delta", {**at, "delta": content["text"], "logprobs": []}),
            ("response.output_text.done", {**at, "text": content["text"], "logprobs": []}),
            ("response.content_part.done", {**at, "part": content}),
            ("response.output_item.done", {"output_index": number, "item": item}),
        ]
    yield from _numbered(first, *events, (f"response.{response['status']}", {"response": response}))


def memory_item(id: str, memory: str) -> dict[str, Any]:
    """A memory as an item of reasoning."""
    return {
        "type": "reasoning",
        "id": id,
        "status": "completed",
        "summary": [{"type": "summary_text", "text": memory}],
    }


def message_item(id: str, answered: Answered, file_ids: Mapping[str, str]) -> dict[str, Any]:
    """The answer as a message, with the files that it comes from."""
    names = dict.fromkeys(source.place.file for source in answered.sources if source.place.file in file_ids)
    text = answered.answer
    return {
        "type": "message",
        "id": f"msg_{id}",
        "status": "incomplete" if answered.is_cut else "completed",
        "role": "assistant",
        "content": [
            {
                "type": "output_text",
                "text": text,
                "logprobs": [],
                "annotations": [
                    {"type": "file_citation", "file_id": file_ids[name], "filename": name, "index": len(text)}
                    for name in names
                ],
            }
        ],
    }


def _last_memory(id: str, answered: Answered) -> list[dict[str, Any]]:
    return [memory_item(f"rs_{id}", answered.memory)] if answered.memory else []


def _section(event: SectionRead) -> dict[str, Any]:
    row = asdict(event)
    del row["memory"], row["is_kept"]
    return {"section": row.pop("number"), **row}


def _details(question: str, answered: Answered, file_ids: Mapping[str, str]) -> dict[str, Any]:
    row = answered.to_json()
    del row["is_cut"], row["kept_conversations"]
    sources = [{"file_id": file_ids.get(source["place"]["file"]), **source} for source in row.pop("sources")]
    return {"question": question, **row, "sources": sources}


def _numbered(first: int, *events: tuple[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, (kind, rest) in enumerate(events, first):
        yield {"type": kind, "sequence_number": number, **rest}
