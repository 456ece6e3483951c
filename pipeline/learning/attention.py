"""Block-diagonal attention over a packed row, on any device, without a [T, T] mask.

Registered with transformers as "packed_sdpa". The row's conversations are laid side by side as a padded batch for
the attention alone, so the cost grows with the square of a conversation, not of the row. On GPUs with flash-attention
installed, "flash_attention_2" reads the same positions and needs no padding.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "packed_sdpa"


def packed_sdpa(module, query, key, value, attention_mask, *, position_ids, scaling=None, sliding_window=None, **_):
    """Causal attention within each conversation of one packed row.

    Args:
        module: the attention layer that calls; not used.
        query: [1, heads, T, D]; key and value may have fewer heads (grouped queries).
        attention_mask: None.
        position_ids: int64 [1, T], from 0 in every conversation.
        scaling: of the scores; 1/√D when None.
        sliding_window: must be None.

    Returns:
        [1, T, heads, D], and None for the attention weights.
    """
    if sliding_window is not None:
        raise ValueError("packed_sdpa does not know sliding windows; set model.attention=flash_attention_2")
    positions = position_ids[0]
    begins = positions == 0
    longest = int(positions.max()) + 1
    # Where each token of the row stands in the padded batch, flattened.
    place = (begins.cumsum(0) - 1) * longest + positions
    rows = int(begins.sum())

    def padded(x: torch.Tensor) -> torch.Tensor:
        flat = x.new_zeros(rows * longest, *x.shape[1::2]).index_copy(0, place, x[0].transpose(0, 1))
        return flat.view(rows, longest, *x.shape[1::2]).transpose(1, 2)

    # Padding follows the tokens, so causal attention never looks at it.
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
