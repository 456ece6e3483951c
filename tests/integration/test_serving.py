"""`python -m jobs.serve` with the embedded model: Ray Serve, a real engine, OpenAI's client."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from ray.serve import get_deployment_handle

from pipeline.data.documents.synthetic import synthetic_problem
from tests.support.faults import until

ROOT = Path(__file__).parents[2]
ENGINE = "ServeReplica:palimpsest:engine"


class Server:
    """A server that is started, and what it has printed."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs.serve", "preset=serve_tiny", f"serve.port={port}"],
            cwd=ROOT,
            env=os.environ | environment | {"XDG_STATE_HOME": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.folder, self.lines = folder, list[str]()
        threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True).start()
        self.address = f"http://127.0.0.1:{port}"

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str) -> re.Match:
        until(lambda: re.search(pattern, self.output) or self.process.poll() is not None)
        found = re.search(pattern, self.output)
        assert found, self.output
        return found


@pytest.fixture(scope="module")
def server(shared_ray, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("state"), shared_ray)
    yield server
    if server.process.poll() is None:
        server.process.kill()


@pytest.fixture(scope="module")
def key(server) -> str:
    return server.wait_for(r"· key (pal-\S+) \(shown now and never again\)")[1]


@pytest.fixture
def client(server, key):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0, timeout=300) as client:
        yield client


def ask(client, sections: int, **more):
    """Ask about a document of the embedded model's language, by the likeliest tokens."""
    problem = synthetic_problem(5, 1, sections)
    file = client.files.create(file=("facts.txt", problem.document.encode()), purpose="user_data")
    parts = [{"type": "input_file", "file_id": file.id}, {"type": "input_text", "text": problem.question}]
    return client.responses.create(model="tiny", input=[{"role": "user", "content": parts}], temperature=0, **more)


def engine() -> psutil.Process:
    """The replica of the engine that was started last."""
    found = [p for p in psutil.Process().children(recursive=True) if ENGINE in " ".join(p.cmdline())]
    return max(found, key=lambda process: process.create_time())


def running(server, key: str) -> str:
    metrics = httpx.get(f"{server.address}/metrics", headers={"Authorization": f"Bearer {key}"}).text
    return re.search(r"^palimpsest_readings_running (\S+)", metrics, re.MULTILINE)[1]


def test_a_question_is_answered_by_the_engine(client):
    response = ask(client, 4)
    assert response.status == "completed" and response.palimpsest["sections"] == 4
    again = ask(client, 4)
    assert again.palimpsest["memory"] == response.palimpsest["memory"] and again.output_text == response.output_text
    assert response.usage.input_tokens > 4 * 18 and response.usage.output_tokens > 4


def test_a_reading_outlives_the_engine(client):
    stream = ask(client, 60, stream=True)
    read = 0
    for event in stream:
        read += event.type == "response.output_item.done" and event.item.type == "reasoning"
        if read == 5:
            read += 1
            engine().kill()
    assert event.type == "response.completed", event
    details = event.response.palimpsest
    assert details["is_whole"] and details["sections"] == 60


@pytest.fixture
def engines(server, ray_session):
    """The handle of the replicas."""
    handle = get_deployment_handle("engine", app_name="palimpsest")
    yield handle
    handle.shutdown()  # else its thread would start another Ray in this process once this one has ended


def test_a_client_that_goes_frees_its_place(server, key, client, engines):
    stream = ask(client, 2000, stream=True)
    assert next(iter(stream)).type == "response.created" and running(server, key) == "1.0"
    until(lambda: engines.running.remote().result() == 1)
    stream.close()
    until(lambda: running(server, key) == "0.0" and engines.running.remote().result() == 0)


def test_a_reading_in_the_background_goes_on_without_its_client(client):
    stream = ask(client, 200, stream=True, background=True)
    id = next(iter(stream)).response.id
    stream.close()
    until(lambda: client.responses.retrieve(id).status != "in_progress")
    assert client.responses.retrieve(id).palimpsest["sections"] == 200


def test_a_second_server_is_refused(server, key, shared_ray, tmp_path):
    second = Server(tmp_path, shared_ray)
    assert second.process.wait(120) == 2
    until(lambda: "Ray Serve runs on this cluster already" in second.output)
    assert httpx.get(f"{server.address}/health").status_code == 200


def test_a_signal_ends_it_and_no_file_holds_the_key(server, key):
    replica = engine()
    server.process.send_signal(signal.SIGTERM)  # as Ctrl-C, but Ray has a handler of its own
    assert server.process.wait(120) == 0, server.output
    assert "· ending" in server.output and "Traceback" not in server.output
    until(lambda: not replica.is_running() or replica.status() == psutil.STATUS_ZOMBIE)
    files = [path for path in (server.folder / "palimpsest").rglob("*") if path.is_file()]
    assert files and not any(key.encode() in path.read_bytes() for path in files)
