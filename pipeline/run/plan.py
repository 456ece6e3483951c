"""The plan that --dry-run prints: counts, learning rates, tokens, and the memory of a learner rank."""

from dataclasses import dataclass

from pipeline.learning.device_memory import (
    GATHERED_PARAMETERS,
    LOGITS_IN_MEMORY,
    REDUCE_BUCKET,
    Architecture,
    layer_activations,
)
from pipeline.learning.schedule import learning_rate
from pipeline.run.config import TrainingConfig
from pipeline.run.ledger import discard_limit

GIB = 2**30
ROWS_SHOWN = 12


@dataclass(frozen=True)
class ScheduledStep:
    """A learner step as metrics.jsonl will show it if no update is skipped."""

    step: int  # from 1
    updates_total: int  # updates done at its end
    learning_rate: float  # at its last update


def schedule_table(config: TrainingConfig) -> list[ScheduledStep]:
    """One row for each step of the run."""
    t = config.train
    ends = [step * t.updates_per_step for step in range(1, t.steps + 1)]
    return [
        ScheduledStep(step, end, learning_rate(config.learner, end - 1, ends[-1])) for step, end in enumerate(ends, 1)
    ]


def weight_bytes(config: TrainingConfig) -> int:
    """Bytes per weight of the model."""
    return {"float32": 4, "bfloat16": 2}[config.model.dtype]


def learner_memory(config: TrainingConfig, architecture: Architecture) -> tuple[dict[str, int], dict[str, int]]:
    """Estimated bytes of one learner rank: on its device at the peak of a backward pass, and in host memory.

    ZeRO-3 splits weights, gradients and optimizer state over the ranks (arXiv 1910.02054). AdamW keeps a float32 copy
    and two moments; gradients accumulate in float32. Not counted are the device's context and communication buffers,
    and in host memory the checkpoint.
    """
    le, a = config.learner, architecture
    width = weight_bytes(config)
    share = -(-a.parameters // le.ranks)
    tokens = le.micro_batch_tokens
    layer = layer_activations(a, tokens, width)
    kept = a.layers * tokens * a.hidden * width + layer if le.activation_checkpointing else a.layers * layer
    device = {
        "weights": width * share,
        "layers gathered for computation": width * min(a.parameters, GATHERED_PARAMETERS),
        "activations": kept,
        "gradients of activations, within a layer": 3 * width * tokens * a.intermediate,
        "gradients in transit between ranks": 4 * REDUCE_BUCKET + 2 * 4 * a.vocabulary * a.hidden,
        "logits of a chunk, their softmax and its gradient": 3 * 4 * min(LOGITS_IN_MEMORY, tokens * a.vocabulary),
    }
    host = {"weights on their way to the generators": width * share}
    state = host if le.offload else device
    state["gradients"] = 4 * share
    state["optimizer state"] = 12 * share  # AdamW; Muon keeps one moment for matrices, not two
    if config.objective.kl_coefficient:
        host["reference model"] = width * share
    return device, host


def document_chunks(config: TrainingConfig, document_tokens: int | None) -> int | None:
    """Number of chunks in a typical training document of `document_tokens` tokens; None if unknown."""
    if config.data.source == "synthetic":
        return config.data.synthetic_chunks
    return None if document_tokens is None else -(-document_tokens // config.agent.chunk_tokens)


def plan_text(config: TrainingConfig, architecture: Architecture | None, document_tokens: int | None = None) -> str:
    """The plan of a run, as text.

    Args:
        config: the run's configuration, already checked.
        architecture: the model's architecture, for the memory estimate; None if unknown.
        document_tokens: length of a typical document; None if unknown.
    """
    a, t, le = config.agent, config.train, config.learner
    groups = t.steps * t.groups_per_step
    return "\n".join(
        [
            "# plan",
            f"{t.steps} learner steps × {t.groups_per_step} problems × {t.group_size} episodes = "
            f"{groups} groups, {groups * t.group_size} episodes",
            f"{t.updates_per_step} optimizer step(s) per learner step, of {t.groups_per_step // t.updates_per_step} "
            f"groups each = {t.steps * t.updates_per_step} optimizer steps",
            *_token_lines(config, document_chunks(config, document_tokens)),
            f"window {a.window}: problem ≤ {a.problem_tokens}, memory ≤ {a.memory_tokens}, chunk ≤ {a.chunk_tokens}, "
            f"answer ≤ {a.answer_tokens}; the prompt template takes the rest",
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


def _token_lines(config: TrainingConfig, chunks: int | None) -> list[str]:
    a, t = config.agent, config.train
    if chunks is None:
        why = f"data.path={config.data.path} cannot be read" if config.data.path else "data.path is not set"
        return [f"{why}: the documents' lengths, and so the tokens per step, are unknown"]
    episodes = t.groups_per_step * t.group_size
    slots = a.problem_tokens + a.memory_tokens
    written = episodes * (chunks * a.memory_tokens + a.answer_tokens)
    read = episodes * (chunks * (slots + a.chunk_tokens) + slots)
    return [
        f"documents of about {chunks} chunks: {chunks + 1} conversations per episode, "
        f"{episodes * (chunks + 1)} per step",
        f"tokens per step: about {read:,} in prompts (without the template), at most {written:,} in responses",
    ]


def _dynamic_sampling_line(config: TrainingConfig) -> list[str]:
    t = config.train
    if not t.dynamic_sampling:
        return []
    return [
        f"dynamic sampling: a step discards at most {discard_limit(t)} groups with equal rewards, then trains them too"
    ]


def _memory_lines(config: TrainingConfig, architecture: Architecture | None) -> list[str]:
    if architecture is None:
        return ["the model's architecture is unknown: no memory estimate"]
    device, host = learner_memory(config, architecture)
    lines = [f"{architecture.parameters:,} parameters; estimated memory per learner rank, in GiB:"]
    for place, parts in (("on its device", device), ("in host memory", host)):
        if parts:
            lines.append(f"  {sum(parts.values()) / GIB:7.2f}  {place}")
            lines += [f"  {size / GIB:14.2f}  {what}" for what, size in parts.items()]
    weights = weight_bytes(config) * architecture.parameters / config.generator.tensor_parallel / GIB
    return [
        *lines,
        f"  {weights:7.2f}  for the weights on each device of a generator, beside its KV cache",
    ]


def schedule_lines(table: list[ScheduledStep]) -> list[str]:
    """The table of steps, updates and learning rates.

    For a long run it has evenly spaced rows, and the row at the end of the warm-up.
    """
    last = len(table) - 1
    peak = max(range(len(table)), key=lambda i: table[i].learning_rate)  # the first maximum
    spaced = {round(last * i / ROWS_SHOWN) for i in range(ROWS_SHOWN + 1)}
    shown = range(len(table)) if last < ROWS_SHOWN else sorted(spaced | {peak})
    return ["  step  optimizer steps  learning rate"] + [
        f"{table[i].step:6}  {table[i].updates_total:15}  {table[i].learning_rate:13.6g}" for i in shown
    ]
