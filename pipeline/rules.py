"""The checks of a configuration before anything starts.

`check_rules` reports all broken rules at once. Other checks come in turn, each with all faults of its kind: before the
rules, `load_config` checks that numbers are in range (no count is below 0, no share above 1); after them, a job checks
its files, its model and the code that the configuration names.
"""

import itertools
import math
import re
from collections.abc import Iterable
from typing import Any

from pipeline.dtype import cpu_flags
from pipeline.errors import ConfigError
from pipeline.named_code import SPELLING
from pipeline.sections import GenerationConfig, JobConfig

FP8_CACHE_FLAGS = frozenset({"avx512f", "amx_tile"})  # vLLM 0.32 needs one of them for an fp8 KV cache on a CPU
RAYS_OWN = ("CPU", "GPU", "memory", "object_store_memory")  # resources that have keys of their own, or none
Rules = Iterable[tuple[bool, str]]  # whether a rule holds, and the message if it does not


def check_rules(*rules: Rules) -> None:
    """Raise a `ConfigError` with one line for each rule that is broken."""
    wrong = [message for ok, message in itertools.chain(*rules) if not ok]
    if wrong:
        raise ConfigError("\n".join(wrong))


def positive(c: object, section: str, *names: str) -> Rules:
    for name in names:
        value = getattr(getattr(c, section), name)
        yield value > 0, f"{section}.{name}={value} must be greater than 0"


def at_most(c: object, section: str, name: str, limit: str) -> Rules:
    value, most = getattr(getattr(c, section), name), getattr(getattr(c, section), limit)
    yield 1 <= value <= most, f"{section}.{name}={value} must lie between 1 and {section}.{limit}={most}"


def one_of(c: object, section: str, name: str, valid: Iterable[str]) -> Rules:
    value = getattr(getattr(c, section), name)
    yield value in valid, f"{section}.{name}={value!r} must be one of {', '.join(valid)}"


def named_function(c: object, section: str, name: str, valid: Iterable[str]) -> Rules:
    value = getattr(getattr(c, section), name)
    yield (
        value in valid or SPELLING.fullmatch(value) is not None,
        f"{section}.{name}={value!r} must be one of {', '.join(valid)}, or module:function",
    )


def resume_rule(c: Any) -> tuple[bool, str]:
    return c.resume in ("no", "auto"), f"resume={c.resume!r} must be auto or no"


def job_rules(c: JobConfig) -> Rules:
    """The rules of every job that runs on a cluster; `c` has the sections run, model and wandb."""
    yield from one_of(c, "model", "dtype", ("auto", "float32", "bfloat16"))
    yield from one_of(c, "wandb", "mode", ("auto", "online", "offline", "disabled"))
    yield (
        re.fullmatch(r"\w[\w.-]*", c.run.name) is not None,
        f"run.name={c.run.name!r} may hold letters, digits, '.', '_' and '-', and must not begin with '.' or '-'",
    )


def generation_rules(c: GenerationConfig) -> Rules:
    """The rules of every job with generators."""
    yield from job_rules(c)
    yield from positive(c, "agent", "window", "problem_tokens", "chunk_tokens", "memory_tokens", "answer_tokens")
    yield from positive(c, "generator", "count", "tensor_parallel", "timeout_s", "stall_s")
    yield from at_most(c, "generator", "min_count", "count")
    g = c.generator
    yield (
        g.tensor_parallel == 1 or g.num_gpus == g.tensor_parallel,
        f"generator.num_gpus={g.num_gpus} must equal generator.tensor_parallel={g.tensor_parallel}",
    )
    shares = 0 < g.num_gpus < 1
    yield (
        not shares or g.gpu_kv_cache_gib > 0,
        f"generator.num_gpus={g.num_gpus:g}: an engine that shares its GPU needs generator.gpu_kv_cache_gib, because "
        "vLLM takes what others allocate while it starts for its own",
    )
    yield (
        not shares or g.gpu_memory_share <= g.num_gpus,
        f"generator.gpu_memory_share={g.gpu_memory_share:g} must be at most generator.num_gpus={g.num_gpus:g}: so much "
        "must be free when the engine starts",
    )
    yield from own_resources("generator", g.resources)
    yield from one_of(c, "generator", "kv_cache_dtype", ("auto", "fp8"))
    yield (
        g.kv_cache_dtype != "fp8" or g.num_gpus > 0 or bool(FP8_CACHE_FLAGS & cpu_flags()),
        "generator.kv_cache_dtype=fp8 needs a GPU, or a CPU with AVX-512 or AMX, which this machine lacks",
    )


def own_resources(section: str, resources: dict[str, float]) -> Rules:
    """The rules of a pool's custom resources."""
    for name, amount in resources.items():
        yield (
            name not in RAYS_OWN and math.isfinite(amount) and amount >= 0,
            f"{section}.resources: {name}={amount:g} must be a resource of your own and at least 0",
        )


def check_data_given(config: Any) -> None:
    """Check that a data source that reads a file has a path.

    Raises:
        ConfigError: data.path is missing.
    """
    if config.data.source == "file" and not config.data.path:
        raise ConfigError("set data.path: data.source=file reads samples, which jobs.prepare makes")
