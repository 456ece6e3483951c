"""Estimates how many conversations fit an engine's KV cache, for `generator.max_sequences=0`."""

from math import ceil

from pipeline.learning.device_memory import BYTES, Architecture
from pipeline.sections import GenerationConfig

GIB = 2**30
# What an engine on a GPU takes beside weights and KV cache: the activations of a batch of prompts, CUDA graphs.
ENGINE_OVERHEAD = 2 * GIB
MOST_SEQUENCES = 1024


def token_bytes(config: GenerationConfig, architecture: Architecture) -> int:
    """Bytes of one token in the KV cache, over all devices of an engine: a key and a value of each layer.

    With more devices than heads of keys, each device has one head, and so each head is there more than once.
    """
    width = 1 if config.generator.kv_cache_dtype == "fp8" else BYTES[config.model.dtype]
    copies = ceil(config.generator.tensor_parallel / architecture.key_heads)
    return 2 * architecture.layers * architecture.key_value * width * copies


def cache_bytes(config: GenerationConfig, architecture: Architecture, memory: int | None) -> int | None:
    """Bytes of the KV cache of one engine, over all its devices; None if that depends on a memory that is unknown.

    Args:
        config: the job's configuration.
        architecture: the model's sizes.
        memory: bytes of one GPU; None: unknown.
    """
    g = config.generator
    if not g.num_gpus:
        return int(g.kv_cache_gib * GIB)
    if g.gpu_kv_cache_gib:
        return int(g.gpu_kv_cache_gib * GIB) * g.tensor_parallel
    if memory is None:
        return None
    weights = BYTES[config.model.dtype] * architecture.parameters
    return max(0, int(g.tensor_parallel * (g.gpu_memory_share * memory - ENGINE_OVERHEAD)) - weights)


def fitting_sequences(config: GenerationConfig, architecture: Architecture, memory: int | None) -> int | None:
    """How many conversations of agent.window tokens fit the KV cache of one engine, from 1 to `MOST_SEQUENCES`.

    What conversations share counts for each of them, so more may fit.

    Args:
        config: the job's configuration.
        architecture: the model's sizes.
        memory: bytes of one GPU; None: unknown.

    Returns:
        The number; None if it depends on a memory that is unknown.
    """
    cache = cache_bytes(config, architecture, memory)
    if cache is None:
        return None
    return min(MOST_SEQUENCES, max(1, cache // (config.agent.window * token_bytes(config, architecture))))
