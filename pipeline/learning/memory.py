"""The memory of a learner rank, estimated from the sizes of its model."""

from dataclasses import dataclass

from pipeline.run.config import TrainingConfig

# What actors/learning/zero_engine.py lets DeepSpeed hold on a device, in numbers.
GATHERED_PARAMETERS = 10**9


REDUCE_BUCKET = 10**8


# What pipeline/learning/policy.py lets the logits of a chunk take, in float32 numbers: 256 MiB.
LOGITS_IN_MEMORY = 2**26


FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # decoders whose parameters are counted here


SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
)


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder model with gated feed-forward layers."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    key_value: int  # width of the keys, and of the values
    vocabulary: int


def architecture_of(model_config: dict) -> Architecture | None:
    """Read the sizes off the content of a Hugging Face config.json.

    Returns:
        None if the model is of a family whose parameters are not counted here, or a size is left to its defaults.
    """
    c = {"tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, **model_config}
    family = c.get("model_type")
    if family not in FAMILIES or any(c.get(name) is None for name in SIZES):
        return None
    hidden, inner, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    head = c.get("head_dim") or (None if family == "qwen3" else hidden // heads)
    if head is None:
        return None
    query, key_value = head * heads, head * c["num_key_value_heads"]
    attention = hidden * (2 * query + 2 * key_value)
    if family == "qwen2":
        attention += query + 2 * key_value
    elif c["attention_bias"]:
        attention += query + 2 * key_value + hidden
    if family == "qwen3":
        attention += 2 * head  # norms of queries and keys
    feed_forward = 3 * hidden * inner + (2 * inner + hidden if c["mlp_bias"] else 0)
    embeddings = c["vocab_size"] * hidden * (1 if c["tie_word_embeddings"] else 2)
    return Architecture(
        parameters=embeddings + c["num_hidden_layers"] * (attention + feed_forward + 2 * hidden) + hidden,
        layers=c["num_hidden_layers"],
        hidden=hidden,
        intermediate=inner,
        key_value=key_value,
        vocabulary=c["vocab_size"],
    )


def built_architecture(model_config) -> Architecture:
    """The same of any family, from a transformers config: its parameters are counted on a model without memory.

    Raises:
        AttributeError: the config does not have these sizes under their usual names.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    heads = model_config.num_attention_heads
    width = getattr(model_config, "head_dim", None) or model_config.hidden_size // heads
    return Architecture(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=model_config.num_hidden_layers,
        hidden=model_config.hidden_size,
        intermediate=model_config.intermediate_size,
        key_value=width * getattr(model_config, "num_key_value_heads", heads),
        vocabulary=model_config.vocab_size,
    )


def layer_activations(architecture: Architecture, tokens: int, width: int) -> int:
    """Bytes that one layer keeps for its backward pass.

    The inputs of the two norms and their float32 copies, the normed states, queries, keys and values before and
    after rotation, the attention's output, and four of the feed-forward width.

    Args:
        architecture: of the model.
        tokens: in the micro-batch.
        width: bytes of a number.
    """
    a = architecture
    numbers = 8 * a.hidden + 4 * a.key_value + 4 * a.intermediate
    return tokens * (width * numbers + 4 * 2 * a.hidden)


def weight_bytes(config: TrainingConfig) -> int:
    """Bytes of one weight of the model."""
    return {"float32": 4, "bfloat16": 2}[config.model.dtype]


def learner_memory(config: TrainingConfig, architecture: Architecture) -> tuple[dict[str, int], dict[str, int]]:
    """Estimated bytes of one learner rank: on its device at the height of a backward pass, and in its host's memory.

    ZeRO-3 splits weights, gradients and optimizer state over the ranks (arXiv 1910.02054); AdamW keeps a float32 copy
    and two moments, and gradients are added up in float32. Not counted: the device's own context and communication
    buffers, and in host memory the checkpoint and the weights on their way to the generators (rank 0).
    """
    le, a = config.learner, architecture
    width = weight_bytes(config)
    share = -(-a.parameters // le.ranks)
    tokens = le.micro_batch_tokens
    layer = layer_activations(a, tokens, width)
    kept = a.layers * tokens * a.hidden * width + layer if le.activation_checkpointing else a.layers * layer
    device = {
        "weights": width * share,
        "layers gathered to compute": width * min(a.parameters, GATHERED_PARAMETERS),
        "activations": kept,
        "their gradients, within a layer": 3 * width * tokens * a.intermediate,
        "gradients on their way to their rank": 4 * REDUCE_BUCKET + 2 * 4 * a.vocabulary * a.hidden,
        "logits of a chunk, their softmax and its gradient": 3 * 4 * min(LOGITS_IN_MEMORY, tokens * a.vocabulary),
    }
    host = {}
    state = host if le.offload else device
    state["gradients"] = 4 * share
    state["optimizer state"] = 12 * share  # AdamW; Muon keeps one moment of the matrices, not two
    if config.objective.kl_coefficient:
        host["reference model"] = width * share
    return device, host
