"""Cost against document length: a generator of the embedded model reads documents one after the other.

The table has for each length the time per token, its ratio to that of the length nearest to 64K, and the peak memory
of the generator's processes. MemAgent promises that neither grows with the length. The lengths are read in ascending
and in descending order, so that a machine that slows down over time favours none. All memories have the same length,
because the model is a copy whose end token is one that it does not write.
"""

import asyncio
import contextlib
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import ray

from actors.generation.generator_pool import GeneratorPool
from jobs.bench.endless_model import write_endless_model
from jobs.bench.measuring import spread, table
from jobs.support.driver import stop_ray
from jobs.support.ray_token import private_folder, require_token
from pipeline.data.documents.synthetic import CHUNK_TOKENS, synthetic_problem
from pipeline.errors import ConfigError
from pipeline.rollout.episodes import Sampling
from pipeline.run.config import load_training_config

SAMPLE_S = 0.2
BASE = 65536  # tokens: the length to which others are compared
MOST_CHUNK_TOKENS = 210  # fits the model's 256 positions beside question, memory and new memory


@dataclass
class Settings:
    tokens: list[int] = field(default_factory=lambda: [8192, 65536, 1048576])  # document lengths
    chunk_tokens: int = 180  # ten times the embedded model's training chunks: only time is measured, not answers


def run(settings: Settings) -> str:
    """Read documents of all lengths; return the table. Raises `ConfigError` if a length is out of range."""
    check(settings)
    require_token()
    ray.init(address="local", _temp_dir=str(private_folder() / "ray"), log_to_driver=False, logging_level="ERROR")
    try:
        with tempfile.TemporaryDirectory() as model:
            write_endless_model(load_training_config(["preset=tiny"]).model.path, Path(model))
            return tables(asyncio.run(measured(settings, model)))
    finally:
        stop_ray()


def tables(reads: dict[int, list[tuple[float, int, int]]]) -> str:
    """The table of all lengths (`measured`)."""
    rates = {tokens: [1e6 * seconds / tokens for seconds, _, _ in of] for tokens, of in reads.items()}
    base = rates[min(reads, key=lambda tokens: abs(tokens - BASE))]
    rows = [
        (
            f"{tokens:,}",
            f"{of[0][1]:,}",
            spread([seconds for seconds, _, _ in of], ".1f"),
            spread(rates[tokens], ".1f"),
            spread([x / y for x, y in zip(rates[tokens], base, strict=True)]),
            f"{max(peak for _, _, peak in of) / 2**20:.0f}",
        )
        for tokens, of in reads.items()
    ]
    return table(("tokens", "conversations", "seconds", "µs per token", "ratio", "peak MiB"), rows)


def check(settings: Settings) -> None:
    """Raise `ConfigError` if a document or chunk length is out of range."""
    if not settings.tokens or min(settings.tokens) < 2 * CHUNK_TOKENS:
        raise ConfigError(f"tokens={settings.tokens} must be lengths of {2 * CHUNK_TOKENS} or more")
    if not 1 <= settings.chunk_tokens <= MOST_CHUNK_TOKENS:
        raise ConfigError(f"chunk_tokens={settings.chunk_tokens} must lie between 1 and {MOST_CHUNK_TOKENS}")


async def measured(settings: Settings, model: str) -> dict[int, list[tuple[float, int, int]]]:
    """Measure all lengths twice, with the model in this folder.

    Returns:
        By document length in tokens: for each of the two runs (seconds, conversations, peak memory in bytes).
    """
    config = load_training_config(["preset=tiny", f"model.path={model}"])
    config = replace(config, agent=replace(config.agent, window=256, chunk_tokens=settings.chunk_tokens))
    pool = GeneratorPool(config, print)
    running = asyncio.ensure_future(pool.run())
    await pool.ready()
    await read(pool, BASE // 8)  # warm-up, not counted
    reads: dict[int, list[tuple[float, int, int]]] = {}
    for length in [*settings.tokens, *reversed(settings.tokens)]:
        tokens, seconds, conversations, peak = await read(pool, length)
        reads.setdefault(tokens, []).append((seconds, conversations, peak))
    running.cancel()
    await pool.close()
    return reads


async def read(pool: GeneratorPool, length: int) -> tuple[int, float, int, int]:
    """Read one document; return its tokens, the seconds, the conversations and the peak memory in bytes."""
    problem = synthetic_problem(0, length, chunks=length // CHUNK_TOKENS)
    peak, begin = 0, time.perf_counter()
    answering = asyncio.ensure_future(pool.answer(problem, "memory", Sampling(1.0, seed=0), 1))
    while not answering.done():
        peak = max(peak, generator_memory())
        await asyncio.wait([answering], timeout=SAMPLE_S)
    answer = answering.result()
    assert answer.document_tokens is not None  # the agent "memory" reads
    return answer.document_tokens, time.perf_counter() - begin, answer.conversations, peak


def generator_memory() -> int:
    """Resident memory in bytes of the generator's process and its engine's, in this benchmark's own Ray."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # the process has ended
            if process.name().startswith("ray::Generator"):
                total += sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
    return total
