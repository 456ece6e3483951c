"""A double of the server's interface, as far as the page uses it: real readings with a scripted model."""

import asyncio
import json
import uuid
from dataclasses import asdict

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from actors.serving.page_routes import FOLDER, add_routes
from pipeline.asking.sections import Place, PlacedText
from pipeline.asking.session import Answered, Reading, SectionRead
from pipeline.rollout.episodes import Sampling
from tests.support.asking import reader

KEY = "pal-test"
METHODS = ("", ":direct", ":concat")
ENDS = ("response.completed", "response.failed", "response.cancelled")


def refusal(status: int, message: str, **headers: str) -> JSONResponse:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return JSONResponse(body, status, headers)


class Answering:
    """A response: its object and the log of its events."""

    def __init__(self, model: str, files: list[dict], question: str):
        self.files, self.question = files, question
        self.log: list[dict] = []
        self.is_new = asyncio.Condition()
        self.reading: Reading | None = None
        self.object = {"id": f"resp_{uuid.uuid4().hex}", "object": "response", "status": "queued", "model": model}

    async def run(self, generate) -> None:
        try:
            await self._put("response.created")
            self.object["status"] = "in_progress"
            await self._put("response.in_progress")
            method = self.object["model"].partition(":")[2] or "memory"
            agent = reader(method, problem_tokens=400, document_tokens=10**7, document_characters=10**8)
            pieces = [PlacedText(file["text"], Place(file["filename"], None, 1)) for file in self.files]
            size = sum(file["bytes"] for file in self.files)
            self.reading = Reading(
                self.question, iter(pieces), agent, generate, Sampling(0.7, 0.95, seed=5), None, size
            )  # fmt: skip
            async for event in self.reading.events():
                await (self._read(event) if isinstance(event, SectionRead) else self._answer(event))
        except asyncio.CancelledError:
            self.object["status"] = "cancelled"
            await self._put("response.cancelled")
        except Exception as error:
            self.object |= {"status": "failed", "error": {"code": "server_error", "message": str(error)}}
            await self._put("response.failed")

    async def events(self, after: int):
        for at in range(after + 1, 1_000_000):
            async with self.is_new:
                await self.is_new.wait_for(lambda at=at: at < len(self.log))
            event = self.log[at]
            yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n: alive\n\n"
            if event["type"] in ENDS:
                return

    async def _put(self, kind: str, **more) -> None:
        event = {"type": kind, "sequence_number": len(self.log), **(more or {"response": dict(self.object)})}
        async with self.is_new:
            self.log.append(event)
            self.is_new.notify_all()

    async def _read(self, event: SectionRead) -> None:
        row = asdict(event)
        item = {
            "type": "reasoning",
            "id": f"rs_{event.number}",
            "status": "completed",
            "summary": [{"type": "summary_text", "text": event.memory}],
            "palimpsest": {"section": event.number, **{k: v for k, v in row.items() if k not in ("number", "memory")}},
        }
        await self._put("response.output_item.added", item=item | {"status": "in_progress", "summary": []})
        await self._put("response.reasoning_summary_text.delta", delta=event.memory)
        await self._put("response.output_item.done", item=item)

    async def _answer(self, answered: Answered) -> None:
        await self._put("response.output_text.delta", delta=answered.text)
        message = {"type": "message", "content": [{"type": "output_text", "text": answered.text, "annotations": []}]}
        details = {"question": self.question, **answered.to_json()}
        self.object |= {"status": "completed", "output": [message], "palimpsest": details}
        await self._put("response.completed")


def make_app(generate) -> FastAPI:
    app = FastAPI()
    files: dict[str, dict] = {}
    responses: dict[str, Answering] = {}
    tasks: dict[str, asyncio.Task] = {}
    add_routes(app)

    @app.middleware("http")
    async def with_key(request: Request, answer):
        path = request.url.path
        is_open = path == "/" or path.startswith(FOLDER)
        if not is_open and request.headers.get("Authorization") != f"Bearer {KEY}":
            return refusal(401, "the key is not known")
        return await answer(request)

    @app.get("/v1/models")
    async def models():
        return {"object": "list", "data": [{"id": f"tiny{method}", "object": "model"} for method in METHODS]}

    @app.post("/v1/files")
    async def add(request: Request):
        given = (await request.form())["file"]
        content = await given.read()
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return refusal(400, f"{given.filename}: the file is broken")
        id = f"file-{uuid.uuid4().hex[:24]}"
        files[id] = {"id": id, "filename": given.filename, "bytes": len(content), "text": text}
        return files[id]

    @app.get("/v1/files")
    async def listed():
        return {"object": "list", "data": list(files.values())}

    @app.delete("/v1/files/{id}")
    async def remove(id: str):
        files.pop(id)
        return {"id": id, "deleted": True}

    @app.post("/v1/responses")
    async def create(request: Request):
        body = await request.json()
        if any(one.object["status"] == "in_progress" for one in responses.values()):
            return refusal(429, "this key has a reading already", **{"Retry-After": "7"})
        parts = body["input"][0]["content"]
        about = [files[part["file_id"]] for part in parts if part["type"] == "input_file"]
        if "previous_response_id" in body:
            about = responses[body["previous_response_id"]].files
        one = Answering(body["model"], about, parts[-1]["text"])
        responses[one.object["id"]] = one
        tasks[one.object["id"]] = asyncio.create_task(one.run(generate))
        return StreamingResponse(one.events(-1), media_type="text/event-stream")

    @app.get("/v1/responses/{id}")
    async def retrieved(id: str, stream: bool = False, starting_after: int = -1):
        one = responses[id]
        return StreamingResponse(one.events(starting_after), media_type="text/event-stream") if stream else one.object

    @app.post("/v1/responses/{id}/stop")
    async def stop(id: str):
        responses[id].reading.stop()
        return responses[id].object

    @app.post("/v1/responses/{id}/cancel")
    async def cancel(id: str):
        tasks[id].cancel()
        return responses[id].object

    return app
