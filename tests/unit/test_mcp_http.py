"""MCP over HTTP: files of the key, progress, cancelling, sessions of other keys. The model is scripted."""

import asyncio
import threading
from contextlib import asynccontextmanager

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from actors.serving.mcp_http import add_routes
from pipeline.asking.documents import SourceFile, read_files
from pipeline.asking.parsing import ParseLimits
from pipeline.asking.session import Reading
from pipeline.errors import QuestionTooLong
from pipeline.rollout.episodes import Sampling
from pipeline.serving.config import LimitSection
from pipeline.serving.errors import RequestError
from pipeline.serving.files import FileStore
from tests.support.asking import ScriptedModel, reader
from tests.support.served_files import keyed_app, running

TEXT = "".join(f"{line:<59}\n" for line in ["The door is red.", "Fog fell.", "The cat is blue."])
MODES = pytest.mark.parametrize("mode", ["legacy", "auto"])


class Served:
    """A server with one file of Anna's, and what happened to readings."""

    def __init__(self, folder):
        self.store = FileStore(folder, LimitSection())
        self.hangs, self.ended = threading.Event(), threading.Event()
        self.asked = []

    async def ask(self, owner, question, files):
        self.asked.append((owner, question, [file.name for file in files]))
        if question == "Busy?":
            raise RequestError(429, "16 readings of this key are going on", retry_after=5)
        if question == "Bug?":
            raise KeyError("a secret")
        if question == "Long?":
            raise QuestionTooLong("the question has 1,000 tokens")
        agent = reader()
        model = ScriptedModel(agent.tokenizer)

        async def generate(prompt, max_tokens, sampling):
            if question == "Hang?" and model.asked:
                self.hangs.set()
                try:
                    await asyncio.sleep(600)
                finally:
                    self.ended.set()
            return await model.generate(prompt, max_tokens, sampling)

        pieces = read_files([SourceFile(file.path, file.name) for file in files], ParseLimits())
        async for event in Reading(question, pieces, agent, generate, Sampling(0.0, 1.0), document_bytes=180).events():
            yield event


async def chunks():
    yield TEXT.encode()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    served = Served(tmp_path_factory.mktemp("store"))
    served.file = asyncio.run(served.store.add("Anna", "novel.txt", chunks()))
    app = keyed_app()
    add_routes(app, served.store, served.ask)
    with running(app) as url:
        served.url = f"{url}/mcp"
        yield served


@asynccontextmanager
async def connected(served, key="Anna", mode="auto", **headers):
    headers = {"Authorization": f"Bearer {key}", **headers}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        async with Client(streamable_http_client(served.url, http_client=http), mode=mode) as client:
            yield client


def call(served, file_id=None, question="Which?", **given):
    async def call_():
        reports = []

        async def report(*report):
            reports.append(report)

        async with connected(served, **given) as client:
            arguments = {"file_id": file_id or served.file.id, "question": question}
            return await client.call_tool("ask_document", arguments, progress_callback=report), reports

    return asyncio.run(call_())


@MODES
def test_a_file_is_answered_with_progress(served, mode):
    result, reports = call(served, mode=mode)
    assert result.structured_content == {
        "answer": "blue",
        "is_whole": True,
        "sections": 3,
        "sources": [{"file": "novel.txt", "page": None, "line": 3, "passage": "The cat is blue."}],
    }
    assert reports == [(1, 3, "The door is red."), (2, 3, "nothing added"), (3, 3, "The cat is blue.")]
    assert served.asked[-1] == ("Anna", "Which?", ["novel.txt"])


@MODES
def test_the_tool_takes_a_file_id_and_no_path(served, mode):
    async def list_tools():
        async with connected(served, mode=mode) as client:
            return (await client.list_tools()).tools

    [tool] = asyncio.run(list_tools())
    assert set(tool.input_schema["properties"]) == {"file_id", "question"}
    assert set(tool.output_schema["properties"]) == {"answer", "is_whole", "sections", "sources"}


@MODES
def test_files_of_another_key_are_not_there(served, mode):
    before = len(served.asked)
    for key, file_id in (("Ben", served.file.id), ("Anna", "../../etc/passwd"), ("Anna", "file-" + "0" * 24)):
        result, _ = call(served, key=key, file_id=file_id, mode=mode)
        assert result.is_error and "there is no file" in result.content[0].text
    assert len(served.asked) == before


@pytest.mark.parametrize(
    "question, reason", [("Busy?", "16 readings"), ("Long?", "1,000 tokens"), ("Bug?", "Error executing tool")]
)  # fmt: skip
def test_an_error_is_the_tools_and_holds_no_secrets(served, question, reason):
    result, _ = call(served, question=question)
    assert result.is_error and reason in result.content[0].text
    assert "secret" not in result.content[0].text


@MODES
def test_a_cancelled_call_ends_its_reading(served, mode):
    served.hangs.clear(), served.ended.clear()

    async def cancel():
        async with connected(served, mode=mode) as client:
            arguments = {"file_id": served.file.id, "question": "Hang?"}
            calling = asyncio.create_task(client.call_tool("ask_document", arguments))
            assert await asyncio.to_thread(served.hangs.wait, 30)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            assert await asyncio.to_thread(served.ended.wait, 30)

    asyncio.run(cancel())


INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}},
}
ACCEPT = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}


def test_a_session_belongs_to_its_key(served):
    with httpx2.Client(headers=ACCEPT) as client:
        anna, ben = {"Authorization": "Bearer Anna"}, {"Authorization": "Bearer Ben"}
        reply = client.post(served.url, json=INITIALIZE, headers=anna)
        session = {"Mcp-Session-Id": reply.headers["mcp-session-id"]}
        tools = {"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {}}
        assert client.post(served.url, json=tools, headers=anna | session).status_code == 200
        assert client.post(served.url, json=tools, headers=ben | session).status_code == 404
        assert client.get(served.url, headers=ben | session).status_code == 404
        assert client.delete(served.url, headers=ben | session).status_code == 404
        assert client.post(served.url, json=tools, headers=anna | session).status_code == 200


def test_a_body_that_is_too_large_is_refused(served):
    reply = httpx2.post(served.url, content=b"a" * (5 << 20), headers=ACCEPT | {"Authorization": "Bearer Anna"})
    assert reply.status_code == 413
