"""packed_sdpa against attention of each conversation by itself, with grouped queries."""

import pytest
import torch

from pipeline.learning.attention import packed_sdpa


@pytest.mark.parametrize("lengths", [[1], [5], [3, 1, 7], [4, 4]])
def test_each_conversation_attends_to_its_own_past_only(lengths):
    torch.manual_seed(0)
    total = sum(lengths)
    query, key, value = torch.randn(1, 4, total, 8), torch.randn(1, 2, total, 8), torch.randn(1, 2, total, 8)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    out, _ = packed_sdpa(None, query, key, value, None, position_ids=positions, scaling=0.3)
    start = 0
    for n in lengths:
        for t in range(n):
            for head in range(4):
                keys = key[0, head // 2, start : start + t + 1]
                weights = torch.softmax(0.3 * keys @ query[0, head, start + t], 0)
                expected = weights @ value[0, head // 2, start : start + t + 1]
                assert torch.allclose(out[0, start + t, head], expected, atol=1e-5)
        start += n


def test_a_sliding_window_is_refused_rather_than_ignored():
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="sliding windows"):
        packed_sdpa(None, x, x, x, None, position_ids=torch.arange(2)[None], sliding_window=4)
