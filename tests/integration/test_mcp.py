"""MCP over stdio with the embedded model and a real engine, in a process that a client starts and ends."""

import asyncio
import os
import sys
from pathlib import Path

import psutil
from mcp import Client, StdioServerParameters, stdio_client

from pipeline.data.documents.synthetic import synthetic_problem

ROOT = Path(__file__).parents[2]
SECTIONS = 12


def test_a_client_asks_a_document_and_leaves_no_process(tmp_path):
    problem = synthetic_problem(5, 1, SECTIONS)
    (tmp_path / "facts.txt").write_text(problem.document.replace(" . ", " .\n"))
    arguments = ["-m", "jobs.support.mcp_stdio", "preset=ask_tiny", "ask.temperature=0", "--root", str(tmp_path)]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    parameters = StdioServerParameters(command=sys.executable, args=arguments, env=environment, cwd=ROOT)
    reports, started = [], []

    async def report(progress, total, message):
        reports.append(progress)
        (server,) = (p for p in psutil.Process().children() if "jobs.support.mcp_stdio" in p.cmdline())
        started[:] = [server, *server.children(recursive=True)]

    async def ask():
        async with Client(stdio_client(parameters), read_timeout_seconds=300) as client:
            given = {"path": "facts.txt", "question": problem.question}
            return await client.call_tool("ask_document", given, progress_callback=report)

    result = asyncio.run(ask())
    assert not result.is_error, result.content
    assert result.structured_content["is_whole"] and result.structured_content["sections"] == SECTIONS
    assert result.structured_content["answer"]
    assert reports == list(range(1, SECTIONS + 1))
    assert len(started) > 1  # the server and its engine
    assert not psutil.wait_procs(started, timeout=120)[1]
