"""In bfloat16 the learners compute the model that vLLM samples from, at every position of the window."""

import asyncio
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pipeline.learning.forest import Forest
from pipeline.learning.policy import Policy
from pipeline.rollout.episodes import Sampling
from tests.support.probe_learner import ProbeGang

WINDOW, RESPONSE = 8192, 48
LENGTHS = (64, 1024, 4096, WINDOW - RESPONSE)  # of prompts


@pytest.fixture(scope="module")
def config(tiny_config, tmp_path_factory):
    """Of a Llama with grouped queries and heads of 64, as real ones have, whose attention is sharp enough to depend on
    where a token stands."""
    from pipeline.data.documents.synthetic import tiny_tokenizer

    folder = tmp_path_factory.mktemp("bfloat16")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=WINDOW,
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
            eos_token_id=1,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(6)
            layer.self_attn.k_proj.weight.mul_(6)
            layer.self_attn.v_proj.weight.mul_(3)
            layer.self_attn.o_proj.weight.mul_(3)
        model.lm_head.weight.mul_(4)
    model.to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return replace(
        tiny_config,
        model=replace(tiny_config.model, path=str(folder), dtype="bfloat16"),
        agent=replace(tiny_config.agent, window=WINDOW),
        learner=replace(tiny_config.learner, ranks=2, micro_batch_tokens=WINDOW),
    )


@pytest.fixture(scope="module")
def sampled(config) -> list[tuple[list[int], list[int], list[float]]]:
    """Prompts, and vLLM's responses to them with their log-probs."""
    from actors.generation.vllm_engine import VllmEngine

    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(2, 256, (length,), generator=draw).tolist() for length in LENGTHS for _ in range(4)]

    async def run():
        engine = VllmEngine(config, end_tokens=[1], seed=1)
        await engine.start()
        responses = await asyncio.gather(*(engine.generate(p, RESPONSE, Sampling(1.0)) for p in prompts))
        engine.shutdown()
        engine._llm.shutdown = lambda: None  # its __del__ calls it again, at the interpreter's end, and complains
        return responses

    responses = asyncio.run(run())
    return [(prompt, r.tokens, r.logprobs) for prompt, r in zip(prompts, responses, strict=True)]


@pytest.fixture(scope="module")
def learned(ray_session, config, sampled):
    """The buffers of policy and reference of each rank, and their log-probs of what was sampled."""

    async def run():
        gang = ProbeGang(config, 2)
        await gang.start()
        buffers = await gang._all("buffers")
        logprobs, _ = await gang._all("logprobs", [(prompt, response) for prompt, response, _ in sampled])
        await gang.close()
        return buffers, logprobs

    return asyncio.run(run())


def plain(config) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.bfloat16)


def test_all_buffers_are_those_of_a_plain_load(config, learned):
    expected = dict(plain(config).named_buffers())
    assert {buffer.dtype for buffer in expected.values()} == {torch.float32}  # where transformers keeps them so
    for rank in learned[0]:
        for buffers in rank:
            assert buffers.keys() == expected.keys()
            for name, buffer in buffers.items():
                assert buffer.dtype == expected[name].dtype and torch.equal(buffer, expected[name]), name


def test_policy_and_reference_agree_with_a_plain_load_at_every_position(config, sampled, learned):
    policy = Policy(plain(config), temperature=1.0)
    policy.model.set_attn_implementation("sdpa")  # transformers' own
    for (prompt, response, _), results in zip(sampled[::4], learned[1][::4], strict=True):
        row = torch.tensor(prompt + response)
        at = torch.arange(len(prompt) - 1, len(row) - 1)
        with torch.no_grad():
            expected, _ = policy(row, torch.arange(len(row)), at, torch.tensor(response), Forest((0, len(row))))
        for logprobs in results:
            assert (logprobs - expected).abs().mean() < 2e-3, len(prompt)


def test_vllm_agrees_as_well_at_the_windows_end_as_at_its_beginning(sampled, learned):
    mismatch = {length: [] for length in LENGTHS}
    for (prompt, _, logprobs), (policy, _) in zip(sampled, learned[1], strict=True):
        mismatch[len(prompt)].append((policy - torch.tensor(logprobs)).abs().mean().item())
    means = {length: sum(values) / len(values) for length, values in mismatch.items()}
    assert max(means.values()) < 0.03
    assert max(means.values()) < 2 * means[LENGTHS[0]]
