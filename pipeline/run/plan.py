"""What a run will do and what it needs, for --dry-run: counts, learning rates, tokens, and memory of a learner rank."""

from dataclasses import dataclass

from pipeline.config import Config
from pipeline.learning.schedule import ScheduledStep, schedule_table
from pipeline.run.ledger import discard_limit

GIB = 2**30
# What actors/learning/zero_engine.py lets DeepSpeed hold on a device, in numbers.
GATHERED_PARAMETERS = 10**9
REDUCE_BUCKET = 10**8
# What pipeline/learning/policy.py lets the logits of a chunk take, in float32 numbers: 256 MiB.
LOGITS_IN_MEMORY = 2**26
ROWS_SHOWN = 12
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


def weight_bytes(config: Config) -> int:
    """Bytes of one weight of the model."""
    return {"float32": 4, "bfloat16": 2}[config.model.dtype]


def learner_memory(config: Config, architecture: Architecture) -> tuple[dict[str, int], dict[str, int]]:
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


def document_chunks(config: Config, document_tokens: int | None) -> int | None:
    """Chunks of a typical training document of so many tokens; None if that is not known."""
    if config.data.source == "synthetic":
        return config.data.synthetic_chunks
    return None if document_tokens is None else -(-document_tokens // config.agent.chunk_tokens)


def plan_text(config: Config, architecture: Architecture | None, document_tokens: int | None = None) -> str:
    """What the run will do.

    Args:
        config: of the run, checked.
        architecture: of the model, for the memory estimate; None if it is not known.
        document_tokens: of a typical document; None if it is not known.
    """
    a, t, le = config.agent, config.train, config.learner
    groups = t.steps * t.groups_per_step
    return "\n".join(
        [
            "# plan",
            f"{t.steps} learner steps × {t.groups_per_step} problems × {t.group_size} episodes = "
            f"{groups} groups, {groups * t.group_size} episodes",
            f"{t.updates_per_step} optimizer step(s) a learner step, of {t.groups_per_step // t.updates_per_step} "
            f"groups each = {t.steps * t.updates_per_step} optimizer steps",
            *_token_lines(config, document_chunks(config, document_tokens)),
            f"window {a.window}: problem ≤ {a.problem_tokens}, memory ≤ {a.memory_tokens}, chunk ≤ {a.chunk_tokens}, "
            f"answer ≤ {a.answer_tokens}, the rest is the prompt template",
            f"staleness ≤ {t.max_staleness}: at most {(t.max_staleness + 1) * t.groups_per_step} groups "
            "in flight and buffered",
            *_dynamic_sampling_line(config),
            f"{config.generator.count} generator(s), {le.ranks} learner rank(s), {config.scorer.count} scorer(s)",
            f"weights in {config.model.dtype}",
            f"checkpoints every {t.checkpoint_every} steps and at the end",
            "",
            *_memory_lines(config, architecture),
            "",
            *schedule_lines(schedule_table(config)),
        ]
    )


def _token_lines(config: Config, chunks: int | None) -> list[str]:
    a, t = config.agent, config.train
    if chunks is None:
        return ["the documents' lengths, and so the tokens of a step, are not known without data.path"]
    episodes = t.groups_per_step * t.group_size
    slots = a.problem_tokens + a.memory_tokens
    written = episodes * (chunks * a.memory_tokens + a.answer_tokens)
    read = episodes * (chunks * (slots + a.chunk_tokens) + slots)
    return [
        f"documents of about {chunks} chunks: {chunks + 1} conversations an episode, {episodes * (chunks + 1)} a step",
        f"tokens a step: about {read:,} in prompts, without their template, and at most {written:,} in responses",
    ]


def _dynamic_sampling_line(config: Config) -> list[str]:
    t = config.train
    if not t.dynamic_sampling:
        return []
    return [
        f"dynamic sampling: a step discards at most {discard_limit(t)} groups of equal rewards, then it trains them too"
    ]


def _memory_lines(config: Config, architecture: Architecture | None) -> list[str]:
    if architecture is None:
        return ["the model's sizes are not known: no memory estimate"]
    device, host = learner_memory(config, architecture)
    lines = [f"{architecture.parameters:,} parameters; estimated memory of a learner rank, in GiB:"]
    for place, parts in (("on its device", device), ("in host memory", host)):
        if parts:
            lines.append(f"  {sum(parts.values()) / GIB:7.2f}  {place}")
            lines += [f"  {size / GIB:14.2f}  {what}" for what, size in parts.items()]
    weights = weight_bytes(config) * architecture.parameters / config.generator.tensor_parallel / GIB
    return [
        *lines,
        f"  {weights:7.2f}  for the weights in each device of a generator; its KV cache is what it is given",
    ]


def schedule_lines(table: list[ScheduledStep]) -> list[str]:
    """The table of steps, optimizer steps and learning rates.

    Of a long run, evenly spaced rows and that of the end of the warm-up.
    """
    last = len(table) - 1
    peak = max(range(len(table)), key=lambda i: table[i].learning_rate)  # the first of the highest
    spaced = {round(last * i / ROWS_SHOWN) for i in range(ROWS_SHOWN + 1)}
    shown = range(len(table)) if last < ROWS_SHOWN else sorted(spaced | {peak})
    return ["  step  optimizer steps  learning rate"] + [
        f"{table[i].step:6}  {table[i].updates_total:15}  {table[i].learning_rate:13.6g}" for i in shown
    ]
