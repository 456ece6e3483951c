"""Cost against document length: a generator of the embedded model reads documents one after the other.

    python -m jobs.bench.length tokens=[8192,65536,1048576] chunk_tokens=180

Prints for each length the time per token, its ratio to that at 64K, and the peak memory of the generator's processes.
MemAgent promises that neither grows with the length. The lengths are read once in ascending and once in descending
order, so that a machine that slows down over time favours none; times are means of both.
"""

import asyncio
import contextlib
import sys
import time
from dataclasses import dataclass, field, replace
from statistics import fmean

import psutil

from actors.generation.generator_pool import GeneratorPool
from jobs.support.driver import asks_for_help, show_help
from jobs.support.ray_token import private_folder, require_token
from pipeline.config import load_config
from pipeline.data.documents.synthetic import CHUNK_TOKENS, synthetic_problem
from pipeline.errors import ConfigError
from pipeline.rollout.episodes import Sampling
from pipeline.run.config import load_training_config

SAMPLE_S = 0.2
BASE = 65536  # tokens: the length to which the times are compared
MOST_CHUNK_TOKENS = 210  # fits the model's 256 positions beside question, memory and new memory


@dataclass
class Settings:
    tokens: list[int] = field(default_factory=lambda: [8192, 65536, 1048576])  # document lengths
    chunk_tokens: int = 180  # ten times the embedded model's training chunks: only time is measured, not answers


def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        return show_help(__doc__, Settings)
    try:
        settings = load_config(arguments, Settings)
        check(settings)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    import ray

    require_token()
    ray.init(address="local", _temp_dir=str(private_folder() / "ray"), log_to_driver=False, logging_level="ERROR")
    print(f"{'tokens':>10} {'conversations':>13} {'seconds':>8} {'µs/token':>9} {'ratio':>6} {'peak MiB':>9}")
    measured = asyncio.run(measure(settings))
    base = min(measured, key=lambda tokens: abs(tokens - BASE))
    for tokens, runs in measured.items():
        seconds = fmean(seconds for seconds, _, _ in runs)
        ratio = seconds / tokens / fmean(s / base for s, _, _ in measured[base])
        peak = max(peak for _, _, peak in runs) / 2**20
        print(f"{tokens:10,} {runs[0][1]:13,} {seconds:8.1f} {seconds / tokens * 1e6:9.1f} {ratio:6.2f} {peak:9.0f}")
    ray.shutdown()
    return 0


def check(settings: Settings) -> None:
    """Raise `ConfigError` if a document or chunk length is out of range."""
    if not settings.tokens or min(settings.tokens) < 2 * CHUNK_TOKENS:
        raise ConfigError(f"tokens={settings.tokens} must be lengths of {2 * CHUNK_TOKENS} or more")
    if not 1 <= settings.chunk_tokens <= MOST_CHUNK_TOKENS:
        raise ConfigError(f"chunk_tokens={settings.chunk_tokens} must lie between 1 and {MOST_CHUNK_TOKENS}")


async def measure(settings: Settings) -> dict[int, list[tuple[float, int, int]]]:
    """Measure all lengths twice.

    Returns:
        By document length in tokens: for each of the two runs (seconds, conversations, peak memory in bytes).
    """
    config = load_training_config(["preset=tiny"])
    config = replace(config, agent=replace(config.agent, window=256, chunk_tokens=settings.chunk_tokens))
    pool = GeneratorPool(config, print)
    running = asyncio.ensure_future(pool.run())
    await pool.ready()
    await run(pool, BASE // 8)  # warm-up, not counted
    measured: dict[int, list[tuple[float, int, int]]] = {}
    for length in [*settings.tokens, *reversed(settings.tokens)]:
        tokens, seconds, conversations, peak = await run(pool, length)
        measured.setdefault(tokens, []).append((seconds, conversations, peak))
    running.cancel()
    await pool.close()
    return measured


async def run(pool: GeneratorPool, length: int) -> tuple[int, float, int, int]:
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
