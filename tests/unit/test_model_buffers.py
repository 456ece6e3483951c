"""A buffer that loading has changed is found."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.sections import ModelSection


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_changed_buffer_is_found_and_one_that_a_checkpoint_holds_is_left_alone(tmp_path, dtype):
    """DeepSeek-V3 keeps a buffer of its checkpoint in float32."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    from actors.learning.zero_engine import _check_buffers

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    ranks = {"kv_lora_rank": 8, "q_lora_rank": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2}
    groups = {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 0, "num_hidden_layers": 1}
    DeepseekV3ForCausalLM(DeepseekV3Config(**sizes, **heads, **ranks, **groups)).to(dtype).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    buffers = {name: buffer.dtype for name, buffer in loaded.named_buffers()}
    assert set(buffers.values()) == {torch.float32} and any("correction_bias" in name for name in buffers)
    engine = SimpleNamespace(module=SimpleNamespace(model=loaded))
    model = ModelSection(path=str(tmp_path), dtype=str(dtype).removeprefix("torch."))
    _check_buffers(engine, model)
    loaded.model.rotary_emb.inv_freq = loaded.model.rotary_emb.inv_freq * (1 + 2**-8)
    with pytest.raises(RuntimeError, match="DeepSpeed has changed the buffer model.rotary_emb.inv_freq"):
        _check_buffers(engine, model)
