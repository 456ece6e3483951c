"""The contract with vLLM (actors/generation/vllm_engine.py), on real engines: log-probs, versions, weights changed in
flight, what the prefix cache spares, and the order of requests."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from ray.exceptions import ObjectLostError
from safetensors.torch import load_file
from transformers import AutoConfig

from pipeline.learning.forest import Forest
from pipeline.learning.policy import Policy
from pipeline.rollout.episodes import Sampling
from pipeline.weights.bucket_files import BUCKET_FILE, SHARED_MEMORY, BucketError
from pipeline.weights.bucket_transport import Sent
from pipeline.weights.buckets import WeightBucket, pack_buckets
from pipeline.weights.transport import BUCKETS, Weights, WeightsLost

PROMPT = [0, *range(9, 109), *range(9, 49)]  # several blocks of the prefix cache
BLOCK = 32  # tokens of a block of the prefix cache on a CPU
ENDS = {1, 30}  # a model may name several end tokens
WARM = Sampling(temperature=0.7)


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


def start_engine(runner, config, model):
    from actors.generation.vllm_engine import VllmEngine

    async def start():
        engine = VllmEngine(config, end_tokens=ENDS, seed=1)
        await engine.start()
        return engine

    config = replace(
        config,
        model=replace(config.model, path=str(model)),
        agent=replace(config.agent, window=256),
    )
    return runner.run(start())


def end_engine(engine) -> None:
    engine.shutdown()
    engine._llm.shutdown = lambda: None  # its __del__ calls it again, at the interpreter's end, and complains


@pytest.fixture(scope="module")
def engine(runner, tiny_config, random_model):
    engine = start_engine(runner, tiny_config, random_model)
    yield engine
    end_engine(engine)


@pytest.fixture(scope="module")
def fresh_engine(runner, tiny_config, other_model):
    """It decodes two conversations at a time."""
    config = replace(tiny_config, generator=replace(tiny_config.generator, max_sequences=2))
    engine = start_engine(runner, config, other_model)
    yield engine
    end_engine(engine)


@pytest.fixture(scope="module")
def full_engine(runner, tiny_config, random_model):
    """Its KV cache has room for ten blocks, and a window needs eight."""
    model = AutoConfig.from_pretrained(random_model)
    block = BLOCK * 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * 4
    generator = replace(tiny_config.generator, kv_cache_gib=10 * block / 2**30, max_sequences=8)
    engine = start_engine(runner, replace(tiny_config, generator=generator), random_model)
    yield engine
    end_engine(engine)


def test_preemptions_are_counted(runner, engine, full_engine):
    async def preemptions(engine):
        requests = (engine.generate([0, *range(9, 60 + i)], 150, WARM) for i in range(8))
        return [response.preemptions for response in await asyncio.gather(*requests)]

    assert sum(runner.run(preemptions(full_engine))) > 0
    assert runner.run(preemptions(engine)) == [0] * 8


def test_an_engine_chooses_how_many_conversations_it_decodes_together(tiny_config, random_model):
    """Of 64 tokens, each with a key and a value in every layer."""
    from actors.generation.vllm_engine import sequences_of

    model = AutoConfig.from_pretrained(random_model)
    window = 64 * 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * 4
    generator = replace(tiny_config.generator, max_sequences=0, kv_cache_gib=5.5 * window / 2**30)
    assert sequences_of(replace(tiny_config, generator=generator)) == 5
    assert sequences_of(replace(tiny_config, generator=replace(generator, max_sequences=7))) == 7
    nowhere = replace(tiny_config, generator=generator, model=replace(tiny_config.model, path="/no/model"))
    with pytest.raises(ValueError, match=r"set generator\.max_sequences: the sizes of /no/model are unknown"):
        sequences_of(nowhere)


def learner_logprobs(model, temperature: float, tokens: list[int], prompt: list[int] = PROMPT) -> torch.Tensor:
    """Log-probs of `tokens` after a prompt by the learner's own code."""
    from transformers import AutoModelForCausalLM

    policy = Policy(AutoModelForCausalLM.from_pretrained(model), temperature)
    row = torch.tensor(prompt + tokens)
    at = torch.arange(len(prompt) - 1, len(row) - 1)
    with torch.no_grad():
        return policy(row, torch.arange(len(row)), at, torch.tensor(tokens), Forest((0, len(row))))[0]


class Ref:
    """What a sender has published: an object reference of a bucket, or of one that is lost."""

    def __init__(self, bucket):
        self._bucket = bucket

    def __await__(self):
        yield from ()
        if isinstance(self._bucket, Exception):
            raise self._bucket
        return self._bucket


def buckets(model) -> list:
    weights = load_file(model / "model.safetensors")
    return pack_buckets(weights.items(), bucket_bytes=300_000)


def load(engine, config, version: int, published: list):
    """A coroutine that has the generator of this engine load weights."""
    from actors.generation.generator import Generator

    generator = Generator.__ray_metadata__.modified_class("generator-0", config, 0)
    generator.engine = engine
    sizes = [bucket.data.size if isinstance(bucket, WeightBucket) else 0 for bucket in published]
    sent = [Sent(place, size, Ref(bucket)) for place, (size, bucket) in enumerate(zip(sizes, published, strict=True))]

    async def loaded() -> float:
        try:
            return await generator.load_weights(Weights(version, BUCKETS, (sent, [])))
        finally:
            generator._receivers.close()

    return loaded()


def test_logprobs_agree_with_the_learners(runner, engine, random_model):
    response = runner.run(engine.generate(PROMPT, 60, WARM))
    difference = learner_logprobs(random_model, 0.7, response.tokens) - torch.tensor(response.logprobs)
    assert difference.abs().mean() <= 1e-4
    assert response.versions == [0] * len(response.tokens)


def test_a_response_ends_with_any_of_the_end_tokens_or_at_its_limit(runner, engine):
    async def many():
        return await asyncio.gather(*(engine.generate(PROMPT, 100, WARM) for _ in range(24)))

    responses = runner.run(many())
    assert {r.finish_reason for r in responses} <= {"stop", "length"}
    assert {r.tokens[-1] for r in responses if r.finish_reason == "stop"} == ENDS
    for r in responses:
        assert len(r.tokens) == len(r.logprobs) == len(r.versions) and r.max_tokens == 100
        assert (r.tokens[-1] in ENDS) == (r.finish_reason == "stop")
        assert not ENDS.intersection(r.tokens[:-1])
        assert r.finish_reason == "stop" or len(r.tokens) == 100


async def scheduled_together(engine, requests: list) -> list:
    """The results of requests that arrive, in this order, while the engine is paused."""
    await engine._llm.pause_generation(mode="keep", clear_cache=False)
    running = [asyncio.create_task(request) for request in requests]
    while engine._llm.output_processor.get_num_unfinished_requests() < len(running):
        await asyncio.sleep(0.01)
    await engine.heartbeat()  # answered after the requests have arrived
    await engine._llm.resume_generation()
    return await asyncio.gather(*running)


def cached_tokens(runner, engine, *prompts: list[int]) -> list[int]:
    """What of each prompt was in the prefix cache. The prompts are asked together."""

    async def asked():
        return await asyncio.gather(*(engine.generate(prompt, 5, WARM) for prompt in prompts))

    return [response.cached_tokens for response in runner.run(asked())]


def test_a_prompt_is_computed_once_and_what_it_shares_with_others_too(runner, engine):
    prompt = PROMPT[::-1]
    longest = len(prompt) // BLOCK * BLOCK
    assert cached_tokens(runner, engine, prompt) == [0]
    assert cached_tokens(runner, engine, prompt, [*prompt[:70], *prompt], [9, *prompt]) == [longest, 64, 0]
    assert cached_tokens(runner, engine, prompt[:96]) == [64]  # the last token is always computed, and so is its block


def test_equal_prompts_that_are_asked_together_are_computed_once(runner, engine, random_model):
    """A request uses the blocks that another of the same step is about to compute."""
    prompt = [0, *PROMPT[:0:-1]]
    responses = runner.run(scheduled_together(engine, [engine.generate(prompt, 30, WARM) for _ in range(16)]))
    assert sorted(response.cached_tokens for response in responses) == [0, *[len(prompt) // BLOCK * BLOCK] * 15]
    for response in responses:
        difference = learner_logprobs(random_model, 0.7, response.tokens, prompt) - torch.tensor(response.logprobs)
        assert difference.abs().mean() <= 1e-4


@pytest.mark.parametrize("order", [(1, 9), (9, 1)])
def test_of_the_requests_that_wait_the_lowest_priority_begins_first_then_the_first_to_come(runner, fresh_engine, order):
    begun = []

    async def ask(priority, number):
        await fresh_engine.generate([0, 9 + number], 1, WARM, priority)
        begun.append((priority, number))

    asked = [ask(priority, number) for priority in order for number in range(4)]
    runner.run(scheduled_together(fresh_engine, asked))
    assert begun == [(priority, number) for priority in (1, 9) for number in range(4)]


def test_weights_change_in_flight_and_new_requests_see_only_the_new_ones(
    runner, engine, fresh_engine, other_model, tiny_config
):
    """The prompts' KV caches under the old weights are there to be reused by mistake: the tests above left that of
    PROMPT."""
    kept = [9, *PROMPT]
    assert cached_tokens(runner, engine, kept, kept)[1] == len(kept) // BLOCK * BLOCK

    async def scenario():
        begun, updated = asyncio.Event(), asyncio.Event()

        async def keep_generating(limit):
            responses = []
            while not updated.is_set():
                responses.append(await engine.generate(PROMPT, limit, WARM))
                begun.set()
            return responses

        # Limits of their own: responses that began together would end together, and now and then just before the pause.
        running = [asyncio.create_task(keep_generating(limit)) for limit in range(80, 112)]
        await begun.wait()
        pause = await load(engine, tiny_config, 1, buckets(other_model))
        updated.set()
        new = await engine.generate(PROMPT, 60, WARM)
        return [response for responses in await asyncio.gather(*running) for response in responses], new, pause

    responses, new, pause = runner.run(scenario())
    mixed = [r for r in responses if len(set(r.versions)) == 2]
    assert mixed, "no request was in flight during the update"
    assert all(r.versions == sorted(r.versions) and set(r.versions) <= {0, 1} for r in responses)
    assert all(r.finish_reason in ("stop", "length") for r in responses)
    assert new.versions == [1] * len(new.tokens)
    assert pause > 0
    # Nothing of the engine lies in the files, which the next version overwrites.
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    assert len(processes) > 1
    assert not any(BUCKET_FILE in Path(f"/proc/{process.pid}/maps").read_text() for process in processes)
    assert runner.run(engine.pinned_weights()) == [(0, 0)]  # there is no GPU

    difference = learner_logprobs(other_model, 0.7, new.tokens) - torch.tensor(new.logprobs)
    assert difference.abs().mean() <= 1e-4
    assert cached_tokens(runner, engine, kept, kept) == [0, len(kept) // BLOCK * BLOCK]

    updated, fresh = (runner.run(e.generate(PROMPT, 60, Sampling(0.0))) for e in (engine, fresh_engine))
    assert updated.tokens == fresh.tokens


def test_a_seed_gives_the_same_response_whatever_else_is_asked(runner, engine):
    async def asked(sampling, others):
        first, *_ = await asyncio.gather(*(engine.generate(PROMPT, 40, s) for s in [sampling, *others]))
        return first.tokens

    seeded = Sampling(1.0, 0.9, seed=7)
    alone, busy = (runner.run(asked(seeded, others)) for others in ([], [Sampling(1.0)] * 10))
    assert alone == busy != runner.run(asked(Sampling(1.0, 0.9, seed=8), []))


def test_many_seeded_prompts_at_once_are_answered(runner, engine):
    """More than fit one step of the engine; on a CPU it would die if it split them."""

    async def many(seeds):
        responses = (engine.generate([*PROMPT, *range(9, 60), 9 + s], 5, Sampling(1.0, seed=s)) for s in seeds)
        return [response.tokens for response in await asyncio.gather(*responses)]

    assert len(runner.run(many(range(60)))) == 60 and not engine.is_dead
    assert runner.run(many([3]))[0] == runner.run(many(range(60)))[3]


def test_a_small_nucleus_leaves_the_likeliest_token(runner, engine):
    likeliest, nucleus = (runner.run(engine.generate(PROMPT, 30, s)) for s in (Sampling(0.0), Sampling(1.0, 1e-6)))
    assert likeliest.tokens == nucleus.tokens
    assert nucleus.logprobs == [0.0] * len(nucleus.tokens)  # as sampled: nothing else had a chance


def bucket_files(published: list) -> list:
    names = [f"{BUCKET_FILE}{bucket.checksum:016x}*" for bucket in published if isinstance(bucket, WeightBucket)]
    return [path for name in names for path in SHARED_MEMORY.glob(name)]


def test_new_weights_without_a_head_are_refused_unless_it_is_tied():
    from actors.generation.vllm_worker import WeightLoader

    loader = object.__new__(WeightLoader)
    loader.model = torch.nn.Module()
    loader.model_config = SimpleNamespace(hf_text_config=SimpleNamespace(tie_word_embeddings=False))
    loader.start_weight_update()
    with pytest.raises(RuntimeError, match="no lm_head.weight"):
        loader.finish_weight_update()


def lost(model) -> list:
    first, *_ = buckets(model)
    return [first, ObjectLostError("0" * 56, None, "")]


def corrupted(model) -> list:
    return [replace(bucket, data=bucket.data ^ 1) for bucket in buckets(model)]


@pytest.mark.parametrize(("broken", "error"), [(lost, WeightsLost), (corrupted, BucketError)])
def test_weights_that_fail_before_they_are_loaded_change_nothing(runner, engine, tiny_config, broken, error):
    engine_model = runner.run(_path_of(engine))
    published = broken(engine_model)
    with pytest.raises(error):
        runner.run(load(engine, tiny_config, 2, published))
    assert published and bucket_files(published) == []
    assert engine.version == 1
    response = runner.run(engine.generate(PROMPT, 5, WARM))
    assert response.versions == [1] * len(response.tokens)


async def _path_of(engine):
    from pathlib import Path

    return Path(engine._llm.model_config.model)


@pytest.mark.parametrize(("gib", "given"), [(0.0, None), (2.5, 5 * 2**29)])
def test_a_gpu_engine_gets_a_kv_cache_of_a_size_or_what_is_left(tiny_config, random_model, monkeypatch, gib, given):
    from actors.generation import vllm_engine as module

    monkeypatch.setattr(module, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    generator = replace(tiny_config.generator, gpu_kv_cache_gib=gib, gpu_memory_share=0.35)
    made = module.engine_args(replace(tiny_config, generator=generator), seed=0)
    assert made.kv_cache_memory_bytes == given and made.gpu_memory_utilization == 0.35
