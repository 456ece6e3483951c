"""The dtype of a model's weights: how `model.dtype=auto` is resolved, and how exact each dtype is."""

from pathlib import Path
from typing import Any

# Mean log-prob difference between vLLM and the learner under the same weights above which something is wrong. The
# embedded model in float32 has 1e-6 or less. SmolLM2-135M in bfloat16 at temperature 1 has 0.04 to 0.05: the rounding
# of 30 layers.
MISMATCH_WARNING = {"float32": 1e-4, "bfloat16": 0.06}
CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is ARM's name


def chosen_dtype(config: Any) -> str:
    """The dtype of the weights: "float32" or "bfloat16".

    auto is bfloat16 on GPUs and on CPUs with bfloat16 instructions, else float32: other CPUs emulate bfloat16, at five
    times the time of float32 or more.

    Args:
        config: a job's configuration. Its sections `generator` and `learner`, if it has them, say whether the job uses
            GPUs. The nodes of a cluster without GPUs are assumed to be like this machine.
    """
    if config.model.dtype != "auto":
        return config.model.dtype
    sections = (getattr(config, name, None) for name in ("generator", "learner"))
    if any(section is not None and section.num_gpus > 0 for section in sections):
        return "bfloat16"
    return "bfloat16" if BFLOAT16_FLAGS & cpu_flags() else "float32"


def cpu_flags() -> set[str]:
    """The first core's instruction sets as Linux names them; empty where Linux does not say."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return set()
    lines = (line.partition(":") for line in text.splitlines())
    return next((set(flags.split()) for name, _, flags in lines if name.strip() in ("flags", "Features")), set())
