"""Small policies with random weights, of the architectures that are trained."""

import torch

from pipeline.learning.policy import Policy

FAMILIES = ("llama", "qwen2")  # both with grouped queries; Qwen2's attention has biases
PLAIN = "sdpa"  # transformers' own attention


def small_policy(
    family: str,
    seed: int = 0,
    attention: str | None = None,
    *,
    temperature: float = 0.8,
    dtype: torch.dtype = torch.float32,
    **sizes: int,
) -> Policy:
    """A policy whose weights depend on the seed and the sizes alone.

    Args:
        family: one of `FAMILIES`.
        seed: of the weights.
        attention: transformers' name of an attention; None: the learner's.
        temperature: of the log-probs.
        dtype: of the weights; the entropies have a gradient.
        sizes: other than those of two layers and 32 hidden numbers.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    of_model = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": family == "llama",
    } | sizes
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config({"llama": LlamaConfig, "qwen2": Qwen2Config}[family](**of_model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # large enough that attention and log-probs differ from token to token
                parameter.normal_(std=1.5 * of_model["hidden_size"] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5)
    policy = Policy(model.to(dtype), temperature, train_entropy=True)
    if attention:
        policy.model.set_attn_implementation(attention)
    return policy
