"""The range of every number in a configuration, by its name. A number outside is a typing error.

The ranges are far wider than the useful values. pipeline/rules.py has the rules that carry meaning.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

HUGE = 10**9
# (least, most), by the last part of the key; else by its ending, else by the value's type.
BY_NAME = {
    "seed": (0, 2**31),  # engines and samplers take 32 bits
    "synthetic_seed": (0, 2**31),
    "seeds": (0, 2**31),
    "entropy_coefficient": (-1e3, 1e3),
    "max_bad_share": (0, 1),
    "max_failed_share": (0, 1),
    "max_share": (0, 1),
    "idle_share": (0, 1),
    "keep_share": (0, 1),
    "slip_share": (0, 1),
    "tempted_share": (0, 1),
    "gpu_memory_share": (0, 1),
    "decay_share": (0, 1),
    "overlong_share": (0, 1),
    "top_p": (0, 1),
    "clip_low": (0, 1),
    "temperature": (0, 100),
    "learning_rate": (0, 100),
    "muon_learning_rate": (0, 100),
    "weight_decay": (0, 100),
    "kl_coefficient": (0, 1e3),
    "overlong_penalty": (0, 1e3),
    "ranks": (0, 10**5),
    "min_ranks": (0, 10**5),
    "count": (0, 10**7),
    "min_count": (0, 10**5),
    "tensor_parallel": (0, 10**4),
    "num_cpus": (0, 10**4),
    "num_gpus": (0, 10**4),
    "workers": (0, 10**5),
    "at_once": (0, 10**4),
    "kv_cache_gib": (0, 10**5),
    "gpu_kv_cache_gib": (0, 10**5),
    "bucket_mib": (0, 10**5),
    "group_size": (0, 10**5),
    "groups_per_step": (0, 10**6),
    "max_staleness": (0, 10**4),
    "max_discarded": (0, 10**6),
    "synthetic_chunks": (0, 10**7),  # 18 tokens each
    "chunks": (0, 10**7),
    "ablation_chunks": (0, 10**7),
    "transfer_chunks": (0, 10**7),
    "synthetic_count": (0, 10**7),
    "documents": (0, 10**7),
    "document_characters": (1, 10**11),
    "row_bytes": (1, 10**11),
}
BY_ENDING = {"_s": (0, 10**8)}  # seconds


def number_faults(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield one line for each faulty number of a configuration, a dataclass of dataclasses."""
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from number_faults(value, f"{key}.")
        for number in value if isinstance(value, list) else [value]:
            if type(number) in (int, float) and (fault := _fault(field.name, number)):
                yield f"{key}={_shown(number)} {fault}"


def number_range(name: str, number: int | float) -> tuple[float, float]:
    """The least and the greatest value of a key, by its last part and the type of its value."""
    endings = (limits for ending, limits in BY_ENDING.items() if name.endswith(ending))
    return BY_NAME.get(name) or next(endings, (0, HUGE if isinstance(number, int) else 1e9))


def _fault(name: str, number: int | float) -> str | None:
    if isinstance(number, float) and not math.isfinite(number):  # isfinite fails on huge ints
        return "is not a finite number"
    least, most = number_range(name, number)
    return None if least <= number <= most else f"must lie between {least:g} and {most:g}"


def _shown(number: int | float) -> str:
    """The number for a message, without thousands of digits."""
    if isinstance(number, int) and number.bit_length() > 400:
        return f"a number of {number.bit_length()} bits"
    return str(number)
