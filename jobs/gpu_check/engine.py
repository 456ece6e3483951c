"""vLLM on a model of random weights: new weights while requests run, and log-probs against the learner's.

The engine is that of a generator, without Ray. It loads the model's weights from disk, and then those of another model,
those of the first again, and those of the other.
"""

import asyncio
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.gpu_check.report import Measured, Missed, Report, Skipped
from jobs.gpu_check.samples import model_settings, write_model
from jobs.gpu_check.settings import Settings
from pipeline.dtype import MISMATCH_WARNING
from pipeline.learning.forest import Forest
from pipeline.learning.policy import Policy
from pipeline.rollout.episodes import Sampling
from pipeline.run.config import TrainingConfig, load_training_config
from pipeline.weights.buckets import WeightBucket, pack_buckets
from pipeline.weights.transport import BUCKETS, WeightReceiver, Weights, load_transport

RESPONSE = 48  # tokens of a response whose log-probs are compared
PROMPTS = 4  # of each length
RUNNING = 32  # requests at a time while weights change
STEPS = 8  # of decoding, at least, between two updates
SAMPLING = Sampling(1.0)


@dataclass(frozen=True)
class Sample:
    """A prompt, and the response of a version with its log-probs."""

    prompt: list[int]
    response: list[int]
    logprobs: list[float]


def run(settings: Settings, folder: Path, report: Report) -> None:
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # as in a Ray actor
    with report.check("write the models"):
        first, other = (write_model(folder / name, settings, seed) for seed, name in enumerate(("first", "other")))
    before, after = asyncio.run(one_device(settings, first, other, report))
    for name, model, samples in (("before", first, before), ("after", other, after)):
        with report.check(f"log-probs {name} the updates") as measured:
            compare(settings, model, samples, measured)
    with report.check("tensor parallel 2") as measured:
        if not settings.on_gpu or torch.cuda.device_count() < 2:
            raise Skipped("needs two GPUs")
        compare(settings, other, asyncio.run(two_devices(settings, first, other)), measured)


async def one_device(settings: Settings, first: Path, other: Path, report: Report) -> tuple[list[Sample], list[Sample]]:
    """Samples of the first model, and of the other one after three updates in flight."""
    with report.check("start"):
        engine = await started(settings, first)
    try:
        with report.check("CUDA graphs") as measured:
            if not settings.on_gpu:
                raise Skipped("on a GPU only")
            measured.note(engine.cuda_graphs)
            if engine.cuda_graphs == "NONE":
                raise Missed("the engine runs without CUDA graphs")
        with report.check("samples"):
            before = await samples_of(engine, settings, version=0)
        with report.check("three updates while requests run") as measured:
            of_first, of_other = (buckets_of(model, settings) for model in (first, other))
            updates = [of_other, of_first, of_other]
            pauses, versions = await updated(engine, settings, updates)
            size = sum(bucket.data.size for bucket in of_other)
            measured.note(f"longest pause {1000 * max(pauses):.0f} ms, shortest {size / min(pauses) / 1e9:.1f} GB/s")
            for pinned, mapped in await engine.pinned_weights() if settings.on_gpu else []:
                measured.note(f"{pinned / 1e9:.1f} of {mapped / 1e9:.1f} GB mapped weights pinned")
            check_versions(versions, len(updates), measured)
        with report.check("samples after the updates"):
            after = await samples_of(engine, settings, version=len(updates))
    finally:
        engine.shutdown()
    return before, after


async def two_devices(settings: Settings, first: Path, other: Path) -> list[Sample]:
    """Samples of an engine on two devices after an update."""
    engine = await started(settings, first, tensor_parallel=2)
    receiver = load_transport(BUCKETS).receiver()
    try:
        await load(engine, receiver, 1, buckets_of(other, settings))
        return await samples_of(engine, settings, version=1)
    finally:
        engine.shutdown()
        receiver.close()


def configuration(settings: Settings, model: Path, tensor_parallel: int = 1) -> TrainingConfig:
    """The preset of one GPU. On a CPU nothing is compiled, as in the presets for CPUs."""
    given = [f"agent.window={settings.length}", f"generator.tensor_parallel={tensor_parallel}"]
    given += [] if settings.on_gpu else ["generator.enforce_eager=true", "generator.kv_cache_gib=0.25"]
    return load_training_config(["preset=one_gpu", f"model.path={model}", f"model.dtype={settings.dtype}", *given])


async def started(settings: Settings, model: Path, tensor_parallel: int = 1) -> Any:
    """An engine. No token ends a response."""
    from actors.generation.vllm_engine import VllmEngine

    engine = VllmEngine(configuration(settings, model, tensor_parallel), end_tokens=[], seed=0)
    await engine.start()
    return engine


def random_tokens(settings: Settings, count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, model_settings(settings)["vocab_size"], count).tolist()


async def samples_of(engine, settings: Settings, version: int) -> list[Sample]:
    """Samples up to the longest conversation. Raises `RuntimeError` if a token is of another version."""
    lengths = sorted({32, settings.length // 8, settings.length // 2, settings.length - RESPONSE})
    prompts = [random_tokens(settings, length, seed) for length in lengths for seed in range(PROMPTS)]
    responses = await asyncio.gather(*(engine.generate(prompt, RESPONSE, SAMPLING) for prompt in prompts))
    if others := {v for response in responses for v in response.versions} - {version}:
        raise RuntimeError(f"requests under version {version} have tokens of versions {sorted(others)}")
    return [Sample(prompt, r.tokens, r.logprobs) for prompt, r in zip(prompts, responses, strict=True)]


def buckets_of(model: Path, settings: Settings) -> list[WeightBucket]:
    """A model's weights as the learners send them."""
    size = configuration(settings, model).learner.bucket_mib * 2**20
    return pack_buckets(loaded(model, settings).named_parameters(), size)


def loaded(model: Path, settings: Settings) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, settings.dtype))


async def load(engine, receiver: WeightReceiver, version: int, buckets: Sequence[WeightBucket]) -> float:
    """Have an engine load weights as a generator does; return the pause in seconds."""

    from pipeline.weights.bucket_transport import Sent

    async def sent(bucket: WeightBucket) -> WeightBucket:
        return bucket  # a generator awaits an object reference

    pieces = [Sent(place, bucket.data.size, sent(bucket)) for place, bucket in enumerate(buckets)]
    async with receiver.fetch(Weights(version, BUCKETS, (pieces,))) as parts:
        return await engine.load_weights(version, BUCKETS, parts)


async def updated(engine, settings: Settings, updates: list[list[WeightBucket]]) -> tuple[list[float], list[list[int]]]:
    """Load weights while requests run.

    Returns:
        The pauses in seconds, and the versions of the tokens of each response.
    """
    prompt_tokens, response_tokens = settings.length // 8, min(512, settings.length // 4)
    done = asyncio.Event()

    async def keep_generating(number: int) -> list[list[int]]:
        versions = []
        while not done.is_set():
            prompt = random_tokens(settings, prompt_tokens, number)
            versions.append((await engine.generate(prompt, response_tokens, SAMPLING)).versions)
        return versions

    running = [asyncio.create_task(keep_generating(number)) for number in range(RUNNING)]
    pauses, receiver = [], load_transport(BUCKETS).receiver()
    try:
        for version, buckets in enumerate(updates, 1):
            await engine.generate(random_tokens(settings, prompt_tokens, version), STEPS, SAMPLING)
            pauses.append(await load(engine, receiver, version, buckets))
    finally:
        receiver.close()
    await engine.generate(random_tokens(settings, prompt_tokens, 0), STEPS, SAMPLING)
    done.set()
    return pauses, list(itertools.chain(*await asyncio.gather(*running)))


def check_versions(versions: list[list[int]], updates: int, measured: Measured) -> None:
    """Check the versions of the tokens of each response: they rise, and each update finds requests in flight."""
    wrong = sum(each != sorted(each) or not {*each} <= {*range(updates + 1)} for each in versions)
    measured.at_most("responses whose versions do not rise", wrong, 0)
    for version in range(1, updates + 1):
        flying = sum({version - 1, version} <= {*each} for each in versions)
        measured.at_least(f"in flight at update {version}", flying, 1)


def compare(settings: Settings, model: Path, samples: list[Sample], measured: Measured) -> None:
    """Compare the engine's log-probs to those of the learner's policy, by the length of the prompt."""
    policy = Policy(loaded(model, settings).to(settings.device), SAMPLING.temperature)
    off: dict[int, list[float]] = {}
    for sample in samples:
        known = logprobs_of(policy, sample, settings.device)
        off.setdefault(len(sample.prompt), []).append(float((known - torch.tensor(sample.logprobs)).abs().mean()))
    for length, means in off.items():
        measured.at_most(f"mean after {length}", float(np.mean(means)), MISMATCH_WARNING[settings.dtype])


@torch.no_grad()
def logprobs_of(policy: Policy, sample: Sample, device: str) -> torch.Tensor:
    """Log-probs of a response by the learner's policy, float32 [R]."""
    row = torch.tensor(sample.prompt + sample.response, device=device)
    at = torch.arange(len(sample.prompt) - 1, len(row) - 1, device=device)
    places, forest = torch.arange(len(row), device=device), Forest((0, len(row)))
    return policy(row, places, at, row[at + 1], forest)[0].cpu()
