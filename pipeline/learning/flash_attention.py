"""Torch's flash attention: another implementation in place of its own, and a trial before the learner relies on it.

FA3 and FA4 replace FA2 in the whole process, behind the same operators. In all three, log-sum-exps are [heads, tokens]
and keys may have fewer heads than queries. Torch 2.13 calls FA3 and FA4 prototypes: a package may be there that torch
can activate but not call, or without a backward pass. So they are tried.
"""

from typing import NamedTuple

import torch
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    restore_flash_attention_impl,
)

from pipeline.errors import reason_of
from pipeline.learning.attention import forest_attention, parts_of
from pipeline.learning.attention_choice import FLASH, PADDED, Chosen, choose_attention
from pipeline.learning.forest import build_forest

TRIED = ([200, 150], [0, 100])  # tokens of the conversations of the trial, and the tokens that they share
# Largest distance of the trial's results to padded attention, relative to the norm. Rounding to bfloat16 is 0.01.
TOLERANCE = 0.05


class Heads(NamedTuple):
    """Heads of the queries and of the keys, and numbers in a head."""

    queries: int
    keys: int
    size: int


def select_attention(value: str, device: torch.device, dtype: torch.dtype, heads: Heads | None) -> Chosen:
    """Choose the kernels (`choose_attention`) for a device, and make them the ones that this process computes with.

    Args:
        value: `model.attention`.
        device: where the attention is computed.
        dtype: the weights' dtype.
        heads: the model's heads; None: unknown.

    Raises:
        ValueError: as `choose_attention`.
    """

    def why_not(name: str) -> str:
        assert heads is not None, "unknown heads are an obstacle"
        return unavailable(name, device, dtype, heads)

    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    dtype_name = str(dtype).removeprefix("torch.")
    chosen = choose_attention(value, capability, dtype_name, heads.size if heads else None, why_not)
    activate(chosen.name)
    return chosen


def activate(name: str) -> None:
    """Make torch's flash attention the one of this name; torch's own for `padded`, which does not use it.

    Raises:
        Exception: whatever the import of its package raises.
    """
    wanted = FLASH[name].torch_name if name in FLASH else ""
    if wanted == (current_flash_attention_impl() or ""):
        return
    if wanted:
        activate_flash_attention_impl(wanted)
    else:
        restore_flash_attention_impl()


def unavailable(name: str, device: torch.device, dtype: torch.dtype, heads: Heads) -> str:
    """Why a flash attention cannot be used on a GPU that it knows; empty if it can. Torch's own is not tried."""
    if not FLASH[name].torch_name:
        return "" if torch.backends.cuda.is_flash_attention_available() else f"torch {torch.__version__} lacks it"
    try:
        activate(name)
        off = distance_to_padded(name, device, dtype, heads)
    except Exception as error:  # of the package, or of torch with a package that it does not fit
        why = reason_of(error)
    else:
        why = "" if off <= TOLERANCE else f"its results are {off:.2g} off those of padded attention"
    if why:
        activate(PADDED)
    return why


def distance_to_padded(name: str, device: torch.device, dtype: torch.dtype, heads: Heads) -> float:
    """The distance of a small forest's attention to the padded one, relative to its norm: the largest of the output and
    the gradients of queries, keys and values."""
    forest, _ = build_forest(*TRIED)
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, heads.size, generator=random).to(device, dtype)

    query, key, value = (drawn(n, forest.tokens).requires_grad_() for n in (heads.queries, heads.keys, heads.keys))
    upstream = drawn(forest.tokens, heads.queries)

    def results(kernels: str) -> list[torch.Tensor]:
        out, _ = forest_attention(None, query, key, value, None, forest=parts_of(forest, device, kernels))
        return [x.detach().float() for x in (out, *torch.autograd.grad(out, (query, key, value), upstream))]

    pairs = zip(results(name), results(PADDED), strict=True)
    return float(torch.stack([(got - wanted).norm() / wanted.norm() for got, wanted in pairs]).max())
