"""The plan that --dry-run prints: counts, learning rates, tokens, and the memory of a learner rank."""

from dataclasses import dataclass
from typing import cast

from pipeline.learning.attention_choice import AUTO, FLASH, HALF, PADDED
from pipeline.learning.device_memory import (
    BYTES,
    USABLE_SHARE,
    Architecture,
    layers_to_checkpoint,
    rank_memory,
)
from pipeline.learning.schedule import learning_rate
from pipeline.run.config import TrainingConfig
from pipeline.run.kv_cache import GIB, cache_bytes, fitting_sequences, token_bytes
from pipeline.run.ledger import discard_limit

ROWS_SHOWN = 12
DEVICES_GIB = (24, 40, 80, 141)  # of common GPUs


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


def learner_memory(
    config: TrainingConfig, architecture: Architecture, checkpointed: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Estimated bytes of one learner rank, on its device and in host memory (`rank_memory`), with the reference model.

    Args:
        config: the run's configuration.
        architecture: the model's sizes.
        checkpointed: how many layers keep only their input.
    """
    le, dtype = config.learner, config.model.dtype
    device, host = rank_memory(le, dtype, architecture, le.ranks, checkpointed)
    if config.objective.kl_coefficient:
        host["reference model"] = BYTES[dtype] * -(-architecture.parameters // le.ranks)
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
            _attention_line(config),
            *_sequence_lines(config, architecture),
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
        unknown = ["the model's architecture is unknown: no memory estimate"]
        automatic = config.learner.checkpoint_layers == "auto" and config.learner.num_gpus
        return [*unknown, *["learner.checkpoint_layers=auto is all layers then"] * bool(automatic)]
    checkpointed, why = _checkpointed(config, architecture)
    device, host = learner_memory(config, architecture, checkpointed)
    lines = [
        *why,
        f"{architecture.parameters:,} parameters; estimated memory per learner rank with {checkpointed} of "
        f"{architecture.layers} layers checkpointed, in GiB:",
    ]
    for place, parts in (("on its device", device), ("in host memory", host)):
        if parts:
            lines.append(f"  {sum(parts.values()) / GIB:7.2f}  {place}")
            lines += [f"  {size / GIB:14.2f}  {what}" for what, size in parts.items()]
    weights = BYTES[config.model.dtype] * architecture.parameters / config.generator.tensor_parallel / GIB
    return [
        *lines,
        f"  {weights:7.2f}  for the weights on each device of a generator, beside its KV cache",
    ]


def _attention_line(config: TrainingConfig) -> str:
    """The kernels of the learners' attention. The ranks choose by their own GPU, which is unknown here."""
    named = config.model.attention
    if named != AUTO:
        return f"model.attention={named}"
    if not config.learner.num_gpus or config.model.dtype not in HALF:
        return f"model.attention=auto: {PADDED}"
    *best, last = FLASH
    return f"model.attention=auto: the first of {', '.join(best)} and {last} that works on the learners' GPU"


def _sequence_lines(config: TrainingConfig, architecture: Architecture | None) -> list[str]:
    """How many conversations an engine decodes together if it chooses, and why."""
    g, window = config.generator, config.agent.window
    if g.max_sequences:
        return []
    if architecture is None:
        return ["generator.max_sequences=0: unknown, because the model's architecture is"]
    each = window * token_bytes(config, architecture) / GIB

    def fitting(memory: int | None) -> str:
        cache = cast(int, cache_bytes(config, architecture, memory)) / GIB
        return f"{fitting_sequences(config, architecture, memory)} in a KV cache of {cache:.1f} GiB"

    if cache_bytes(config, architecture, None) is not None:
        fits = fitting(None)
    else:
        fits = ", ".join(f"{fitting(size * GIB)} on GPUs with {size} GiB" for size in DEVICES_GIB)
    return [
        f"generator.max_sequences=0: conversations of {window} tokens have {each:.3f} GiB each, so an engine decodes "
        f"together {fits}"
    ]


def _checkpointed(config: TrainingConfig, architecture: Architecture) -> tuple[int, list[str]]:
    """The number of checkpointed layers for the estimate, and where it comes from.

    The ranks choose by their own device. It is unknown here, so the estimate has all layers checkpointed.
    """
    le, layers = config.learner, architecture.layers

    def chosen(memory: int | None) -> int:
        return layers_to_checkpoint(le, config.model.dtype, architecture, le.ranks, layers, memory)

    if le.checkpoint_layers != "auto":
        return chosen(None), [f"learner.checkpoint_layers={le.checkpoint_layers} of {layers} layers"]
    if not le.num_gpus:
        return 0, ["learner.checkpoint_layers=auto: 0 on CPUs"]
    part = f" of its {le.num_gpus:g}" if le.num_gpus < 1 else ""
    fits = ", ".join(f"{chosen(size * GIB)} with {size} GiB" for size in DEVICES_GIB)
    return layers, [
        f"learner.checkpoint_layers=auto: as few of the {layers} layers as fit {USABLE_SHARE:.0%}{part} of the device: "
        f"{fits}"
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
