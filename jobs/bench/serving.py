"""A server under load, with replicas that die and clients that drop, against its engines alone.

The server is `jobs.serve` with all its parts in a Ray of its own. Many clients ask at once, over HTTP, each one
question after the other about documents that were uploaded, at temperature 0, and follow the events of their reading.
By default, there are more documents than an engine's prefix cache holds, so no reading finds its prompts computed.

The engines alone are as many processes as the server has replicas, with one engine and an equal part of the readings
and documents each. There the readings are run once by the code of `jobs.ask`, which gives the answers that the server's
are compared with. Then the engine gets the same prompts again, turn by turn, from nothing but a loop: that is the
engine's own throughput, in conversations per second, as long as all places have work.

First the server is measured undisturbed. Then, in the second phase, one replica is killed every `kill_s` seconds, and a
share of the requests is dropped by the client in the middle. Every request that is not dropped must end: with the right
answer, or with an error that says what happened. A request without any event for `hang_s` seconds hangs.

A conversation counts when its memory, or the answer, has reached the client. Readings under way when a phase ends count
with the conversations that they had. The clients share the cores with the server. The embedded model is the worst case:
its conversations take the engine two milliseconds, so the server's own work is large beside the engine's. `arguments`
names another model, as for `jobs.serve`. In bfloat16 the likeliest token may depend on what else is in the batch, so
now and then the server's answer is another.
"""

import asyncio
import contextlib
import copy
import itertools
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from jobs.bench.measuring import ONE_THREAD, SHOWN, finished, started
from jobs.bench.server_load import CUT, DROPPED, ERROR, HUNG, PARTS, RIGHT, WRONG, Load, tables
from pipeline.asking.sections import Place, PlacedText
from pipeline.asking.session import Answered, Reading
from pipeline.data.documents.synthetic import synthetic_problem
from pipeline.end_tokens import end_tokens
from pipeline.errors import ConfigError
from pipeline.rollout.episodes import Completion, Sampling
from pipeline.serving.config import ServeConfig, load_serve_config, serving_engine_config
from pipeline.serving.keys import Keys
from pipeline.text import encode_text, load_tokenizer

HOST = "127.0.0.1"
GREEDY = Sampling(0.0, 1.0, 0)
ENGINE = "ray::ServeReplica:palimpsest:engine"  # how the titles of a server's processes begin
START_S, END_S = 300.0, 120.0  # limits for the server
ANSWERS = " answers at "  # what it then prints
SAMPLE_S = 2.0  # between two looks at its memory
MIB = 2**20


@dataclass
class Settings:
    seconds: float = 600.0  # of the disturbed phase
    calm_seconds: float = 60.0  # of the undisturbed phase
    readings: int = 50  # at once
    documents: int = 200  # each with a question of its own
    sections: int = 100  # of a document
    replicas: int = 2  # engines
    kill_s: float = 60.0  # between two deaths of a replica
    drop_share: float = 0.1  # share of the requests that the client drops in the middle
    hang_s: float = 120.0  # a request without an event for so long hangs
    port: int = 18432  # of the server
    arguments: str = "preset=serve_tiny"  # of jobs.serve


@dataclass(frozen=True)
class Asked:
    """What a client asks, again and again."""

    question: str
    file: str  # its id
    right: str  # the answer


def run(settings: Settings) -> str:
    """Measure; return the tables. Raises `ConfigError` if it cannot be measured so."""
    s = settings
    counts = (s.replicas, s.calm_seconds, s.seconds, s.kill_s)
    if min(counts) <= 0 or s.sections < 2 or s.readings % s.replicas or s.documents % s.replicas:
        raise ConfigError("replicas and seconds must be above 0, sections above 1; replicas divide readings, documents")
    if s.documents < s.readings:
        raise ConfigError(f"documents={s.documents} must be at least readings={s.readings}")
    print("· the engines alone", file=sys.stderr, flush=True)
    alone = engines_alone(settings)
    with tempfile.TemporaryDirectory() as folder, server(settings, Path(folder)) as (process, key, start_s):
        phases = asyncio.run(load(settings, process, key, alone["answers"]))
        left = asyncio.run(running(settings, key))
    return tables(alone, phases, start_s, left)


# The engines alone.


def configuration(settings: Settings) -> ServeConfig:
    return load_serve_config(shlex.split(settings.arguments))


def question_of(settings: Settings, number: int) -> tuple[str, str]:
    """A question and its document, which has about as many sections as it shall have."""
    config = configuration(settings)
    problem = synthetic_problem(7, number, settings.sections)
    text = problem.document.replace(" . ", " .\n")
    tokens = len(encode_text(load_tokenizer(config.model.path), text))
    return problem.question, text * max(round(settings.sections * config.agent.chunk_tokens / tokens), 1)


def engines_alone(settings: Settings) -> dict[str, Any]:
    """The `answers` by number, and the rates of `readings` and of the `engine`, in conversations per second."""
    parts = [list(range(settings.documents))[part :: settings.replicas] for part in range(settings.replicas)]
    begun = [started(["jobs.bench", "serving", "--measure", json.dumps([asdict(settings), part])]) for part in parts]
    try:
        results = [json.loads(finished(process).splitlines()[-1]) for process in begun]
    finally:
        for process in begun:
            process.terminate()  # another one has failed
    return {
        "answers": {int(number): answer for result in results for number, answer in result["answers"].items()},
        "readings": sum(result["readings"] for result in results),
        "engine": sum(result["engine"] for result in results),
    }


def measure(given: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
    """Read and replay some of the questions in this process."""
    return asyncio.run(_measure(Settings(**given), numbers))


async def _measure(settings: Settings, numbers: list[int]) -> dict[str, Any]:
    from actors.generation.vllm_engine import VllmEngine
    from pipeline.agents import load_agent

    config = configuration(settings)
    tokenizer = load_tokenizer(config.model.path)
    engine = VllmEngine(serving_engine_config(config), end_tokens(tokenizer), seed=0)
    await engine.start()
    places = settings.readings // settings.replicas
    agents: list[Any] = [load_agent("memory")(copy.deepcopy(tokenizer), config.agent) for _ in range(places)]
    prompts: dict[int, list[tuple[list[int], int]]] = {number: [] for number in numbers}
    asked = {number: question_of(settings, number) for number in numbers}
    answers: dict[str, str] = {}
    done = 0  # conversations

    async def counted(prompt: list[int], max_tokens: int, sampling: Sampling) -> Completion:
        nonlocal done
        response = await engine.generate(prompt, max_tokens, sampling)
        done += 1
        return response

    async def read(number: int) -> None:
        async def generate(prompt: list[int], max_tokens: int, sampling: Sampling) -> Completion:
            prompts[number].append((prompt, max_tokens))
            return await counted(prompt, max_tokens, sampling)

        question, text = asked[number]
        pieces, agent = [PlacedText(text, Place("", None, 1))], agents.pop()
        async for event in Reading(question, pieces, agent, generate, GREEDY).events():
            if isinstance(event, Answered):
                answers[str(number)] = event.answer
        agents.append(agent)

    async def replay(number: int) -> None:
        for prompt, max_tokens in prompts[number]:
            await counted(prompt, max_tokens, GREEDY)

    async def rate(work: Callable[[int], Awaitable[None]]) -> float:
        """Conversations per second until a place finds no more work."""
        nonlocal done
        left, done, rates, begin = iter(numbers), 0, [], time.perf_counter()

        async def place() -> None:
            for number in left:
                await work(number)
            rates.append(done / (time.perf_counter() - begin))

        await asyncio.gather(*(place() for _ in range(places)))
        return rates[0]

    try:
        return {"readings": await rate(read), "engine": await rate(replay), "answers": answers}
    finally:
        engine.shutdown()


# The server.


@contextlib.contextmanager
def server(settings: Settings, folder: Path) -> Iterator[tuple[psutil.Process, str, float]]:
    """Context manager with the server's process, a key, and the seconds until it answered."""
    key = Keys(folder).make("bench")
    command = [
        *(sys.executable, "-m", "jobs.serve", *shlex.split(settings.arguments)),
        *(f"serve.folder={folder}", f"serve.port={settings.port}"),
        *(f"serve.replicas.{end}={settings.replicas}" for end in ("max", "min")),
        *(f"serve.limits.{which}={2 * settings.readings}" for which in ("all_readings", "readings")),
        f"serve.limits.files={settings.documents}",
    ]
    print("· starting the server", file=sys.stderr, flush=True)
    begin = time.monotonic()
    with tempfile.NamedTemporaryFile() as output:  # a pipe that nobody reads would fill up
        job = subprocess.Popen(
            command, env=os.environ | ONE_THREAD | {"RAY_ADDRESS": "local"}, stdout=output, stderr=output
        )
        try:
            wait_until_it_answers(job, output.name)
            yield psutil.Process(job.pid), key, time.monotonic() - begin
        finally:
            job.terminate()
            try:
                job.wait(END_S)
            finally:
                job.kill()
        if job.returncode:
            said = Path(output.name).read_text(errors="replace")[-SHOWN:]
            raise RuntimeError(f"the server ended with status {job.returncode}:\n{said}")


def wait_until_it_answers(job: subprocess.Popen, output: str) -> None:
    """Wait until a server says so, when all its engines have started."""
    end, said = time.monotonic() + START_S, ""
    while job.poll() is None and time.monotonic() < end:
        said = Path(output).read_text(errors="replace")
        if ANSWERS in said:
            return
        time.sleep(0.5)
    raise RuntimeError(f"the server did not start:\n{said[-SHOWN:]}")


async def running(settings: Settings, key: str) -> int:
    """How many readings the server has a little after its last client went."""
    await asyncio.sleep(5)
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, trust_env=False) as client:
        said = (await client.get(f"http://{HOST}:{settings.port}/metrics")).text
    return int(float(said.partition("\npalimpsest_readings_running ")[2].split()[0]))


# The load.


async def load(settings: Settings, process: psutil.Process, key: str, answers: dict[int, str]) -> list[Load]:
    """The undisturbed and the disturbed phase."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(
        base_url=f"http://{HOST}:{settings.port}",
        headers={"Authorization": f"Bearer {key}"},
        timeout=settings.hang_s,
        limits=limits,
        trust_env=False,
    ) as client:
        asked, phases = [], []
        for number in range(settings.documents):
            question, text = question_of(settings, number)
            asked.append(Asked(question, await upload(client, text), answers[number]))
        for is_calm in (True, False):
            print(f"· {'undisturbed' if is_calm else 'disturbed'}", file=sys.stderr, flush=True)
            seconds = settings.calm_seconds if is_calm else settings.seconds
            phases.append(await phase(settings, client, process, asked, seconds, is_calm))
        return phases


async def upload(client: httpx.AsyncClient, text: str) -> str:
    given = await client.post("/v1/files", data={"purpose": "user_data"}, files={"file": ("facts.txt", text.encode())})
    given.raise_for_status()
    return given.json()["id"]


async def phase(
    settings: Settings,
    client: httpx.AsyncClient,
    process: psutil.Process,
    asked: list[Asked],
    seconds: float,
    is_calm: bool,
) -> Load:
    """Ask for so long; then let what is under way end, which counts as an end but not as throughput."""
    seen = Load(memory={part: [] for part in PARTS.values()})
    end = time.monotonic() + seconds
    begin = time.monotonic()

    async def ask_on(number: int) -> None:
        chance = random.Random(number)
        for one in itertools.cycle(asked[number :: settings.readings]):
            if time.monotonic() > end:
                return
            drops = not is_calm and chance.random() < settings.drop_share
            stop = chance.randrange(1, settings.sections) if drops else None
            await ask(settings, client, one, seen, end, stop)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch(process, seen, end))
        if not is_calm:
            tasks.create_task(kill(settings, process, seen, end))
        for number in range(settings.readings):
            tasks.create_task(ask_on(number))
    seen.seconds = min(seconds, time.monotonic() - begin)
    return seen


async def ask(
    settings: Settings, client: httpx.AsyncClient, asked: Asked, seen: Load, end: float, stop: int | None
) -> None:
    """One request; `stop`: the client goes after so many memories."""
    parts = [{"type": "input_text", "text": asked.question}, {"type": "input_file", "file_id": asked.file}]
    body = {"input": [{"role": "user", "content": parts}], "stream": True, "store": False, "temperature": 0}
    begin, memories, kind = time.monotonic(), 0, ""
    try:
        async with client.stream("POST", "/v1/responses", json=body) as response:
            if response.status_code != 200:
                said = (await response.aread()).decode(errors="replace")
                is_clear = response.headers["content-type"].startswith("application/json")
                seen.ends[ERROR if is_clear else CUT] += 1
                seen.errors[f"{response.status_code}: {said[:300]}"] += 1
                await asyncio.sleep(1)
                return
            async with asyncio.timeout(settings.hang_s) as limit:
                async for line in response.aiter_lines():
                    if line.startswith("event: "):
                        kind = line.removeprefix("event: ")
                        limit.reschedule(asyncio.get_running_loop().time() + settings.hang_s)
                        if kind == "response.reasoning_summary_text.delta":
                            memories += 1
                            if memories == 1:
                                seen.first.append(time.monotonic() - begin)
                            if time.monotonic() < end:
                                seen.conversations += 1
                            if memories == stop:
                                seen.ends[DROPPED] += 1
                                return
                    elif line.startswith("data: ") and kind in ("response.completed", "response.incomplete"):
                        answer = json.loads(line.removeprefix("data: "))["response"]["palimpsest"]["answer"]
                        seen.ends[RIGHT if answer == asked.right else WRONG] += 1
                        seen.answer.append(time.monotonic() - begin)
                        seen.conversations += time.monotonic() < end
                        return
                    elif line.startswith("data: ") and kind in ("response.failed", "error"):
                        event = json.loads(line.removeprefix("data: "))
                        said = event.get("message") or event["response"]["error"]["message"]
                        seen.ends[ERROR] += 1
                        seen.errors[said] += 1
                        return
        seen.ends[CUT] += 1
    except (TimeoutError, httpx.TimeoutException):
        seen.ends[HUNG] += 1
    except httpx.HTTPError as error:
        seen.ends[CUT] += 1
        seen.errors[type(error).__name__] += 1
        await asyncio.sleep(1)


async def kill(settings: Settings, process: psutil.Process, seen: Load, end: float) -> None:
    """Kill a replica now and then: half a turn after the beginning, so that even a short phase has one."""
    due = time.monotonic() + settings.kill_s / 2
    while due < end:
        await asyncio.sleep(due - time.monotonic())
        due += settings.kill_s
        if replicas := [one for title, one in titles(process) if title.startswith(ENGINE)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                random.choice(replicas).kill()
                seen.deaths += 1


async def watch(process: psutil.Process, seen: Load, end: float) -> None:
    """Note the memory of the parts that have to stay."""
    while time.monotonic() < end:
        for title, one in titles(process):
            for begin, part in PARTS.items():
                if title.startswith(begin):
                    seen.memory[part].append(one.memory_info().rss / MIB)
        await asyncio.sleep(SAMPLE_S)


def titles(process: psutil.Process) -> list[tuple[str, psutil.Process]]:
    """The title of each process of a server."""
    found = []
    for one in process.children(recursive=True):
        try:
            found.append((" ".join(one.cmdline()), one))
        except psutil.Error:  # it has ended
            continue
    return found
