"""How many conversations an engine decodes together if it chooses, against numbers worked by hand."""

import asyncio
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from actors.step_reports import StepReports
from pipeline import rules
from pipeline.config import CONFIGS, load_config
from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluationConfig, check_same
from pipeline.learning.device_memory import architecture_of, built_architecture
from pipeline.run.config import load_training_config
from pipeline.run.kv_cache import cache_bytes, fitting_sequences, token_bytes

GIB = 2**30


def sizes_of(name: str):
    return architecture_of(json.loads((CONFIGS / "models" / name / "config.json").read_text()))


def test_the_bytes_of_a_token_are_those_of_transformers_cache():
    model = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=3,
        vocab_size=50,
    )
    cache = LlamaForCausalLM(model)(torch.zeros(1, 10, dtype=torch.long), use_cache=True).past_key_values
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    config = load_training_config(["preset=tiny"])
    assert config.model.dtype == "float32" and 10 * token_bytes(config, built_architecture(model)) == held


def test_a_gpu_holds_what_the_weights_leave_of_its_share():
    config, sizes = load_training_config(["preset=memagent_7b"]), sizes_of("Qwen2.5-7B-Instruct")
    assert token_bytes(config, sizes) == 2 * 28 * 4 * 128 * 2
    # 0.9 of 80 GiB, less 2 GiB and 15.2 GB of weights.
    assert cache_bytes(config, sizes, 80 * GIB) == int(0.9 * 80 * GIB - 2 * GIB) - 2 * 7_615_616_512
    assert fitting_sequences(config, sizes, 80 * GIB) == 127  # 55.8 GiB of 0.4375 GiB each
    two = replace(config, generator=replace(config.generator, tensor_parallel=2, num_gpus=2.0))
    assert fitting_sequences(two, sizes, 80 * GIB) == 287  # 125.8 GiB
    assert fitting_sequences(config, sizes, 16 * GIB) == 1  # less than nothing is left
    assert fitting_sequences(config, sizes, 2000 * GIB) == 1024
    assert cache_bytes(config, sizes, None) is fitting_sequences(config, sizes, None) is None


def test_with_more_devices_than_heads_of_keys_each_device_has_one():
    config, sizes = load_training_config(["preset=memagent_7b"]), sizes_of("Qwen2.5-7B-Instruct")
    once = token_bytes(config, sizes)  # 4 heads
    for devices, copies in ((2, 1), (4, 1), (8, 2)):
        more = replace(config, generator=replace(config.generator, tensor_parallel=devices))
        assert token_bytes(more, sizes) == copies * once


def test_a_cache_of_a_given_size_needs_no_memory():
    sizes = sizes_of("Qwen2.5-0.5B-Instruct")
    shared = load_training_config(["preset=one_gpu"])
    assert fitting_sequences(shared, sizes, None) == 106  # 5 GiB of 4096 · 12 KiB each
    cpu = load_training_config(["preset=smollm2", "model.dtype=float32"])
    assert fitting_sequences(cpu, sizes, None) == 34  # 0.5 GiB of 640 · 24 KiB each


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 2), ("float32", 4)])
def test_a_number_of_a_cache_in_fp8_has_one_byte(dtype, share):
    sizes = sizes_of("Qwen2.5-0.5B-Instruct")
    plain = load_training_config(["preset=one_gpu", f"model.dtype={dtype}"])
    small = load_training_config(["preset=one_gpu", f"model.dtype={dtype}", "generator.kv_cache_dtype=fp8"])
    assert token_bytes(small, sizes) == 2 * 24 * 2 * 64 == token_bytes(plain, sizes) / share


@pytest.mark.parametrize(
    ("flags", "gpus", "refused"),
    [
        ({"avx2"}, 0.0, True),
        ({"avx2", "avx512f"}, 0.0, False),
        ({"amx_tile"}, 0.0, False),
        ({"avx2"}, 1.0, False),
    ],
)
def test_fp8_is_refused_on_a_cpu_that_vllm_cannot_use_for_it(monkeypatch, flags, gpus, refused):
    monkeypatch.setattr(rules, "cpu_flags", lambda: flags)
    config = load_training_config(["preset=tiny", "generator.kv_cache_dtype=fp8", f"generator.num_gpus={gpus}"])
    broken = [message for holds, message in rules.generation_rules(config) if not holds]
    assert [message.partition(" needs")[0] for message in broken] == ["generator.kv_cache_dtype=fp8"] * refused


def test_an_unknown_dtype_of_the_cache_is_refused():
    config = load_training_config(["preset=tiny", "generator.kv_cache_dtype=int4"])
    broken = [message for holds, message in rules.generation_rules(config) if not holds]
    assert broken == ["generator.kv_cache_dtype='int4' must be one of auto, fp8"]


def test_an_evaluation_is_not_resumed_with_another_dtype_of_the_cache():
    auto = asdict(load_config(["preset=eval_tiny"], EvaluationConfig))
    other = asdict(load_config(["preset=eval_tiny", "generator.kv_cache_dtype=fp8"], EvaluationConfig))
    other["run"]["name"] = auto["run"]["name"]
    more = asdict(load_config(["preset=eval_tiny", "generator.count=7"], EvaluationConfig))
    check_same(auto, more)
    with pytest.raises(ConfigError, match="generator.kv_cache_dtype: 'auto' then, 'fp8' now"):
        check_same(auto, other)


def test_zero_sequences_are_a_choice_and_fewer_are_a_fault():
    assert load_training_config(["preset=memagent_7b"]).generator.max_sequences == 0
    with pytest.raises(ConfigError, match="generator.max_sequences=-1 must lie between 0"):
        load_training_config(["preset=tiny", "generator.max_sequences=-1"])


def test_the_pool_asks_an_engine_that_chooses(tiny_config):
    from actors.generation.generator_pool import GeneratorPool

    async def never(*_):
        await asyncio.Event().wait()

    async def start(check_room):
        return "vLLM", "a node"

    async def twelve():
        return 12

    async def in_service(config) -> tuple[int, int]:
        calls = {"start": start, "max_sequences": twelve, "until_death": never, "heartbeat": never}
        actor = SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in calls.items()})
        pool = GeneratorPool(config, print)
        serving = [asyncio.ensure_future(pool.serve(f"generator-{i}", actor)) for i in range(2)]
        while len(pool.versions) < 2:
            await asyncio.sleep(0.01)
        for task in serving:
            task.cancel()
        return pool.room, pool.sequences

    for given, room in ((0, 12), (5, 5)):
        config = replace(tiny_config, generator=replace(tiny_config.generator, max_sequences=given))
        assert asyncio.run(in_service(config)) == (room, 2 * room)


@pytest.mark.parametrize(("preemptions", "warned"), [(0, False), (50, False), (51, True)])
def test_many_preemptions_are_warned_of(tiny_config, preemptions, warned, monkeypatch):
    import actors.step_reports as module

    said: list[str] = []

    class Tracker:
        async def log(self, row):
            pass

    monkeypatch.setattr(module, "step_line", lambda row, steps: "a step")
    row = {"step": 3, "preemptions": preemptions, "conversations": 1000, "logprob_mismatch_mean": 0.0}
    asyncio.run(StepReports(tiny_config, said.append).report(Tracker(), row, None))
    assert any("lower generator.max_sequences, or raise generator.kv_cache_gib" in line for line in said) == warned
