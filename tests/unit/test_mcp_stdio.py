"""MCP over stdio: a client starts the server as a process; the model is scripted."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters, stdio_client
from mcp_types import ListRootsResult, Root

from jobs.support.mcp_stdio import allowed_path, local_roots, main, make_server
from pipeline.asking.config import load_ask_config
from pipeline.errors import DataError
from tests.support.document_files import pdf
from tests.support.mcp_scripted import scripted_model

TEXT = "".join(f"{line:<59}\n" for line in ["The door is red.", "Fog fell.", "The cat is blue."])
MODEL = "model.path=/a/model"
COMMAND = [sys.executable, "-m", "tests.support.mcp_scripted", MODEL]


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "novel.txt").write_text(TEXT)
    (folder / "report.pdf").write_bytes(pdf([["The door is red."], ["The cat is blue."]]))
    (tmp_path / "secret.txt").write_text("The key is gold.")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def naming(roots: list[str] | None):
    """What a client answers to roots/list; None: it has no roots."""

    async def list_roots(context):
        return ListRootsResult(roots=[Root(uri=uri) for uri in roots])

    return None if roots is None else list_roots


@asynccontextmanager
async def started_by_client(mode: str, roots: list[str], log: Path):
    """A client of a server in a process of its own."""
    with log.open("w") as errors:
        parameters = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=environment(), cwd=os.getcwd())
        transport = stdio_client(parameters, errlog=errors)
        async with Client(transport, mode=mode, list_roots_callback=naming(roots)) as client:
            yield client


async def call(client: Client, **arguments: str):
    """The result of a call of the tool, and what it reported meanwhile."""
    reports = []

    async def report(progress, total, message):
        reports.append((progress, total, message))

    given = {"question": "Which?"} | arguments
    return await client.call_tool("ask_document", given, progress_callback=report), reports


def called(*calls: dict, roots: list[str] | None = None, mode="auto", folders=()):
    """The results of calls of a server in this process. `folders`: those of --root."""
    server = make_server(scripted_model(load_ask_config([MODEL])), list(folders))

    async def call_all():
        async with Client(server, mode=mode, list_roots_callback=naming(roots)) as client:
            return [await call(client, **arguments) for arguments in calls]

    return asyncio.run(call_all())


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_a_document_in_a_root_is_answered_with_progress(tmp_path, folder, mode):
    async def ask():
        async with started_by_client(mode, [folder.as_uri()], tmp_path / "log") as client:
            return await call(client, path=str(folder / "novel.txt"))

    result, reports = asyncio.run(ask())
    assert not result.is_error
    assert result.structured_content == {
        "answer": "blue",
        "is_whole": True,
        "sections": 3,
        "sources": [
            {"file": str(folder / "novel.txt"), "page": None, "line": 3, "passage": "The cat is blue."},
        ],
    }
    assert json.loads(result.content[0].text) == result.structured_content
    assert reports == [(1, 3, "The door is red."), (2, 3, "nothing added"), (3, 3, "The cat is blue.")]


def test_pdf_folders_relative_paths_and_the_same_question_again(folder):
    calls = [{"path": "report.pdf"}, {"path": str(folder)}, {"path": "novel.txt"}, {"path": "novel.txt"}]
    (one, _), (two, _), (three, read), (again, kept) = called(*calls, folders=[folder])
    assert one.structured_content["sources"][0]["page"] == 2
    assert two.structured_content["answer"] == "blue"
    assert three.structured_content == again.structured_content
    assert len(read) == 3 and kept == []


OUTSIDE = ["../secret.txt", "link.txt", "/etc/passwd", "missing.txt", "a\0b", "", "/proc/self/environ", "~/x"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_what_is_outside_the_roots_is_refused(folder, path):
    if not path:
        folder = folder / "none"  # an empty path is the root itself, which is not there
    with pytest.raises(DataError, match="no file in the folders"):
        allowed_path(path, [folder])


def test_paths_are_checked_in_the_server(folder):
    calls = [{"path": "../secret.txt"}, {"path": str(folder / "link.txt")}, {"path": "/etc/passwd"}, {"path": "no.txt"}]
    for result, reports in called(*calls, roots=[folder.as_uri()]):
        assert result.is_error and "is no file in the folders that may be read" in result.content[0].text
        assert not reports


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("roots", [None, [], ["file://another-host/"]])
def test_without_roots_no_path_is_read(folder, roots, mode):
    [(result, _)] = called({"path": str(folder / "novel.txt")}, roots=roots, mode=mode)
    assert result.is_error
    assert "start the server with --root DIR" in result.content[0].text


def test_a_client_without_roots_reads_in_the_folders_of_the_command(folder):
    [(result, _)] = called({"path": str(folder / "novel.txt")}, folders=[folder])
    assert result.structured_content["answer"] == "blue"


def test_roots_are_file_uris():
    assert local_roots(["file:///a%20b/c", "file://localhost/d", "file://host/e", "http://x/f", "file://[", "x"]) == [
        Path("/a b/c"),
        Path("/d"),
    ]


def test_a_root_that_is_a_link_is_followed(tmp_path, folder):
    (tmp_path / "way").symlink_to(folder)
    assert allowed_path("novel.txt", [tmp_path / "way"]) == (folder / "novel.txt").resolve()


def test_a_file_that_cannot_be_read_is_an_error_of_the_tool(folder):
    (folder / "empty.txt").write_text("")
    calls = [{"path": "empty.txt"}, {"path": "novel.txt", "question": "x" * 1000}, {"path": "novel.txt"}]
    (empty, _), (long, _), (fine, _) = called(*calls, roots=[folder.as_uri()])
    assert empty.is_error and "it is empty" in empty.content[0].text
    assert long.is_error and "question" in long.content[0].text
    assert not fine.is_error


@pytest.mark.parametrize("is_early", [False, True])
@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_a_cancelled_call_ends_its_reading_and_the_next_one_is_answered(tmp_path, folder, mode, is_early):
    """`is_early`: cancelled at the first report, wherever the reading is then; else while the model generates."""
    (folder / "long.txt").write_text(TEXT + "HANG")
    log = tmp_path / "log"

    async def said(line: str):
        while line not in log.read_text():
            await asyncio.sleep(0.01)

    async def cancel():
        async with started_by_client(mode, [folder.as_uri()], log) as client:
            reported = asyncio.Event()

            async def report(*_):
                reported.set()

            arguments = {"path": "long.txt", "question": "Which?"}
            calling = asyncio.create_task(client.call_tool("ask_document", arguments, progress_callback=report))
            await (reported.wait() if is_early else said("reading hangs"))
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            if not is_early:
                await said("reading ended")
            # One question at a time: the next one is answered if this reading has ended.
            return await client.call_tool("ask_document", {"path": "novel.txt", "question": "Which?"})

    result = asyncio.run(asyncio.wait_for(cancel(), 240))
    assert result.structured_content["answer"] == "blue"
    assert "model closed" in log.read_text()


INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}},
}


def started(*arguments: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    process.stdin.write(json.dumps(INITIALIZE).encode() + b"\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["result"]["serverInfo"]["name"] == "palimpsest"
    return process


def test_nothing_but_mcp_is_on_stdout(folder):
    process = started("--root", str(folder))
    call = {"name": "ask_document", "arguments": {"path": "novel.txt", "question": "Which?"}}
    process.stdin.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\nnonsense\n')
    process.stdin.write(
        json.dumps({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}).encode() + b"\n"
    )
    process.stdin.flush()
    while (message := json.loads(process.stdout.readline())).get("id") != 2:
        assert message["jsonrpc"] == "2.0"
    out, err = process.communicate(timeout=60)
    assert out == b"" and process.returncode == 0
    assert b"noise on stdout" in err and err.endswith(b"model closed\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_its_model(number):
    process = started()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)  # while stdin is open
    assert process.returncode == 0
    assert err.endswith(b"model closed\n")


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--root"], "--root needs a folder"),
        (["--root", "/no/folder"], "there is no such folder"),
        (["What?", "--root", "/"], "takes no 'What?'"),
        (["--json"], "takes no --json"),
        (["--colour"], "unknown option --colour"),
        (["ask.keeep=1"], "keeep"),
    ],
)
def test_wrong_arguments(capsys, arguments, reason):
    assert main([MODEL, *arguments]) == 2
    printed = capsys.readouterr()
    assert reason in printed.err and not printed.out
