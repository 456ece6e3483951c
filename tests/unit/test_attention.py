"""Attention of a forest against plain attention with a mask of all that each token may see."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from pipeline.learning import attention
from pipeline.learning.attention import forest_attention, parts_of
from pipeline.learning.forest import build_forest
from pipeline.rollout.prefix_tree import PrefixTree

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CHOICES = [("cpu", "padded"), *([("cuda", "padded"), ("cuda", "fa2")] if torch.cuda.is_available() else [])]
HEADS = [(4, 4), (6, 2), (4, 1)]  # of queries, and of keys
SCALE = 0.3
CPU = torch.device("cpu")


def laid_out(sequences, least_shared=1):
    """The forest of some sequences, and which tokens of the row each one sees, bool [T, T]."""
    tree = PrefixTree.of(sequences, least_shared)
    forest, places = build_forest(tree.lengths.tolist(), tree.shared.tolist())
    seen = torch.zeros(forest.tokens, forest.tokens, dtype=torch.bool)
    for at in places:
        for t, place in enumerate(at):
            seen[place, at[: t + 1]] = True
    return forest, seen


def inputs(forest, heads, head_size, device, dtype):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, n, forest.tokens, head_size) for n in (heads[0], heads[1], heads[1]))
    upstream = torch.randn(1, forest.tokens, heads[0], head_size)
    return *(x.to(device, dtype).requires_grad_() for x in (query, key, value)), upstream.to(device, dtype)


def with_gradients(out, upstream, *leaves):
    return out.detach(), *torch.autograd.grad(out, leaves, upstream)


def ours(forest, query, key, value, upstream, chosen="padded"):
    parts = parts_of(forest, query.device, chosen)
    out, _ = forest_attention(None, query, key, value, None, forest=parts, scaling=SCALE)
    return with_gradients(out, upstream, query, key, value)


def plain(seen, query, key, value, upstream, dtype):
    leaves = [x.detach().to(dtype).requires_grad_() for x in (query, key, value)]
    out = scaled_dot_product_attention(*leaves, attn_mask=seen.to(query.device), scale=SCALE, enable_gqa=True)
    return with_gradients(out.transpose(1, 2), upstream.to(dtype), *leaves)


def distance(a, b) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_in_float32_it_is_that_of_a_mask_for_trees_of_any_shape(device, seed):
    rng = random.Random(seed)
    words = rng.choice([1, 2, 3])
    sequences = [np.array([rng.randrange(words) for _ in range(rng.randint(1, 14))]) for _ in range(rng.randint(1, 8))]
    forest, seen = laid_out(sequences, rng.choice([1, 2, 4]))
    given_ = inputs(forest, rng.choice(HEADS), 8, device, torch.float32)
    for got, expected in zip(ours(forest, *given_), plain(seen, *given_, torch.float64), strict=True):
        assert (got - expected).abs().max() < 1e-4 * max(1, expected.abs().max())


@pytest.mark.parametrize("device", DEVICES)
def test_padding_adds_nothing_where_attention_is_sharp(device):
    """Branches of 20 and 19 tokens share a padded batch. A query's scores differ by hundreds, so that the exponential
    of a score of the padding overflows unless it is kept out."""
    sequences = [np.arange(20), np.arange(100, 119), np.concatenate([np.arange(20), np.arange(200, 219)])]
    forest, seen = laid_out(sequences)
    query, key, value, upstream = inputs(forest, (4, 2), 8, device, torch.float32)
    query, key = ((15 * x).detach().requires_grad_() for x in (query, key))
    given_ = query, key, value, upstream
    for got, expected in zip(ours(forest, *given_), plain(seen, *given_, torch.float64), strict=True):
        assert (got - expected).abs().max() < 1e-3 * max(1, expected.abs().max())


def group_of_two_sections():
    """At the proportions of a group: 940 tokens of instruction, problem and section; then memory, request, response."""
    rng = np.random.default_rng(0)
    root = rng.integers(0, 99, 40)
    sections = [np.concatenate([root, rng.integers(0, 99, 900)]) for _ in range(2)]
    sequences = [np.concatenate([s, rng.integers(0, 99, rng.integers(90, 200))]) for s in sections for _ in range(4)]
    forest, seen = laid_out(sequences)
    assert [len(level) for level in forest.levels] == [2, 1]
    return forest, seen


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("heads", HEADS)
def test_in_float32_it_is_exact_at_the_proportions_of_a_group(device, heads):
    forest, seen = group_of_two_sections()
    given_ = inputs(forest, heads, 64, device, torch.float32)
    for got, expected in zip(ours(forest, *given_), plain(seen, *given_, torch.float64), strict=True):
        assert distance(got, expected) < 1e-5


@pytest.mark.parametrize(("device", "chosen"), CHOICES)
@pytest.mark.parametrize("heads", HEADS)
def test_in_bfloat16_it_rounds_no_worse_than_plain_attention(device, chosen, heads):
    forest, seen = group_of_two_sections()
    given_ = inputs(forest, heads, 64, device, torch.bfloat16)
    exact, rounded = plain(seen, *given_, torch.float64), plain(seen, *given_, torch.bfloat16)
    for got, expected, usual in zip(ours(forest, *given_, chosen), exact, rounded, strict=True):
        assert distance(got, expected) < 1.5 * distance(usual, expected)


@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_rounded_lengths_of_padded_batches_change_no_result(monkeypatch, multiple):
    """Branches of 90 to 900 tokens, several in a batch, with scores so sharp that padding would be seen."""
    forest, seen = group_of_two_sections()
    query, key, value, upstream = inputs(forest, (4, 2), 16, "cpu", torch.float32)
    query, key = ((5 * x).detach().requires_grad_() for x in (query, key))
    given_ = query, key, value, upstream
    monkeypatch.setattr(attention, "ROUNDED", {"cpu": multiple})
    batches = [part.queries.take(query[0].transpose(0, 1)) for part in parts_of(forest, CPU, "padded").branches]
    assert all(batch.shape[2] % multiple == 0 for batch in batches)
    for got, expected in zip(ours(forest, *given_), plain(seen, *given_, torch.float64), strict=True):
        assert distance(got, expected) < 1e-4


def test_a_sliding_window_is_refused_rather_than_ignored():
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="sliding window"):
        forest_attention(None, x, x, x, None, forest=None, sliding_window=4)
