"""The server's interface under OpenAI's own client, with a scripted model."""

import asyncio
import base64
import contextlib
import json
import re
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import httpx2
import openai
import psutil
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from starlette.requests import ClientDisconnect

from actors.serving.app import make_app
from pipeline.serving.errors import RequestError
from tests.support.asking import ScriptedModel, reader
from tests.support.served_files import running
from tests.support.serving import served_by

LINES = "".join(f"{line:<59}\n" for line in ("The door is red.", "Fog fell.", "The cat is blue.", "Rain fell."))

QUESTION = {"type": "input_text", "text": "Which?"}


class HeldModel(ScriptedModel):
    """A scripted model that answers `free` conversations, and then waits."""

    def __init__(self):
        super().__init__(reader().tokenizer)
        self.free, self.running, self.cancelled = 1_000_000, 0, 0
        self.limits: list[int] = []

    async def generate(self, prompt, max_tokens, sampling):
        self.running += 1
        self.limits.append(max_tokens)
        try:
            while self.free <= 0:
                await asyncio.sleep(0.005)
            self.free -= 1
            return await super().generate(prompt, max_tokens, sampling)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


class Server:
    def __init__(self, address: str, served, key: str, model: HeldModel):
        self.address, self.served, self.key, self.model = address, served, key, model
        self.client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
        self.http = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=120)

    def ask(self, question="Which?", text=LINES, **more):
        file = self.client.files.create(file=("a.txt", text.encode()), purpose="user_data")
        parts = [{"type": "input_file", "file_id": file.id}, {"type": "input_text", "text": question}]
        return self.client.responses.create(model="tiny", input=[{"role": "user", "content": parts}], **more)


@pytest.fixture
def start(tmp_path):
    """Starts a server with these limits."""
    running_now = []

    def start(**limits) -> Server:
        model = HeldModel()
        served, key = served_by(model, tmp_path / str(len(running_now)), **limits)
        context = running(make_app(served))
        server = Server(context.__enter__(), served, key, model)
        running_now.append((context, server))
        return server

    yield start
    for context, server in running_now:
        server.model.free = 1_000_000
        server.client.close()
        server.http.close()
        context.__exit__(None, None, None)


@pytest.fixture
def server(start) -> Server:
    return start()


def until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_question_about_a_file_is_answered_with_its_sources(server):
    response = server.ask(metadata={"a": "b"})
    assert response.status == "completed" and response.output_text == "blue" and response.metadata == {"a": "b"}
    memory, message = response.output
    assert memory.type == "reasoning" and memory.summary[0].text == "The door is red. The cat is blue."
    (citation,) = message.content[0].annotations
    assert citation.filename == "a.txt" and citation.file_id.startswith("file-")
    details = response.palimpsest
    assert details["question"] == "Which?" and details["is_whole"] and details["sections"] == 4
    assert details["sources"][0] | {"words": None} == {
        "file_id": citation.file_id,
        "section": 3,
        "place": {"file": "a.txt", "page": None, "line": 3},
        "passage": "The cat is blue.",
        "words": None,
        "is_answer": True,
    }
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 0
    again = server.client.responses.retrieve(response.id)
    assert again.output_text == "blue" and again.to_dict() == response.to_dict()


def test_a_stream_has_the_memories_and_then_the_answer(server):
    events = list(server.ask(stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    items = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.type for item in items] == ["reasoning"] * 4 + ["message"]
    assert [item.palimpsest["section"] for item in items[:4]] == [1, 2, 3, 4]
    assert items[2].palimpsest["changes"] == [
        {"kind": "kept", "text": "The door is red."},
        {"kind": "added", "text": " The cat is blue."},
    ]
    assert items[0].palimpsest["sections"] == 4 and items[0].palimpsest["place"]["file"] == "a.txt"
    assert [e.delta for e in events if e.type == "response.output_text.delta"] == ["blue"]
    final = events[-1].response
    assert final.output_text == "blue"
    later = list(server.client.responses.retrieve(final.id, stream=True, starting_after=8))
    assert [event.to_dict() for event in later] == [event.to_dict() for event in events[9:]]


def test_a_reading_in_the_background_is_polled_followed_stopped_and_asked_again(server):
    server.model.free = 2
    response = server.ask(background=True)
    assert response.status == "in_progress" and response.output == []
    until(lambda: server.model.running == 1 and server.model.free == 0)
    stream = server.client.responses.retrieve(response.id, stream=True)
    assert next(stream).type == "response.created"
    stopped = server.http.post(f"/v1/responses/{response.id}/stop")
    assert stopped.status_code == 200 and stopped.json()["status"] == "in_progress"
    server.model.free = 100
    assert list(stream)[-1].type == "response.completed"
    done = server.client.responses.retrieve(response.id)
    assert done.palimpsest["sections"] == 3 and not done.palimpsest["is_whole"] and done.output_text == "blue"
    assert server.http.post(f"/v1/responses/{response.id}/stop").status_code == 409

    follow_up = server.client.responses.create(model="tiny", input="And now?", previous_response_id=response.id)
    assert follow_up.palimpsest["is_whole"] and follow_up.palimpsest["question"] == "And now?"
    assert server.client.responses.delete(response.id) is None
    with pytest.raises(openai.NotFoundError, match="there is no response"):
        server.client.responses.retrieve(response.id)


def test_a_reading_is_cancelled(server):
    server.model.free = 1
    response = server.ask(background=True)
    until(lambda: server.model.running == 1 and server.model.free == 0)
    assert server.client.responses.cancel(response.id).status == "cancelled"
    assert server.model.cancelled == 1 and server.served.readings.count() == 0
    made = []
    server.served.readings._make_agent = lambda method: made.append(method) or reader(method)
    server.model.free = 1_000_000
    assert server.ask().palimpsest["answer"] == "blue"
    assert made == ["memory"]  # a thread may still have used the tokenizer of the cancelled reading's agent


def test_a_cancelled_reading_leaves_no_parser_behind(server):
    def parsers() -> set[int]:
        return {child.pid for child in psutil.Process().children(recursive=True)}

    page = "".join(f"<p>{line}</p>" for line in ["Fog fell over the moor."] * 100_000)
    file = server.client.files.create(file=("a.html", page.encode()), purpose="user_data")
    before = parsers()
    server.model.free = 0
    parts = [{"type": "input_file", "file_id": file.id}, {"type": "input_text", "text": "Which?"}]
    asked = [{"role": "user", "content": parts}]
    response = server.client.responses.create(model="tiny", input=asked, background=True)
    until(lambda: server.model.running == 1)
    assert parsers() > before  # most of the page is not parsed yet
    server.client.responses.cancel(response.id)
    until(lambda: parsers() <= before)
    assert server.client.responses.retrieve(response.id).status == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_its_reading(server, stream):
    server.model.free = 1

    def ask() -> None:
        with pytest.raises((openai.APIError, httpx.HTTPError)):
            impatient = server.client.with_options(timeout=0.5)
            parts = [{"role": "user", "content": LINES + "\n\nWhich?"}]
            for _ in impatient.responses.create(model="tiny", input=parts, stream=stream):
                pass

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: server.model.cancelled == 1 and server.served.readings.count() == 0)
    asking.join()


@pytest.mark.parametrize("path, field", [("/v1/responses", "input"), ("/v1/chat/completions", "messages")])
def test_a_client_that_goes_before_the_first_byte_ends_its_reading(tmp_path, path, field):
    model = HeldModel()
    model.free = 0
    served, key = served_by(model, tmp_path)
    ends = []
    served.readings.observers.append(lambda run, event: ends.append(run.status))
    body = {field: [{"role": "user", "content": LINES + "\n\nWhich?"}], "stream": True}
    scope = {"type": "http", "asgi": {"spec_version": "2.4"}, "method": "POST", "path": path, "query_string": b"",
             "headers": [(b"authorization", f"Bearer {key}".encode())]}  # fmt: skip
    given = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive():
        return given.pop() if given else await asyncio.Event().wait()

    async def send(message):
        raise OSError("the client has gone")

    async def call():
        with pytest.raises(ClientDisconnect):
            await make_app(served)(scope, receive, send)
        return served.readings.count()

    assert asyncio.run(call()) == 0 and ends == ["cancelled"]


def test_a_chat_with_a_long_message_and_its_follow_up(server):
    messages = [{"role": "user", "content": f"{LINES}\n\nWhich?"}]
    done = server.client.chat.completions.create(model="tiny", messages=messages)
    assert done.choices[0].message.content == "blue" and done.choices[0].finish_reason == "stop"
    assert done.choices[0].message.reasoning_content == "The door is red. The cat is blue."
    assert server.model.asked[-1]["problem"] == "Which?"
    messages += [{"role": "assistant", "content": "blue"}, {"role": "user", "content": "Really?"}]
    chunks = list(
        server.client.chat.completions.create(
            model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "blue"
    reasoning = [c.choices[0].delta.reasoning_content for c in chunks if c.choices and "reasoning" in str(c)]
    assert reasoning[0].startswith("Memory after section 1 of") and chunks[-1].usage.total_tokens > 0
    assert chunks[-2].choices[0].finish_reason == "stop" and server.model.asked[-1]["problem"] == "Really?"


def test_a_file_that_comes_with_the_request(server):
    data = base64.b64encode(LINES.encode()).decode()
    parts = [
        {"type": "input_file", "filename": "b.txt", "file_data": f"data:text/plain;base64,{data}"},
        {"type": "input_text", "text": "Which?"},
    ]
    response = server.client.responses.create(
        model="tiny", instructions="Be short.", input=[{"role": "user", "content": parts}]
    )
    assert response.output_text == "blue" and response.palimpsest["question"] == "Be short.\n\nWhich?"
    assert [file.filename for file in server.client.files.list()] == ["b.txt"]


def test_a_refused_request_leaves_no_files_and_a_chat_none_at_all(start):
    server = start(files=2)
    data = "data:text/plain;base64," + base64.b64encode(LINES.encode()).decode()
    file = {"type": "input_file", "filename": "b.txt", "file_data": data}
    question = {"type": "input_text", "text": "Which?"}
    asked = {"model": "tiny", "input": [{"role": "user", "content": [file, question]}]}
    gone = {"type": "input_file", "file_id": "file-" + "0" * 24}
    for wrong, status in (
        ({"max_output_tokens": 1.5}, 400),
        ({"temperature": 9}, 400),
        ({"input": [{"role": "user", "content": [file, gone, question]}]}, 404),
        ({"input": [{"role": "user", "content": [file, {"type": "input_text", "text": "Which? " * 400}]}]}, 400),
    ):
        assert server.http.post("/v1/responses", json=asked | wrong).status_code == status
        assert not server.served.files.list("first")
    chat = {"type": "file", "file": {"filename": "b.txt", "file_data": data}}
    messages = [{"role": "user", "content": [chat, {"type": "text", "text": "Which?"}]}]
    for _ in range(3):  # more than files may be kept
        done = server.client.chat.completions.create(model="tiny", messages=messages)
        assert done.choices[0].message.content == "blue"
    wrong = server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": messages, "temperature": 9})
    assert wrong.status_code == 400 and not server.served.files.list("first")


def test_numbers_that_are_not_finite_are_refused(server):
    body = json.dumps({"model": "tiny", "input": f"{LINES}\n\nWhich?", "metadata": {"a": float("nan")}})
    refused = server.http.post("/v1/responses", content=body)
    assert refused.status_code == 400 and "finite numbers" in refused.text


def test_a_refused_question_gives_the_agent_back(server):
    async def start() -> None:
        with pytest.raises(RequestError, match="question"):
            await server.served.readings.start("first", "Which? " * 400, (LINES,), "memory", server.served.sampling)

    made = []
    server.served.readings._make_agent = lambda method: made.append(method) or reader(method)
    for _ in range(3):
        asyncio.run(start())
    assert made == ["memory"]


def test_the_models_are_the_methods(server):
    assert [model.id for model in server.client.models.list()] == ["tiny", "tiny:direct", "tiny:concat"]
    assert server.client.models.retrieve("tiny:direct").id == "tiny:direct"
    file = server.client.files.create(file=("a.txt", LINES.encode()), purpose="user_data")
    parts = [{"type": "input_file", "file_id": file.id}, {"type": "input_text", "text": "Which?"}]
    for method in ("direct", "concat"):
        response = server.client.responses.create(model=f"tiny:{method}", input=[{"role": "user", "content": parts}])
        assert response.output_text == "blue" and response.palimpsest["sections"] == 4


def of_parts(*parts: dict) -> dict:
    return {"input": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"tools": [{"type": "web_search"}]}, 400, "tools must be a list of functions"),
        ({"tools": 5}, 400, "tools must be a list of functions"),
        ({"tool_choice": "required"}, 400, "tool_choice is not supported"),
        ({"stop": ["x"]}, 400, "stop is not supported"),
        ({"text": {"format": {"type": "json_schema"}}}, 400, "text is not supported"),
        ({"model": "gpt"}, 404, "there is no model 'gpt'"),
        ({"temperature": "hot"}, 400, "temperature must be a number"),
        ({"stream": 1}, 400, "stream must be true or false"),
        ({"input": []}, 400, "input must be a text"),
        ({"input": [1]}, 400, r"input\[0\] must be a message"),
        ({"input": "Which?"}, 400, "there is no document"),
        ({"input": "x" * 200}, 400, "put the question in a paragraph"),
        (of_parts({"type": "input_image"}), 400, "part of type 'input_image'"),
        (of_parts({"type": "input_file", "file_id": "file-0"}, QUESTION), 404, "there is no file"),
        (of_parts({"type": "input_file", "file_url": "http://a/b"}, QUESTION), 400, "fetches no URLs"),
        ({"previous_response_id": "resp_0"}, 404, "there is no response"),
        ({"background": True, "store": False}, 400, "background needs store"),
        ({"metadata": {"a": "b" * 20_000}}, 400, "metadata"),
        ({"max_output_tokens": 0}, 400, "max_output_tokens"),
        ({"max_output_tokens": 1.5}, 400, "max_output_tokens must be a whole number"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_in_words(server, change, status, message):
    refused = server.http.post("/v1/responses", json={"model": "tiny", "input": f"{LINES}\n\nWhich?"} | change)
    error = refused.json()["error"]
    assert refused.status_code == status and set(error) == {"message", "type", "param", "code"}
    assert re.search(message, error["message"]), error
    assert server.served.readings.count() == 0


def test_bad_bodies_paths_and_keys(server):
    for body in (b"", b"[]", b"{", b'{"input": "\\ud800"}', b"\xff", b"[" * 100_000):
        assert server.http.post("/v1/responses", content=body).status_code == 400
    assert server.http.get("/v1/nothing").json()["error"]["message"] == "there is no such path"
    assert server.http.put("/v1/models").status_code == 405
    for headers in ({}, {"Authorization": "Bearer pal-x"}, {"Authorization": f"Basic {server.key}"}):
        refused = httpx.get(f"{server.address}/v1/models", headers=headers)
        assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == "Bearer"
    assert httpx.get(f"{server.address}/health").json() == {"status": "ok"}
    assert "Ask your documents" in httpx.get(server.address).text


def test_more_readings_than_a_key_may_have_are_refused_until_one_ends(start):
    server = start(readings=1)
    server.model.free = 0
    response = server.ask(background=True)
    with pytest.raises(openai.RateLimitError, match="this key has 1 readings") as refused:
        server.ask(background=True)
    assert refused.value.response.headers["Retry-After"] == "5"
    server.client.responses.cancel(response.id)
    server.model.free = 100
    assert server.ask().output_text == "blue"


SLOW = {  # what is sent of a request before it stands nearly still, by its path
    "/v1/files": "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    '--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n',
    "/v1/responses": "Content-Type: application/json\r\n\r\n{",
    "/v1/chat/completions": "Content-Type: application/json\r\n\r\n{",
    "/mcp": "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n\r\n{",
}


@pytest.mark.parametrize("path", SLOW)
def test_a_body_that_comes_too_slowly_is_refused(start, path):
    server = start(upload_s=0.5)
    address = urlsplit(server.address)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\nContent-Length: 1000\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=120) as connection:
        connection.sendall(f"{head}{SLOW[path]}".encode())
        begin = time.monotonic()
        with contextlib.suppress(OSError):  # the server has ended the connection
            while time.monotonic() < begin + 1:
                connection.sendall(b" ")
                time.sleep(0.1)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert not server.http.get("/v1/files").json()["data"]


def test_a_reading_that_takes_too_long_ends_and_old_ones_are_forgotten(start):
    server = start(reading_s=0.2, keep_s=0.5)
    server.model.free = 1
    with pytest.raises(openai.APIStatusError, match=r"longer than 0\.2 seconds") as late:
        server.ask()
    assert late.value.status_code == 504 and server.served.readings.count() == 0
    server.model.free = 1_000_000
    response = server.ask()
    time.sleep(0.6)
    with pytest.raises(openai.NotFoundError):
        server.client.responses.retrieve(response.id)
    until(lambda: not list((server.served.files._folder).iterdir()))


def test_no_key_sees_what_is_anothers(server):
    response = server.ask()
    other = openai.OpenAI(base_url=f"{server.address}/v1", api_key=server.served.keys.make("second"), max_retries=0)
    for use in (other.responses.retrieve, other.responses.cancel, other.responses.delete):
        with pytest.raises(openai.NotFoundError):
            use(response.id)
    assert list(other.files.list()) == []


def test_events_that_are_not_held_are_refused(server, monkeypatch):
    monkeypatch.setattr("actors.serving.readings.LOG_BYTES", 1500)
    response = server.ask()
    run = server.served.readings.get("first", response.id)
    assert 0 < run.dropped < 4
    refused = server.http.get(f"/v1/responses/{response.id}?stream=true")
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "events_dropped"
    rest = list(server.client.responses.retrieve(response.id, stream=True, starting_after=2 + 6 * run.dropped - 1))
    assert rest[-1].response.output_text == "blue"


def test_the_numbers_for_prometheus(server):
    usage = server.ask().usage
    said = server.http.get("/metrics").text
    assert 'palimpsest_readings_total{status="completed"} 1.0' in said and "palimpsest_sections_total 4.0" in said
    assert "palimpsest_answer_seconds_count 1.0" in said and "palimpsest_readings_running 0.0" in said
    assert f'palimpsest_tokens_total{{kind="prompt"}} {usage.input_tokens:.1f}' in said
    assert f'palimpsest_tokens_total{{kind="response"}} {usage.output_tokens:.1f}' in said
    assert httpx.get(f"{server.address}/metrics").status_code == 401


def test_a_broken_document_and_a_dead_engine_are_errors_in_words(server):
    from pipeline.errors import RunFailed

    def die(number):
        raise RunFailed("no engine is there")

    server.model.before = die
    with pytest.raises(openai.InternalServerError, match="no engine is there") as dead:
        server.ask()
    assert dead.value.status_code == 503 and dead.value.response.headers["Retry-After"] == "5"
    events = list(server.ask(stream=True))
    assert events[-1].type == "response.failed" and events[-1].response.error.message == "no engine is there"


def test_mcp_asks_within_the_keys_limits(start):
    server = start(readings=1)
    file = server.client.files.create(file=("a.txt", LINES.encode()), purpose="user_data")

    async def ask(key: str):
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(headers=headers, timeout=120) as http:
            async with Client(streamable_http_client(f"{server.address}/mcp", http_client=http)) as client:
                return await client.call_tool("ask_document", {"file_id": file.id, "question": "Which?"})

    found = asyncio.run(ask(server.key))
    assert found.structured_content["answer"] == "blue" and found.structured_content["sections"] == 4
    other = asyncio.run(ask(server.served.keys.make("second")))
    assert other.is_error and "there is no file" in other.content[0].text
    server.model.free = 0
    held = server.ask(background=True)
    assert "this key has 1 readings" in asyncio.run(ask(server.key)).content[0].text
    server.client.responses.cancel(held.id)


def test_what_shall_not_be_kept_is_not(server):
    assert server.ask(store=False).output_text == "blue"
    assert list(server.ask(store=False, stream=True))[-1].type == "response.completed"
    messages = [{"role": "user", "content": f"{LINES}\n\nWhich?"}]
    assert server.client.chat.completions.create(model="tiny", messages=messages).choices[0].message.content == "blue"
    until(lambda: not server.served.readings._runs)


def test_an_answers_limit_is_that_of_its_request_only(server):
    cut = server.ask(max_output_tokens=4)
    assert server.model.limits[-1] == 4 and cut.status in ("completed", "incomplete")
    server.ask()
    assert server.model.limits[-1] == 80
