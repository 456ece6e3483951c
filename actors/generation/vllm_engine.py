"""The adapter for vLLM: an asynchronous engine over token ids whose weights change in flight.

Written for vLLM 0.32 (`AsyncLLM`); tests/integration/test_vllm_engine.py is the contract that an upgrade must keep.
"""

import asyncio
import contextlib
import gc
import multiprocessing.context
import os
import time
import uuid
from collections.abc import Collection, Iterator
from typing import Any, cast

from pipeline.learning.device_memory import built_architecture
from pipeline.rollout.episodes import Completion, Sampling
from pipeline.run.kv_cache import fitting_sequences
from pipeline.sections import GenerationConfig

# Read by vLLM at import.
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import ray  # noqa: E402
import torch  # noqa: E402
import vllm  # noqa: E402
import vllm.v1.engine.utils as engine_launcher  # noqa: E402
from transformers import AutoConfig  # noqa: E402
from vllm import SamplingParams, TokensPrompt  # noqa: E402
from vllm.config import WeightTransferConfig  # noqa: E402
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest  # noqa: E402
from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.logprobs import Logprob  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: E402
from vllm.v1.metrics.loggers import PrometheusStatLogger  # noqa: E402

from actors.generation.vllm_worker import BACKEND, end_with_parent  # noqa: E402


class VllmEngine:
    """An `AsyncLLM` that returns tokens with their log-probs and weight versions.

    A response ends with the first of `end_tokens` (finish reason "stop"), or at its limit ("length").

    Args:
        config: the job's configuration.
        end_tokens: ids of the tokens that end a response.
        seed: vLLM's seed.
    """

    version_of_vllm = vllm.__version__

    def __init__(self, config: GenerationConfig, end_tokens: Collection[int], seed: int):
        self.end_tokens = sorted(end_tokens)
        self.version = 0
        on_cpu = current_platform.is_cpu()
        if on_cpu and config.generator.enforce_eager:
            # enforce_eager covers the model only: a C++ compiler would compile vLLM's helpers at the first request.
            torch.compiler.set_stance("force_eager")
        with _forking() if on_cpu else contextlib.nullcontext():
            arguments = engine_args(config, seed)
            self.max_sequences = cast(int, arguments.max_num_seqs)
            self._llm = AsyncLLM.from_engine_args(arguments, stat_loggers=[NoStatistics])
        self._loading = asyncio.Lock()
        self._open = asyncio.Event()  # new requests wait while weights change, so that they get the right salt
        self._open.set()

    async def start(self) -> None:
        """Label the initial weights as version 0."""
        await self._llm.update_weight_version("0")

    async def generate(self, prompt: list[int], max_tokens: int, sampling: Sampling, priority: int = 0) -> Completion:
        """Sample one response.

        Args:
            prompt: token ids.
            max_tokens: limit of the response.
            sampling: the sampling.
            priority: of the requests that wait, those with the lowest number begin first, and in the order of their
                arrival if the numbers are equal. If the KV cache is full, the running request with the highest number
                is preempted: its blocks are freed, and it is computed again later.

        Raises:
            Exception: an error of vLLM; if `is_dead` is true, this object is unusable.
        """
        await self._open.wait()
        # Cache blocks are hashed with the salt, so a request never finds the KV cache of another version. A request in
        # flight when the weights change keeps its cache; its log-probs are those of the distribution that it really
        # sampled from.
        cache_version = self.version
        request = TokensPrompt(prompt_token_ids=prompt, cache_salt=f"v{cache_version}")
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            max_tokens=max_tokens,
            stop_token_ids=self.end_tokens,
            logprobs=0,  # of the sampled token only
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        async for output in self._llm.generate(request, parameters, uuid.uuid4().hex, priority=priority):
            result, cached_tokens = output.outputs[0], cast(int, output.num_cached_tokens)
            preemptions = cast(Any, output.metrics).num_preemptions  # never None, thanks to `NoStatistics`
        tokens = list(result.token_ids)
        entries = cast(list[dict[int, Logprob]], result.logprobs)  # never None, since they were requested
        logprobs = [entry[token].logprob for token, entry in zip(tokens, entries, strict=True)]
        versions = [int(s.version) for s in result.weight_versions for _ in range(s.start, s.end)]
        if len(versions) != len(tokens):
            raise RuntimeError(f"vLLM gave the weight version of {len(versions)} of {len(tokens)} tokens")
        reason = cast(str, result.finish_reason)
        return Completion(tokens, logprobs, versions, reason, cache_version, max_tokens, cached_tokens, preemptions)

    async def load_weights(self, version: int, transport: str, parts: list[dict]) -> float:
        """Switch to new weights without ending the requests in flight; return the pause in seconds.

        Args:
            version: the number of these weights.
            transport: name of the transport whose receiver reads the parts in the engine's workers
                (pipeline/weights/transport.py).
            parts: the parts that this receiver fetched.

        Raises:
            Exception: an error of vLLM or of the receiver. Some weights may be loaded, so this object is unusable.
        """
        async with self._loading:
            try:
                self._open.clear()
                begin = time.perf_counter()
                await self._llm.pause_generation(mode="keep", clear_cache=False)
                await self._llm.start_weight_update()
                info = {"transport": transport, "parts": parts}
                await self._llm.update_weights(WeightTransferUpdateRequest(update_info=info))
                await self._llm.finish_weight_update(weight_version=str(version))
                self.version = version
                await self._llm.resume_generation()
                return time.perf_counter() - begin
            finally:
                self._open.set()

    async def pinned_weights(self) -> list[tuple[int, int]]:
        """Of each worker: bytes of weight files that are pinned for copies to its GPU, and bytes of all it keeps."""
        return [(pinned, mapped) for pinned, mapped in await self._llm.collective_rpc("pinned_weights")]

    async def heartbeat(self) -> None:
        """Return after the engine's next loop iteration, whether or not it has work."""
        await self._llm.is_paused()

    @property
    def is_dead(self) -> bool:
        """Whether the engine process has died."""
        return self._llm.errored

    @property
    def cuda_graphs(self) -> str:
        """vLLM's mode of CUDA graphs; NONE without them."""
        return self._llm.vllm_config.compilation_config.cudagraph_mode.name

    def shutdown(self) -> None:
        self._llm.shutdown()


class NoStatistics(PrometheusStatLogger):
    """Stands for vLLM's loggers of statistics, so that requests carry their counts and nothing else is recorded.

    vLLM would add a Prometheus logger to any other.
    """

    def __init__(self, vllm_config, engine_indexes=None):
        """Make no Prometheus metrics."""

    def record(self, *arguments, **named) -> None: ...

    def record_sleep_state(self, *arguments, **named) -> None: ...

    def record_admission_rejection(self, reason: str) -> None: ...

    def log_engine_initialized(self) -> None: ...


class _ForkedProcess(multiprocessing.context.ForkProcess):
    def run(self) -> None:
        gc.freeze()  # Ray's objects from before the fork must not be finalized in this process
        end_with_parent()
        ray._raylet.setproctitle("VLLM::EngineCore")  # after a fork in a Ray worker, vLLM's own call finds no room
        super().run()


class _ForkContext(multiprocessing.context.ForkContext):
    Process = _ForkedProcess


@contextlib.contextmanager
def _forking() -> Iterator[None]:
    """Context manager in which vLLM forks its engine process, which then does not import vLLM again.

    On a CPU this halves an engine's start time. In a Ray actor vLLM would spawn the process, because CUDA and Ray must
    not be used on both sides of a fork. On a CPU there is no CUDA, and the engine process does not call Ray.
    """
    chosen, engine_launcher.get_mp_context = engine_launcher.get_mp_context, _ForkContext
    try:
        yield
    finally:
        engine_launcher.get_mp_context = chosen


def sequences_of(config: GenerationConfig) -> int:
    """How many conversations the engine decodes together: generator.max_sequences, with 0 resolved.

    Raises:
        ValueError: it is 0, and the model's sizes are unknown.
    """
    if config.generator.max_sequences:
        return config.generator.max_sequences
    # NVML gives the size without a CUDA context, which vLLM's processes must not inherit.
    memory = None if current_platform.is_cpu() else current_platform.get_device_total_memory()
    try:
        model = AutoConfig.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
        fitting = fitting_sequences(config, built_architecture(model), memory)
    except Exception as error:  # any exception, for any model
        raise ValueError(f"set generator.max_sequences: the sizes of {config.model.path} are unknown") from error
    return cast(int, fitting)  # known, since the memory is


def engine_args(config: GenerationConfig, seed: int) -> AsyncEngineArgs:
    g = config.generator
    on_cpu = current_platform.is_cpu()
    if on_cpu:
        # Otherwise vLLM 0.32 uses an executor with two processes, whose queue takes a good part of a core.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    device: dict[str, Any] = (
        {
            # One process for the whole engine, and a KV cache that fits on a laptop.
            "distributed_executor_backend": "uni",
            "kv_cache_memory_bytes": int(g.kv_cache_gib * 2**30),
            # The prefix cache has full blocks only. vLLM's default on a CPU is 128 tokens, a quarter of a prompt of
            # preset=smollm2. 32 is the smallest block of its attention there, and no slower. On a GPU it has 16.
            "block_size": 32,
            # With chunked prefill, a seeded request kills the engine: vLLM 0.32 reverts the draw of a chunk that
            # samples nothing, which torch's CPU generators cannot do.
            "enable_chunked_prefill": False,
        }
        if on_cpu
        else {
            "gpu_memory_utilization": g.gpu_memory_share,
            "kv_cache_memory_bytes": int(g.gpu_kv_cache_gib * 2**30) or None,
            "tensor_parallel_size": g.tensor_parallel,
            # Float32 logits, as in the learner (pipeline/learning/policy.py). On a GPU they cost nothing; on a CPU vLLM
            # would copy the whole head to float32 in every step, which doubles a small model's time.
            "hf_overrides": {"head_dtype": "float32"},
        }
    )
    return AsyncEngineArgs(
        model=config.model.path,
        dtype=cast(Any, config.model.dtype),
        trust_remote_code=config.model.trust_remote_code,
        load_format="safetensors",
        skip_tokenizer_init=True,  # tokens in, tokens out
        max_model_len=config.agent.window,
        max_num_seqs=sequences_of(config),
        kv_cache_dtype=cast(Any, g.kv_cache_dtype),
        enforce_eager=g.enforce_eager,
        enable_prefix_caching=True,
        scheduling_policy="priority",
        # Log-probs after the temperature, as the learner computes them; vLLM's default is before it.
        logprobs_mode="processed_logprobs",
        # Ignore the model's generation_config, which would change the sampling.
        generation_config="vllm",
        seed=seed,
        disable_log_stats=True,
        use_tqdm_on_load=False,
        worker_extension_cls="actors.generation.vllm_worker.WeightTransferExtension",
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        **device,
    )
