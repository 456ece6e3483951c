"""The dtype of a model's weights: which one `model.dtype=auto` is, and how exact it is."""

from pathlib import Path
from typing import Any

# Mean differences of log-probs between vLLM and the learner under the same weights, above which something is wrong. In
# float32 the embedded model has 1e-6 or less. In bfloat16 SmolLM2-135M at temperature 1 has 0.04 to 0.05: the rounding
# of 30 layers.
MISMATCH_WARNING = {"float32": 1e-4, "bfloat16": 0.06}
CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is ARM's name


def chosen_dtype(config: Any) -> str:
    """float32 or bfloat16: bfloat16 for GPUs, and for CPUs with bfloat16 instructions; other CPUs emulate it, which
    takes five times as long as float32 or more.

    Args:
        config: of a job. Its sections `generator` and `learner`, where it has them, say whether GPUs are asked for. The
            nodes of a cluster without GPUs are taken to be like this machine.
    """
    if config.model.dtype != "auto":
        return config.model.dtype
    sections = (getattr(config, name, None) for name in ("generator", "learner"))
    if any(section is not None and section.num_gpus > 0 for section in sections):
        return "bfloat16"
    return "bfloat16" if BFLOAT16_FLAGS & cpu_flags() else "float32"


def cpu_flags() -> set[str]:
    """The instruction sets that Linux names of the first core; none where it does not say."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return set()
    lines = (line.partition(":") for line in text.splitlines())
    return next((set(flags.split()) for name, _, flags in lines if name.strip() in ("flags", "Features")), set())
