"""Attention of a forest (pipeline/learning/forest.py) in the learner, registered with transformers as "forest".

A query's keys are in several parts of the row: its own branch, and blocks with the prefix that its conversation shares
with other branches. Torch's fused kernels compute one part after the other. The parts are merged by the log-sum-exp of
their scores, as in ring attention (arXiv 2310.01889). In the backward pass a kernel gets the merged output and
log-sum-exp, so it finds the true probabilities and its part of the gradient. No key or value is copied for each branch
that sees it.

All lengths are known on the host, so no layer waits for the device. There are two sets of kernels:
    padded  scaled dot-product attention of batches; branches of like length share a batch. On CPUs, and for float32.
    varlen  flash attention of sequences of any lengths, without padding. On CUDA, for bfloat16 and float16.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from pipeline.learning.forest import Forest

NAME = "forest"
LIKE_LENGTH = 0.9  # the shortest branch of a padded batch has at least this share of the longest one's tokens
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


def parts_of(forest: Forest, device: torch.device, dtype: torch.dtype) -> "Parts":
    """The parts of a row's attention for the kernels of a device and dtype."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return VarlenParts(forest, device)
    return PaddedParts(forest, device)


class Parts(ABC):
    """The calls of kernels that compute a row's attention: first the branches, which are disjoint, then the blocks.

    A row of T tokens has queries [T, heads, D], keys and values [T, key heads, D], and log-sum-exps float32 [T, heads].
    Places are indices of the first dimension.
    """

    @abstractmethod
    def branches(self, query, key, value, scale: float) -> Iterator[tuple]:
        """Yield places of queries, their output and their log-sum-exp."""

    @abstractmethod
    def blocks(self, query, key, value, scale: float) -> Iterator[tuple]:
        """Yield the same as `branches`."""

    @abstractmethod
    def gradients(self, grad, query, key, value, out, lse, scale: float) -> Iterator[tuple]:
        """Yield places of queries and of keys, and the gradients of these queries, keys and values."""


class _ForestAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, parts: Parts, scale: float):
        out, lse = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32)
        for queries, more, more_lse in parts.branches(query, key, value, scale):
            out[queries], lse[queries] = more, more_lse
        merged = None
        for queries, more, more_lse in parts.blocks(query, key, value, scale):
            merged = out.float() if merged is None else merged
            total = torch.logaddexp(lse[queries], more_lse)
            merged[queries] *= (lse[queries] - total).exp_()[..., None]
            merged[queries] += more * (more_lse - total).exp_()[..., None]
            lse[queries] = total
        out = out if merged is None else merged.to(out.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx, grad):
        query, key, value, out, lse = ctx.saved_tensors
        sums = [torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (query, key, value)]
        of_parts = ctx.parts.gradients(grad.contiguous(), query, key, value, out, lse, ctx.scale)
        for queries, keys, *gradients in of_parts:
            for total, places, gradient in zip(sums, (queries, keys, keys), gradients, strict=True):
                total[places] += gradient
        return *(total.to(query.dtype) for total in sums), None, None


class PaddedParts(Parts):
    def __init__(self, forest: Forest, device: torch.device):
        self._branches = [_Padded(branches, device) for branches in _of_like_length(forest.branches)]
        self._blocks = [(_Slice(b.queries), _Slice(b.keys)) for level in forest.levels for b in level]
        on_cuda = device.type == "cuda"
        self._forward, self._backward = (
            (_efficient, _efficient_backward) if on_cuda else (_flash_of_cpu, _flash_of_cpu_backward)
        )

    def branches(self, query, key, value, scale):
        for rows in self._branches:
            yield self._attend(rows, rows, query, key, value, True, scale)

    def blocks(self, query, key, value, scale):
        for queries, keys in self._blocks:
            yield self._attend(queries, keys, query, key, value, False, scale)

    def _attend(self, queries, keys, query, key, value, is_causal, scale):
        out, lse = self._forward(queries.take(query), keys.take(key), keys.take(value), is_causal, scale)
        return queries.places, queries.untake(out), queries.untake(lse)

    def gradients(self, grad, query, key, value, out, lse, scale):
        causal = [(rows, rows, True) for rows in self._branches]
        for queries, keys, is_causal in [*causal, *((q, k, False) for q, k in self._blocks)]:
            of_query, of_key, of_value = self._backward(
                queries.without_padding(queries.take(grad)),
                queries.take(query),
                keys.take(key),
                keys.take(value),
                queries.take(out),
                queries.take(lse),
                is_causal,
                scale,
            )
            yield queries.places, keys.places, queries.untake(of_query), keys.untake(of_key), keys.untake(of_value)


class _Slice:
    """Some consecutive tokens of a row as a batch of one."""

    def __init__(self, places: slice):
        self.places = places

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """[T, heads, …] → [1, heads, L, …]"""
        return x[self.places].transpose(0, 1)[None]

    def untake(self, x: torch.Tensor) -> torch.Tensor:
        """[1, heads, L, …] → [L, heads, …]"""
        return x[0].transpose(0, 1)

    def without_padding(self, x: torch.Tensor) -> torch.Tensor:
        return x


class _Padded:
    """Some branches of a row as a padded batch [B, heads, L, …]. Padding follows a branch, so no query sees it."""

    def __init__(self, branches: Sequence[tuple[int, int]], device: torch.device):
        starts, ends = np.array(branches).T
        steps = np.arange((ends - starts).max())
        is_token = steps < (ends - starts)[:, None]
        self._index = torch.as_tensor(np.where(is_token, starts[:, None] + steps, starts[:, None]), device=device)
        self._is_token = torch.as_tensor(is_token, device=device)
        self.places = torch.as_tensor((starts[:, None] + steps)[is_token], device=device)
        self._in_batch = torch.as_tensor(np.flatnonzero(is_token), device=device)

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """[T, heads, …] → [B, heads, L, …]"""
        return x[self._index].transpose(1, 2)

    def untake(self, x: torch.Tensor) -> torch.Tensor:
        """[B, heads, L, …] → [tokens, heads, …]"""
        return x.transpose(1, 2).flatten(0, 1)[self._in_batch]

    def without_padding(self, x: torch.Tensor) -> torch.Tensor:
        """Zero where the batch is padded, so that the padding has no gradient."""
        return x * self._is_token[:, None, :, None]


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


def _flash_of_cpu(query, key, value, is_causal, scale):
    return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, is_causal, scale=scale)


def _flash_of_cpu_backward(grad, query, key, value, out, lse, is_causal, scale):
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, key, value, out, lse, 0.0, is_causal, scale=scale
    )


def _efficient(query, key, value, is_causal, scale):
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True, 0.0, is_causal, scale=scale
    )
    return out, lse[..., : query.shape[2]]


def _efficient_backward(grad, query, key, value, out, lse, is_causal, scale):
    groups = query.shape[1] // key.shape[1]
    whole = [x.repeat_interleave(groups, 1) for x in (key, value)]
    lse = torch.nn.functional.pad(lse, (0, -lse.shape[2] % 32))  # the kernel reads rows of a multiple of 32
    none = torch.zeros((), dtype=torch.int64, device="cpu")  # of the random state, without dropout
    of_query, *of_whole, _ = aten._scaled_dot_product_efficient_attention_backward(
        grad, query, *whole, None, out, lse, none, none, 0.0, [True, True, True, False], is_causal, scale=scale
    )
    return of_query, *(x.unflatten(1, (-1, groups)).sum(2) for x in of_whole)


class VarlenParts(Parts):
    def __init__(self, forest: Forest, device: torch.device):
        self._branches = _Sequences([slice(0, forest.tokens)], forest.branches, device)
        self._levels = [
            (
                _Sequences([b.queries for b in level], _ends(b.queries for b in level), device),
                _Sequences([b.keys for b in level], _ends(b.keys for b in level), device),
            )
            for level in forest.levels
        ]

    def branches(self, query, key, value, scale):
        yield from self._attend(self._branches, self._branches, query, key, value, True, scale)

    def blocks(self, query, key, value, scale):
        for queries, keys in self._levels:
            yield from self._attend(queries, keys, query, key, value, False, scale)

    def _attend(self, queries, keys, query, key, value, is_causal, scale):
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
        yield from zip(queries.places, queries.untake(out), queries.untake(lse.T), strict=True)

    def gradients(self, grad, query, key, value, out, lse, scale):
        none = torch.zeros(2, dtype=torch.uint64, device=query.device)  # the random state, without dropout
        causal = (self._branches, self._branches, True)
        for queries, keys, is_causal in [causal, *((q, k, False) for q, k in self._levels)]:
            of_query, of_key, of_value = aten._flash_attention_backward(
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
            parts = (queries.untake(of_query), keys.untake(of_key), keys.untake(of_value))
            yield from zip(queries.places, keys.places, *parts, strict=True)


class _Sequences:
    """Some tokens of a row as sequences end to end.

    Attributes:
        places: slices of the row.
        offsets: start of each sequence and the end of the last, int32 [n+1], on the device.
        longest: tokens of the longest sequence.
    """

    def __init__(self, places: Sequence[slice], offsets: Sequence[int], device: torch.device):
        self.places = places
        self.longest = int(np.diff(offsets).max())
        self.offsets = torch.tensor(offsets, dtype=torch.int32, device=device)

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """[T, heads, …] → [tokens, heads, …]"""
        return torch.cat([x[places] for places in self.places]) if len(self.places) > 1 else x[self.places[0]]

    def untake(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """[tokens, heads, …] → for each slice, [L, heads, …]"""
        return x.split([places.stop - places.start for places in self.places])


def _ends(places: Iterator[slice]) -> list[int]:
    return np.cumsum([0, *(p.stop - p.start for p in places)]).tolist()
