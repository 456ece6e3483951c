"""Estimates a learner rank's memory from the sizes of its model, and how many layers it must checkpoint."""

from dataclasses import dataclass

from pipeline.sections import LearnerSection

# DeepSpeed's limits on a device, set by actors/learning/zero_engine.py, in numbers.
GATHERED_PARAMETERS = 10**9
REDUCE_BUCKET = 10**8
# Size limit of a chunk's logits in pipeline/learning/policy.py, in float32 numbers: 256 MiB.
LOGITS_IN_MEMORY = 2**26
# Share of a device's memory that the estimate of `rank_memory` may fill. The rest is for what it leaves out (the
# context, communication buffers, fragmentation) and for its error.
USABLE_SHARE = 0.8
BYTES = {"float32": 4, "bfloat16": 2}  # per weight, by dtype
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # model types whose parameters `architecture_of` can count

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
    query: int  # width of the queries; the attention's output has the same
    key_value: int  # width of the keys; the values have the same
    key_heads: int  # into which this width is divided
    vocabulary: int


def architecture_of(model_config: dict) -> Architecture | None:
    """Read the sizes from the content of a Hugging Face config.json.

    Returns:
        The sizes, or None if the model type is not in `FAMILIES` or a size is missing.
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
        query=query,
        key_value=key_value,
        key_heads=c["num_key_value_heads"],
        vocabulary=c["vocab_size"],
    )


def built_architecture(model_config) -> Architecture:
    """The sizes of any model type, from a transformers config. Parameters are counted on the meta device.

    Raises:
        AttributeError: the config does not have these sizes under their usual names.
        ValueError: the model has experts, so a token goes through some of the parameters only.
    """
    if any(getattr(model_config, experts, None) for experts in ("num_experts", "num_local_experts")):
        raise ValueError("the sizes of models with experts are unknown")
    heads = model_config.num_attention_heads
    width = getattr(model_config, "head_dim", None) or model_config.hidden_size // heads
    key_heads = getattr(model_config, "num_key_value_heads", heads)
    return Architecture(
        parameters=count_parameters(model_config),
        layers=model_config.num_hidden_layers,
        hidden=model_config.hidden_size,
        intermediate=model_config.intermediate_size,
        query=width * heads,
        key_value=width * key_heads,
        key_heads=key_heads,
        vocabulary=model_config.vocab_size,
    )


def count_parameters(model_config, trust_remote_code: bool = False) -> int:
    """The number of parameters of any model type, from a transformers config."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=trust_remote_code)
    return sum(parameter.numel() for parameter in model.parameters())


def layer_activations(architecture: Architecture, tokens: int, width: int) -> int:
    """Bytes that one layer keeps for its backward pass.

    These are the inputs of the two norms and their float32 copies, the normed states, queries, keys and values before
    and after rotation, the attention's output, and four tensors of the feed-forward width.

    Args:
        architecture: the model's sizes.
        tokens: tokens in the micro-batch.
        width: bytes per number.
    """
    a = architecture
    numbers = 8 * a.hidden + 4 * a.key_value + 4 * a.intermediate
    return tokens * (width * numbers + 4 * 2 * a.hidden)


def rank_memory(
    learner: LearnerSection, dtype: str, architecture: Architecture, ranks: int, checkpointed: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Estimated bytes of one learner rank: on its device at the peak of a backward pass, and in host memory.

    ZeRO-3 splits weights, gradients and optimizer state over the ranks (arXiv 1910.02054). AdamW keeps a float32 copy
    and two moments; gradients accumulate in float32. Not counted are the device's context and communication buffers,
    and in host memory the checkpoint and the reference model.

    Args:
        learner: the learner section.
        dtype: the weights' dtype.
        architecture: the model's sizes.
        ranks: the number of ranks.
        checkpointed: how many layers, from the first on, keep only their input. The others have freed what they kept
            when the backward pass recomputes the first of these.
    """
    a, tokens, width = architecture, learner.micro_batch_tokens, BYTES[dtype]
    share = -(-a.parameters // ranks)
    inputs = checkpointed * tokens * a.hidden * width
    device = {
        "weights": width * share,
        "layers gathered for computation": width * min(a.parameters, GATHERED_PARAMETERS),
        "activations": inputs + max(1, a.layers - checkpointed) * layer_activations(a, tokens, width),
        "gradients of activations, within a layer": 3 * width * tokens * a.intermediate,
        "gradients in transit between ranks": 4 * REDUCE_BUCKET + 2 * 4 * a.vocabulary * a.hidden,
        "logits of a chunk, their softmax and its gradient": 3 * 4 * min(LOGITS_IN_MEMORY, tokens * a.vocabulary),
    }
    host = {"weights on their way to the generators": width * share * (2 if learner.weight_deltas else 1)}
    state = host if learner.offload else device
    state["gradients"] = 4 * share
    state["optimizer state"] = 12 * share  # AdamW; Muon keeps one moment for matrices, not two
    return device, host


def layers_to_checkpoint(
    learner: LearnerSection, dtype: str, architecture: Architecture | None, ranks: int, layers: int, memory: int | None
) -> int:
    """How many layers a rank checkpoints: `learner.checkpoint_layers`, with `auto` resolved.

    auto is 0 on a CPU. On a GPU it is the fewest layers with which the estimate fits `USABLE_SHARE` of the rank's
    memory: of the whole device, or of its share if learner.num_gpus is below 1. It is all layers if none are enough,
    and if the model's sizes or the memory are unknown.

    Args:
        learner: the learner section.
        dtype: the weights' dtype.
        architecture: the model's sizes; None: unknown.
        ranks: the number of ranks.
        layers: the model's layers.
        memory: bytes of the device; None: unknown.
    """
    named = learner.checkpoint_layers
    if named == "all":
        return layers
    if named != "auto":
        return int(named)
    if not learner.num_gpus:
        return 0
    if architecture is None or memory is None:
        return layers
    room = USABLE_SHARE * memory * min(1.0, learner.num_gpus)
    for checkpointed in range(layers):
        device, _ = rank_memory(learner, dtype, architecture, ranks, checkpointed)
        if sum(device.values()) <= room:
            return checkpointed
    return layers
