"""Model FLOPs against torch's own counter, and the metrics made of them."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from pipeline.learning.device_memory import built_architecture
from pipeline.learning.flops import FORWARD, FORWARD_AND_BACKWARD, Computed, forward_flops, peak_flops, speeds

SIZES = {
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 700,
    "attn_implementation": "eager",
}
MODELS = {"llama": LlamaConfig(**SIZES, head_dim=48), "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True)}
TOKENS = 40


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_that_torch_counts(name):
    """Torch counts the masked half of the attention, too."""
    model = AutoModelForCausalLM.from_config(MODELS[name])
    architecture, everything = built_architecture(model.config), Computed(TOKENS, TOKENS**2, TOKENS)
    tokens = torch.arange(TOKENS)[None]
    with FlopCounterMode(display=False) as forward:
        loss = model(tokens, labels=tokens).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    counted = forward.get_total_flops()
    assert forward_flops(architecture, everything) == pytest.approx(counted, rel=1e-3)
    assert FORWARD_AND_BACKWARD * forward_flops(architecture, everything) == pytest.approx(
        counted + backward.get_total_flops(), rel=0.01
    )
    one_less = forward_flops(architecture, everything - Computed(0, 0, 1))
    assert forward_flops(architecture, everything) - one_less == 2 * 192 * 700


def test_a_mixture_of_experts_has_no_flops():
    """Only some of its parameters compute a token."""
    from actors.learning.rank import LearnerRank

    def described(config):
        return LearnerRank.describe(
            SimpleNamespace(
                engine=SimpleNamespace(model=SimpleNamespace(config=config), checkpointed=0, attention="padded")
            )
        )

    plain = MODELS["llama"]
    assert described(plain)[1] == built_architecture(plain)
    assert described(LlamaConfig(**SIZES, head_dim=48, num_experts=8))[1] is None


def test_speeds_are_per_device_and_second():
    architecture = built_architecture(MODELS["llama"])
    computed = Computed(1000, 50_000, 300)
    flops = forward_flops(architecture, computed)
    made = speeds("learner", computed, 4.0, architecture, peak=1e9, passes=FORWARD_AND_BACKWARD)
    assert made == {
        "learner_tokens_per_device_second": 250.0,
        "learner_tflops": pytest.approx(3 * flops / 4 / 1e12),
        "learner_mfu": pytest.approx(3 * flops / 4 / 1e9),
    }
    assert speeds("generator", computed, 4.0, architecture, None, FORWARD) == {
        "generator_tokens_per_device_second": 250.0,
        "generator_tflops": pytest.approx(flops / 4 / 1e12),
        "generator_mfu": None,
    }
    assert speeds("learner", computed, 4.0, None, 1e9, FORWARD)["learner_tflops"] is None
    assert set(speeds("learner", computed, 0.0, architecture, 1e9, FORWARD).values()) == {None}


@pytest.mark.parametrize(
    ("device", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA A10G", "bfloat16", 70e12),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16", None),
        ("NVIDIA L40", "bfloat16", 181e12),
        ("NVIDIA RTX A4000", "bfloat16", None),
        ("NVIDIA RTX A1000", "bfloat16", None),
        ("NVIDIA GB200", "bfloat16", 2500e12),
        ("NVIDIA H200 NVL", "bfloat16", 835e12),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", None),
        ("NVIDIA A100-SXM4-80GB", "float32", None),
        ("Some new device", "bfloat16", None),
        ("", "bfloat16", None),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_name(device, dtype, peak):
    assert peak_flops(device, dtype) == peak
