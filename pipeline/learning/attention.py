"""Block-diagonal attention over a packed row, on any device, without a [T, T] mask.

Registered with transformers as "packed_sdpa". For the attention only, the row's conversations become a padded batch, so
the cost is quadratic in the longest conversation, not in the row. On GPUs with flash-attention installed,
"flash_attention_2" reads the same positions and needs no padding.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "packed_sdpa"


def packed_sdpa(module, query, key, value, attention_mask, *, position_ids, scaling=None, sliding_window=None, **_):
    """Causal attention within each conversation of one packed row.

    Args:
        module: the calling attention layer; not used.
        query: [1, heads, T, D].
        key: [1, heads, T, D]; may have fewer heads than the query (grouped-query attention).
        value: like `key`.
        attention_mask: not used.
        position_ids: int64 [1, T], starting at 0 in every conversation.
        scaling: factor of the scores; None: 1/√D.
        sliding_window: must be None.

    Returns:
        The output, [1, T, heads, D], and None in place of the attention weights.

    Raises:
        ValueError: the model has a sliding window.
    """
    if sliding_window is not None:
        raise ValueError("packed_sdpa does not support sliding windows; set model.attention=flash_attention_2")
    positions = position_ids[0]
    begins = positions == 0
    longest = int(positions.max()) + 1
    # Index of each token of the row in the flattened padded batch.
    place = (begins.cumsum(0) - 1) * longest + positions
    rows = int(begins.sum())

    def padded(x: torch.Tensor) -> torch.Tensor:
        flat = x.new_zeros(rows * longest, *x.shape[1::2]).index_copy(0, place, x[0].transpose(0, 1))
        return flat.view(rows, longest, *x.shape[1::2]).transpose(1, 2)

    # Padding follows the tokens, so causal attention never reads it.
    out = scaled_dot_product_attention(
        padded(query),
        padded(key),
        padded(value),
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).flatten(0, 1)[place][None], None


AttentionInterface.register(NAME, packed_sdpa)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
