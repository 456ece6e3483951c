"""Bytes of new weights as deltas: what changed since the version before, against all of it.

SmolLM2-135M takes steps of AdamW on policy gradients: windows of the shipped prose, half of them with advantage 1 and
half with -1. The weights are float32 as in ZeRO-3's optimizer, and each version is published in bfloat16, as
preset=memagent_7b does. The gradients are float32, because many CPUs cannot compute in bfloat16. AdamW's first steps
move every weight by the whole learning rate, later ones by less, so the table has the last half of the steps. Each
delta is applied, and the result compared bit by bit. Making and applying one are timed in one thread, beside the copy
and the check of a whole bucket, which every version needs. `learner.weight_deltas` switches them on.

By arithmetic, from the first row: a 7B model in bfloat16 has 14 GiB. Each of 24 ranks makes its deltas in 0.7 s, beside
the next step. A node applies them in 3 s of CPU time, in four threads. Sending whole buckets takes a node 15 s at
1 GB/s and 1.5 s at 10 GB/s (Broadcast). So deltas pay on networks of a few GB/s or less, and with many nodes. On faster
ones leave them off.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from jobs.bench.measuring import spread, table
from pipeline.config import CONFIGS
from pipeline.errors import ConfigError
from pipeline.weights.bucket_files import stage
from pipeline.weights.buckets import WeightBucket, pack_buckets
from pipeline.weights.deltas import delta_of, patched

PROSE = CONFIGS / "prose" / "training.txt"
BUCKET_BYTES = 2**26
GIB = 2**30


@dataclass
class Settings:
    model: str = "models/smollm2"  # `make smollm2`
    learning_rates: list[float] = field(default_factory=lambda: [1e-6, 1e-5])  # of AdamW, constant
    steps: int = 12  # optimizer steps with each
    windows: int = 8  # texts per step
    tokens: int = 96  # of each


@dataclass(frozen=True)
class Step:
    """The buckets of one version, all together."""

    bytes: int
    delta_bytes: int
    changed: float  # share of the words
    made_s: float
    applied_s: float
    staged_s: float


def run(settings: Settings) -> str:
    """Train with each learning rate; return the table. Raises `ConfigError`."""
    if not (Path(settings.model) / "config.json").is_file():
        raise ConfigError(f"model={settings.model} is no model's folder; `make smollm2` makes models/smollm2")
    if settings.steps < 2 or settings.windows < 2 or settings.tokens < 2:
        raise ConfigError("steps, windows and tokens must be at least 2")
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # it warns of a text longer than the window; only parts are read
    rows = []
    for rate in settings.learning_rates:
        steps = list(measured(settings, rate))[settings.steps // 2 :]
        rows.append(
            (
                f"{rate:g}",
                spread([100 * step.changed for step in steps], ".2f"),
                spread([100 * step.delta_bytes / step.bytes for step in steps], ".2f"),
                spread([step.made_s * GIB / step.bytes for step in steps]),
                spread([step.applied_s * GIB / step.bytes for step in steps]),
                spread([step.staged_s * GIB / step.bytes for step in steps]),
            )
        )
    heads = ("learning rate", "weights changed, %", "bytes, %", "made, s/GiB", "applied, s/GiB", "whole staged, s/GiB")
    return table(heads, rows)


def measured(settings: Settings, rate: float) -> Iterator[Step]:
    """Train, and yield what each version's deltas cost."""
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32, use_safetensors=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    advantages = torch.tensor([1.0, -1.0]).repeat(settings.windows)[: settings.windows]
    old = published(model)
    for number, windows in zip(range(1, settings.steps + 1), batches(settings), strict=False):
        logprobs = model(windows).logits[:, :-1].log_softmax(-1).gather(2, windows[:, 1:, None])[..., 0]
        (-(advantages[:, None] * logprobs).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        new = published(model)
        step = compared(old, new)
        share = step.delta_bytes / step.bytes
        print(f"· {rate:g}: step {number}/{settings.steps}  {share:.2%} of the bytes", file=sys.stderr, flush=True)
        yield step
        old = new


def batches(settings: Settings) -> Iterator[torch.Tensor]:
    """Windows of the prose, int64 [windows, tokens]."""
    tokens = AutoTokenizer.from_pretrained(settings.model)(PROSE.read_text(encoding="utf-8"))["input_ids"]
    rng = np.random.default_rng(0)
    while True:
        begins = rng.integers(0, len(tokens) - settings.tokens, settings.windows)
        yield torch.tensor([tokens[begin : begin + settings.tokens] for begin in begins])


def published(model: torch.nn.Module) -> list[WeightBucket]:
    return pack_buckets(((name, p.detach().bfloat16()) for name, p in model.named_parameters()), BUCKET_BYTES)


def compared(old: list[WeightBucket], new: list[WeightBucket]) -> Step:
    """Make and apply the deltas between two versions. A bucket without one is sent whole."""
    size = delta_bytes = changed = 0
    made = applied = staged = 0.0
    for before, after in zip(old, new, strict=True):
        begin = time.perf_counter()
        delta = delta_of(before, after)
        made += time.perf_counter() - begin
        size += after.data.size
        delta_bytes += len(delta.data) if delta else after.data.size
        changed += int(np.count_nonzero(before.data.view(np.uint16) != after.data.view(np.uint16)))
        if delta:
            begin = time.perf_counter()
            result = patched(before.data, delta)
            applied += time.perf_counter() - begin
            if not np.array_equal(result, after.data):
                raise AssertionError(f"the delta of {after.entries[0][0]} does not give the new version")
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            begin = time.perf_counter()
            stage(after, Path(folder)).release()
            staged += time.perf_counter() - begin
    return Step(size, delta_bytes, changed / (size / 2), made, applied, staged)
