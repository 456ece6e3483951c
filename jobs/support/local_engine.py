"""A vLLM engine in this process's care, without Ray: for a person's questions."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

from pipeline.asking.config import AskConfig, engine_config
from pipeline.end_tokens import end_tokens
from pipeline.errors import RunFailed, last_line
from pipeline.rollout.episodes import Completion, Sampling

SHOWN = 4000  # last bytes of the engine's output that are shown if it cannot start


class LocalEngine:
    """Starts an engine for the first prompt: a question whose reading is kept needs none.

    Args:
        config: the configuration.
        tokenizer: the model's.
        say: called with a line before the engine starts.
    """

    def __init__(self, config: AskConfig, tokenizer, say: Callable[[str], object]):
        self._config, self._tokenizer, self._say = config, tokenizer, say
        self._starting = asyncio.Lock()
        self._engine: Any = None
        self._closing = contextlib.ExitStack()

    async def generate(self, prompt: list[int], max_tokens: int, sampling: Sampling) -> Completion:
        """Sample one response.

        Raises:
            RunFailed: the engine cannot start, has died, or took longer than ask.timeout_s.
        """
        async with self._starting:
            if self._engine is None:
                self._say(f"starting vLLM with {self._config.model.path}")
                await self._start()
        limit = self._config.ask.timeout_s
        try:
            async with asyncio.timeout(limit):
                return await self._engine.generate(prompt, max_tokens, sampling)
        except TimeoutError:
            raise RunFailed(f"no response within ask.timeout_s={limit:g}") from None
        except Exception as error:
            if self._engine.is_dead:
                raise RunFailed(f"the vLLM engine has died ({last_line(error)}); the same command resumes") from error
            raise

    async def _start(self) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is the answer's
        output = self._closing.enter_context(tempfile.TemporaryFile(prefix="asked-engine-"))
        try:
            with _without_interrupts(), _output_to(output.fileno()), warnings.catch_warnings(action="ignore"):
                from actors.generation.vllm_engine import VllmEngine, current_platform

                gpus = 0 if current_platform.is_cpu() else self._config.ask.tensor_parallel
                config = engine_config(self._config, gpus)
                # No local variable: exceptions that libraries kept while they were imported hold this frame.
                self._engine = VllmEngine(config, end_tokens(self._tokenizer), self._config.ask.seed)
            await self._engine.start()
        except Exception as error:  # vLLM raises any exception for a model that it cannot load
            self._engine = None
            output.seek(max(output.seek(0, os.SEEK_END) - SHOWN, 0))
            said = output.read().decode(errors="replace").strip()
            raise RunFailed(f"{said}\nvLLM cannot run model={self._config.model.path}: {last_line(error)}") from error

    async def close(self) -> None:
        """Shut the engine down, which would otherwise leave its process behind."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None
            gc.collect()  # at the interpreter's end, vLLM's destructor would complain
        self._closing.close()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Context manager in which SIGINT waits, and in which a process that is started never gets one.

    A terminal sends Ctrl-C to all processes in it. The engine's process would end, but is needed for the answer.
    """
    resource_tracker.ensure_running()  # when it starts, it unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _output_to(file: int) -> Iterator[None]:
    """Context manager in which stdout and stderr go to a file, for good those of processes that start in it.

    vLLM and its libraries print pages of warnings about what a CPU lacks.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    try:
        for number, _ in kept:
            os.dup2(file, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
