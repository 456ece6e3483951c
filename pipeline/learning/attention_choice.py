"""Which kernels compute the learner's attention: `model.attention`, checked, and with auto resolved.

padded         batches with padding: on any device, in any dtype
fa2, fa3, fa4  flash attention of sequences of any lengths, without padding: on GPUs, in bfloat16 or float16. fa2 is
               torch's own; for fa3 and fa4 a package takes its place (pipeline/learning/flash_attention.py)

The module does not import torch, so a job can check its configuration before it starts anything.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

AUTO, PADDED = "auto", "padded"
HALF = ("bfloat16", "float16")
LARGEST_HEAD = 256  # numbers


@dataclass(frozen=True)
class Flash:
    """What a flash attention needs.

    torch_name  torch's name for what takes the place of its own; empty: its own
    majors      major compute capabilities of the GPUs for which torch 2.13 calls it
    package     what to install
    """

    torch_name: str
    majors: range
    package: str


FLASH = {  # in auto's order: assumed to be the fastest first; not timed by this project
    "fa3": Flash(
        "FA3",
        range(9, 10),
        "FlashAttention-3, built for the installed torch from the folder hopper of "
        "https://github.com/Dao-AILab/flash-attention (its module is flash_attn_interface)",
    ),
    # Later versions return more from the forward pass than torch 2.13 takes.
    "fa4": Flash("FA4", range(9, 11), "flash-attn-4==4.0.0b19 from PyPI, or an older version"),
    "fa2": Flash("", range(8, 13), "a torch that is built with flash attention"),
}
VALUES = (AUTO, PADDED, *sorted(FLASH))


class Chosen(NamedTuple):
    """The kernels that compute, and why those that auto prefers for this GPU do not, by name."""

    name: str
    unavailable: dict[str, str]

    def __str__(self) -> str:
        return self.name + "".join(f"; not {name}: {why}" for name, why in self.unavailable.items())


def choose_attention(
    value: str, capability: tuple[int, int] | None, dtype: str, head: int | None, unavailable: Callable[[str], str]
) -> Chosen:
    """Choose the kernels.

    Args:
        value: `model.attention`.
        capability: compute capability of the GPU; None: another device.
        dtype: the weights' dtype.
        head: numbers in a head; None: unknown.
        unavailable: says why a flash attention that this GPU has cannot be used here; empty if it can.

    Raises:
        ValueError: a flash attention was asked for that cannot be used here. The message says what it needs.
    """
    if value == AUTO:
        passed_over: dict[str, str] = {}
        for name in FLASH:
            if obstacle(name, capability, dtype, head):
                continue
            if not (why := unavailable(name)):
                return Chosen(name, passed_over)
            passed_over[name] = why
        return Chosen(PADDED, passed_over)
    if value in FLASH:
        if why := obstacle(value, capability, dtype, head):
            raise ValueError(f"model.attention={value}: {why}. Choose auto, or padded")
        if why := unavailable(value):
            raise ValueError(f"model.attention={value}: {why}. It needs {FLASH[value].package}. Or choose auto")
    return Chosen(value, {})


def obstacle(name: str, capability: tuple[int, int] | None, dtype: str, head: int | None) -> str:
    """Why a flash attention cannot compute such a model on such a device, whatever is installed; empty if it can."""
    majors = FLASH[name].majors
    if capability is None:
        return "it needs a GPU in every learner rank (learner.num_gpus)"
    if dtype not in HALF:
        return f"it needs model.dtype=bfloat16, and the weights are in {dtype}"
    major, minor = capability
    if major not in majors:
        known = f"{majors[0]}.x" + (f" to {majors[-1]}.x" if len(majors) > 1 else "")
        return f"it needs a GPU of compute capability {known}, and this one has {major}.{minor}"
    if head is None:
        return "the size of the model's heads is unknown (config.json has no num_attention_heads)"
    if head % 8 or head > LARGEST_HEAD:
        return f"heads of {head} numbers are not supported: it takes multiples of 8 up to {LARGEST_HEAD}"
    if name == "fa4" and major == 10 and 128 < head < LARGEST_HEAD:
        return f"heads of {head} numbers are not supported: on this GPU it takes multiples of 8 up to 128, or 256"
    return ""
