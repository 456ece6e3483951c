"""Attention of a forest (pipeline/learning/forest.py) in the learner, registered with transformers as "forest".

A query's keys are in several parts of the row: its own branch, and blocks with the prefix that its conversation shares
with other branches. Torch's fused kernels compute one part after the other. The parts are merged by the log-sum-exp of
their scores, as in ring attention (arXiv 2310.01889). In the backward pass a kernel gets the merged output and
log-sum-exp, so it finds the true probabilities and its part of the gradient. So a prefix's keys and values are read
once for all branches that see the whole of it.

All lengths are known on the host, so no layer waits for the device. There are two sets of kernels, between which
pipeline/learning/attention_choice.py chooses:
    padded  scaled dot-product attention of batches; branches of like length share a batch
    varlen  flash attention of sequences of any lengths, without padding: torch's own, or what has taken its place
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from pipeline.learning.attention_choice import PADDED
from pipeline.learning.forest import Block, Forest

NAME = "forest"
LIKE_LENGTH = 0.9  # the shortest branch of a padded batch has at least this share of the longest one's tokens
# Lengths of padded batches on a device are multiples of so many tokens: then they recur, and torch's allocator finds
# blocks of their size again.
ROUNDED = {"cuda": 64}
aten = torch.ops.aten


def forest_attention(module, query, key, value, attention_mask, *, forest, scaling=None, sliding_window=None, **_):
    """Causal attention of a row's conversations, each shared prefix computed once.

    Args:
        module: the calling attention layer; not used.
        query: [1, heads, T, D].
        key: [1, heads, T, D]; may have fewer heads than the query (grouped-query attention).
        value: like `key`.
        attention_mask: not used.
        forest: the row's `Parts`.
        scaling: factor of the scores; None: 1/√D.
        sliding_window: must be None.

    Returns:
        The output, [1, T, heads, D], and None in place of the attention weights.

    Raises:
        ValueError: the model has a sliding window.
    """
    if sliding_window is not None:
        raise ValueError("models with a sliding window are not supported: the learner's attention sees all of a prompt")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rows = (x[0].transpose(0, 1) for x in (query, key, value))
    return _ForestAttention.apply(*rows, forest, scale)[None], None


AttentionInterface.register(NAME, forest_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


class Rows(Protocol):
    """Some tokens of a row, in the form in which a kernel takes them."""

    @property
    def places(self) -> slice | torch.Tensor:
        """The tokens' places in the row; none twice."""

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Take them from a row [T, heads, …]."""

    def untake(self, x: torch.Tensor) -> torch.Tensor:
        """Undo the form: [tokens, heads, …] in the order of `places`."""

    def add(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """Add values [tokens, heads, …] to those of the tokens in a row."""


class Part(NamedTuple):
    """One call of a kernel."""

    queries: Rows
    keys: Rows


class Kernel(Protocol):
    """Attention of a part. A log-sum-exp is float32 [tokens, heads]; all else is [tokens, heads, D]."""

    def forward(self, part: Part, query, key, value, is_causal: bool, scale: float) -> tuple[torch.Tensor, ...]:
        """The output for the part's queries, and their log-sum-exp."""

    def backward(
        self, part: Part, grad, query, key, value, out, lse, is_causal: bool, scale: float
    ) -> tuple[torch.Tensor, ...]:
        """The gradients of the part's queries, keys and values."""


@dataclass(frozen=True)
class Parts:
    """A row's attention as calls of a kernel.

    branches  causal; queries and keys are the same; together, every token of the row once
    blocks    not causal; what they add
    """

    kernel: Kernel
    branches: list[Part]
    blocks: list[Part]


def parts_of(forest: Forest, device: torch.device, chosen: str) -> Parts:
    """The parts of a row's attention on a device, for the chosen kernels (pipeline/learning/attention_choice.py)."""
    if chosen != PADDED:
        whole = _Sequences([slice(0, forest.tokens)], forest.branches, device)
        return Parts(_Varlen(), [Part(whole, whole)], [_level(level, device) for level in forest.levels])
    multiple = ROUNDED.get(device.type, 1)
    batches = [_Batch(branches, multiple, device) for branches in _of_like_length(forest.branches)]
    blocks = [Part(_Slice(queries), _Slice(keys)) for level in forest.levels for queries, keys in level]
    kernel = _Efficient() if device.type == "cuda" else _FlashOfCpu()
    return Parts(kernel, [Part(batch, batch) for batch in batches], blocks)


class _ForestAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, parts: Parts, scale: float):
        out = torch.empty_like(query, dtype=torch.float32 if parts.blocks else query.dtype)
        lse = query.new_empty(query.shape[:2], dtype=torch.float32)
        for part in parts.branches:
            own, own_lse = parts.kernel.forward(part, query, key, value, True, scale)
            out[part.queries.places], lse[part.queries.places] = own.to(out.dtype), own_lse
        for part in parts.blocks:
            more, more_lse = parts.kernel.forward(part, query, key, value, False, scale)
            at = part.queries.places
            # The shares of both sum to 1, however the log-sum-exps are rounded.
            share = torch.sigmoid(more_lse - lse[at])[..., None]
            out[at] = torch.lerp(out[at], more.to(out.dtype), share)
            lse[at] = torch.logaddexp(lse[at], more_lse)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx, grad):
        query, key, value, out, lse = ctx.saved_tensors
        parts, known = ctx.parts, (grad.contiguous(), query, key, value, out, lse)
        dtype = torch.float32 if parts.blocks else query.dtype
        sums = [torch.zeros_like(x, dtype=dtype) for x in (query, key, value)]
        for is_causal, calls in ((True, parts.branches), (False, parts.blocks)):
            for part in calls:
                gradients = parts.kernel.backward(part, *known, is_causal, ctx.scale)
                for total, rows, gradient in zip(sums, (part.queries, part.keys, part.keys), gradients, strict=True):
                    rows.add(total, gradient)
        return *(total.to(query.dtype) for total in sums), None, None


class _PaddedRows(Rows, Protocol):
    """Tokens as a batch that may be padded, [B, heads, L, …]."""

    def without_padding(self, grad: torch.Tensor, lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A gradient and a log-sum-exp from `take`, changed so that the padding adds nothing in the backward pass."""


class _Slice:
    """Consecutive tokens as a batch of one, [1, heads, L, …]."""

    def __init__(self, places: slice):
        self.places = places

    def take(self, x):
        return x[self.places].transpose(0, 1)[None]

    def untake(self, x):
        return x[0].transpose(0, 1)

    def add(self, total, x):
        total[self.places] += x

    def without_padding(self, grad, lse):
        return grad, lse


class _Batch:
    """Branches as a padded batch [B, heads, L, …]. The padding follows each branch, so no token sees it.

    Args:
        branches: start and end of each in the row.
        multiple: L is a multiple of it.
        device: where the attention is computed.
    """

    def __init__(self, branches: Sequence[tuple[int, int]], multiple: int, device: torch.device):
        starts, ends = np.array(branches).T
        steps = np.arange(-(-(ends - starts).max() // multiple) * multiple)
        is_token = steps < (ends - starts)[:, None]
        padded = np.where(is_token, starts[:, None] + steps, starts[:, None])
        self._padded = torch.as_tensor(padded, device=device)
        self._in_batch = torch.as_tensor(np.flatnonzero(is_token), device=device)
        self._padding = torch.as_tensor(~is_token, device=device)
        self.places = torch.as_tensor(padded[is_token], device=device)

    def take(self, x):
        return x[self._padded].transpose(1, 2)

    def untake(self, x):
        return x.transpose(1, 2).flatten(0, 1)[self._in_batch]

    def add(self, total, x):
        total[self.places] += x

    def without_padding(self, grad, lse):
        # A log-sum-exp of infinity makes the padding's probabilities 0. They may overflow, and 0 · inf is not a number.
        padding = self._padding[:, None]
        return grad.masked_fill(padding[..., None], 0.0), lse.masked_fill(padding, torch.inf)


def _of_like_length(branches: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Divide the branches, given as in `Forest`, into batches of like length."""
    longest_first = sorted(zip(branches, branches[1:], strict=False), key=lambda branch: branch[0] - branch[1])
    batches: list[list[tuple[int, int]]] = []
    for start, end in longest_first:
        first = batches[-1][0] if batches else None
        if first and end - start >= LIKE_LENGTH * (first[1] - first[0]):
            batches[-1].append((start, end))
        else:
            batches.append([(start, end)])
    return batches


class _Padded(ABC):
    """Scaled dot-product attention of batches."""

    @abstractmethod
    def _forward(self, query, key, value, is_causal: bool, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The output and log-sum-exp of batches [B, heads, L, D]."""

    @abstractmethod
    def _backward(
        self, grad, query, key, value, out, lse, is_causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The gradients of queries, keys and values."""

    def forward(self, part, query, key, value, is_causal, scale):
        q, k, v = part.queries.take(query), part.keys.take(key), part.keys.take(value)
        return tuple(part.queries.untake(x) for x in self._forward(q, k, v, is_causal, scale))

    def backward(self, part, grad, query, key, value, out, lse, is_causal, scale):
        rows: _PaddedRows = part.queries
        grad, lse = rows.without_padding(rows.take(grad), rows.take(lse))
        of_query, of_key, of_value = self._backward(
            grad,
            rows.take(query),
            part.keys.take(key),
            part.keys.take(value),
            rows.take(out),
            lse,
            is_causal,
            scale,
        )
        return rows.untake(of_query), part.keys.untake(of_key), part.keys.untake(of_value)


class _FlashOfCpu(_Padded):
    def _forward(self, query, key, value, is_causal, scale):
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, is_causal, scale=scale)

    def _backward(self, grad, query, key, value, out, lse, is_causal, scale):
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, is_causal, scale=scale
        )


class _Efficient(_Padded):
    """The memory-efficient kernel of CUDA, which knows float32 but no grouped queries."""

    def _forward(self, query, key, value, is_causal, scale):
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, is_causal, scale=scale
        )
        return out, lse[..., : query.shape[2]]  # the kernel rounds its rows up to a multiple of 32

    def _backward(self, grad, query, key, value, out, lse, is_causal, scale):
        groups = query.shape[1] // key.shape[1]
        whole = [x.repeat_interleave(groups, 1) for x in (key, value)]
        lse = torch.nn.functional.pad(lse, (0, -lse.shape[2] % 32)).contiguous()  # as the kernel aligns it
        none = torch.zeros((), dtype=torch.int64)  # the random state, which only dropout needs
        of_query, *of_whole, _ = aten._scaled_dot_product_efficient_attention_backward(
            grad, query, *whole, None, out, lse, none, none, 0.0, [True, True, True, False], is_causal, scale=scale
        )
        return of_query, *(x.unflatten(1, (-1, groups)).sum(2) for x in of_whole)


class _Sequences:
    """Tokens as sequences end to end, [tokens, heads, …].

    Args:
        ranges: places of the tokens. They may overlap if the tokens are keys.
        offsets: start of each sequence among the tokens, and the end of the last.
        device: where the attention is computed.
    """

    def __init__(self, ranges: Sequence[slice], offsets: Sequence[int], device: torch.device):
        self._ranges, self._sizes = ranges, [r.stop - r.start for r in ranges]
        self.longest = int(np.diff(offsets).max())
        self.offsets = torch.tensor(offsets, dtype=torch.int32, device=device)
        self.places: slice | torch.Tensor = ranges[0]
        if len(ranges) > 1:
            self.places = torch.as_tensor(np.concatenate([np.arange(r.start, r.stop) for r in ranges]), device=device)

    def take(self, x):
        return x[self.places]

    def untake(self, x):
        return x

    def add(self, total, x):
        for places, part in zip(self._ranges, x.split(self._sizes), strict=True):
            total[places] += part


def _level(blocks: Sequence[Block], device: torch.device) -> Part:
    """The blocks of a level as one call."""
    queries, keys = zip(*blocks, strict=True)
    return Part(*(_Sequences(ranges, _ends(ranges), device) for ranges in (queries, keys)))


def _ends(ranges: Sequence[slice]) -> list[int]:
    return np.cumsum([0, *(r.stop - r.start for r in ranges)]).tolist()


class _Varlen:
    """Flash attention of sequences of any lengths."""

    def forward(self, part, query, key, value, is_causal, scale):
        queries, keys = part
        out, lse, *_ = aten._flash_attention_forward(
            queries.take(query),
            keys.take(key),
            keys.take(value),
            queries.offsets,
            keys.offsets,
            queries.longest,
            keys.longest,
            0.0,
            is_causal,
            False,
            scale=scale,
        )
        return out, lse.T

    def backward(self, part, grad, query, key, value, out, lse, is_causal, scale):
        queries, keys = part
        none = torch.zeros(2, dtype=torch.uint64, device=query.device)  # the random state, which only dropout needs
        return aten._flash_attention_backward(
            queries.take(grad),
            queries.take(query),
            keys.take(key),
            keys.take(value),
            queries.take(out),
            queries.take(lse).T.contiguous(),
            queries.offsets,
            keys.offsets,
            queries.longest,
            keys.longest,
            0.0,
            is_causal,
            none,
            none,
            scale=scale,
        )
