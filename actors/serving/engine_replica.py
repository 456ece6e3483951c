"""Replicas of the engine, as a deployment of Ray Serve, and the function that asks them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

from pipeline.end_tokens import end_tokens
from pipeline.errors import RunFailed
from pipeline.rollout.episodes import Completion, Sampling
from pipeline.sections import GenerationConfig
from pipeline.serving.config import ServeConfig, serving_engine_config
from pipeline.text import load_tokenizer

AGAIN_S = 1.0  # before a conversation is tried on another replica
ATTEMPTS = 2  # to start a replica, before the server says that it cannot
HEALTH_S = 10.0
SHUTDOWN_S = 20.0  # for open conversations; what is left is asked again on another replica


class EngineDied(RuntimeError):
    """The replica's engine has died; Ray Serve starts another replica."""


class EngineReplica:
    """One vLLM engine.

    Args:
        config: the engine's configuration.
        seed: vLLM's seed.
    """

    async def __init__(self, config: GenerationConfig, seed: int):  # type: ignore[misc] # Ray Serve awaits it
        # Imported here, so that processes that only hold a handle do not spend seconds on importing vLLM.
        from actors.generation.vllm_engine import VllmEngine

        tokenizer = load_tokenizer(config.model.path, config.model.trust_remote_code)
        self._engine = VllmEngine(config, end_tokens(tokenizer), seed)
        await self._engine.start()
        self._running = 0

    async def generate(self, prompt: list[int], max_tokens: int, sampling: Sampling) -> Completion:
        """Sample one response. A cancelled call frees its place in the engine.

        Raises:
            EngineDied: the engine is dead.
            Exception: an error of vLLM.
        """
        self._running += 1
        try:
            return await self._engine.generate(prompt, max_tokens, sampling)
        except Exception as error:
            if self._engine.is_dead:
                raise EngineDied(type(error).__name__) from None
            raise
        finally:
            self._running -= 1

    async def running(self) -> int:
        """How many responses are being sampled."""
        return self._running

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises or does not return in time."""
        if self._engine.is_dead:
            raise EngineDied("the engine has died")
        await self._engine.heartbeat()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.shutdown()


def engine_application(config: ServeConfig) -> serve.Application:
    """The deployment of the engine's replicas, to be bound to the frontend."""
    r = config.serve.replicas
    options = {"num_cpus": r.num_cpus, "num_gpus": r.num_gpus}
    deployment = serve.deployment(
        EngineReplica,
        name="engine",
        max_ongoing_requests=r.max_sequences,
        autoscaling_config={
            "min_replicas": r.min,
            "max_replicas": r.max,
            "target_ongoing_requests": r.conversations,
        },
        max_constructor_retry_count=ATTEMPTS,
        health_check_period_s=HEALTH_S,
        health_check_timeout_s=3 * HEALTH_S,
        graceful_shutdown_timeout_s=SHUTDOWN_S,
        ray_actor_options=options,
    )
    return deployment.bind(serving_engine_config(config), config.serve.seed)


def generate_with(handle: Any, timeout_s: float) -> Callable[[list[int], int, Sampling], Awaitable[Completion]]:
    """A function that samples a response on some replica, and on another one if that replica dies.

    Args:
        handle: of the replicas.
        timeout_s: limit of a response, with the time that it waits for a replica.
    """

    ask = handle.generate  # a handle of its own, which is made once

    async def generate(prompt: list[int], max_tokens: int, sampling: Sampling) -> Completion:
        end = time.monotonic() + timeout_s
        while True:
            response = ask.remote(prompt, max_tokens, sampling)
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + end - time.monotonic()):
                    return await response
            except TimeoutError:
                response.cancel()
                raise RunFailed(
                    f"no response within serve.replicas.timeout_s={timeout_s:g}: no engine is there, or all are busy"
                ) from None
            except asyncio.CancelledError:
                response.cancel()
                raise
            except (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError, EngineDied, TaskCancelledError):
                if time.monotonic() + AGAIN_S > end:
                    raise RunFailed("the engines have died; try again later") from None
                await asyncio.sleep(AGAIN_S)
            except ray.exceptions.RayTaskError as error:
                raise RunFailed(f"vLLM refused a conversation: {type(error.cause).__name__}") from error

    return generate
