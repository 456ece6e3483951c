"""The contract with DeepSpeed (actors/zero_engine.py, actors/learner.py): two real ranks under ZeRO-3."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.objective import token_losses
from pipeline.packing import build_micro_batch
from pipeline.policy import Policy
from pipeline.weight_buckets import unpack_bucket
from tests.groups import random_group, record_of

STEPS = 3


@pytest.fixture(scope="module")
def config(tiny_config):
    return replace(
        tiny_config,
        learner=replace(
            tiny_config.learner,
            micro_batch_tokens=256,
            warmup_steps=2,
            weight_decay=0.01,
            num_cpus=0.5,
            max_grad_norm=0.5,
        ),
    )


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [[random_group(rng, f"p{step}-{i}", episodes=4) for i in range(5)] for step in range(STEPS)]


@pytest.fixture(scope="module")
def trained(ray_session, config, batches, tmp_path_factory):
    """Three steps on a gang of two; the weights it published, its metrics, and its checkpoint."""
    from actors.learner_gang import LearnerGang

    folder = tmp_path_factory.mktemp("checkpoint") / "hf"

    async def run():
        gang = LearnerGang(config)
        await gang.start()
        ranks = []
        for version, groups in enumerate(batches):
            step = [(record_of(g, f"g{i}", [1.0, 0.0, 0.0, 0.5]), [ray_session.put(g)]) for i, g in enumerate(groups)]
            ranks.append(await gang.train(version, step))
        weights = {}
        for ref in await gang.publish():
            bucket = await ref
            weights.update(
                (n, t.clone()) for n, t in unpack_bucket(bucket.entries, torch.from_numpy(bucket.data.copy()))
            )
        await gang.save(str(folder))
        await gang.close()
        return weights, ranks

    weights, ranks = asyncio.run(run())
    return weights, ranks, folder


def reference_weights(config, batches) -> tuple[dict, list[float]]:
    """The same steps in one process of plain torch, one conversation a forward pass."""
    from transformers import AutoModelForCausalLM

    policy = Policy(AutoModelForCausalLM.from_pretrained(config.model.path), config.generator.temperature)
    le = config.learner
    optimizer = torch.optim.AdamW(policy.parameters(), lr=le.learning_rate, weight_decay=le.weight_decay)
    norms = []
    for step, groups in enumerate(batches):
        for g in optimizer.param_groups:
            g["lr"] = le.learning_rate * min(1.0, (step + 1) / le.warmup_steps)
        optimizer.zero_grad()
        rewards = np.array([1.0, 0.0, 0.0, 0.5], np.float32)
        tokens = sum(len(group.logprobs) for group in groups)
        for i, group in enumerate(groups):
            for c in range(len(group.lengths)):
                batch = build_micro_batch([(i, c)], {i: group}, {i: rewards - rewards.mean()})
                t = {k: torch.tensor(v) for k, v in vars(batch).items()}
                logprobs = policy(*(t[k] for k in ("tokens", "positions", "predict_at", "targets")))
                losses, _ = token_losses(
                    logprobs,
                    t["behaviour"],
                    t["advantages"],
                    clip_low=le.clip_low,
                    clip_high=le.clip_high,
                    dual_clip=le.dual_clip,
                )
                (losses.sum() / tokens).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(policy.parameters(), le.max_grad_norm).item())
        optimizer.step()
    return dict(policy.model.named_parameters()), norms


def test_two_ranks_of_zero3_make_the_weights_of_plain_torch(trained, config, batches):
    weights, ranks, _ = trained
    reference, norms = reference_weights(config, batches)
    assert weights.keys() == reference.keys()
    from safetensors.torch import load_file

    start = load_file(f"{config.model.path}/model.safetensors")
    for name, expected in reference.items():
        moved = (expected - start[name]).norm()
        assert moved > 0, f"{name} was not trained"
        assert (weights[name] - expected).norm() / expected.norm() <= 1e-5, name
        assert (weights[name] - expected).norm() / moved <= 1e-2, name
    assert [step[0]["grad_norm"] for step in ranks] == pytest.approx(norms, rel=1e-4)


def test_the_ranks_share_the_tokens_and_run_as_many_micro_batches(trained, batches):
    _, ranks, _ = trained
    for step, groups in zip(ranks, batches, strict=True):
        assert len(step) == 2
        assert all(rank["tokens"] > 0 for rank in step)
        assert sum(rank["tokens"] for rank in step) == sum(len(group.logprobs) for group in groups)
        assert step[0]["micro_batches"] == step[1]["micro_batches"]


def test_staleness_and_mismatch_are_measured_token_by_token(trained):
    """All tokens are of version 0; only at the first step did the learner have that version too."""
    _, ranks, _ = trained
    assert [step[0]["staleness_max"] for step in ranks] == [0, 1, 2]
    assert [step[0]["same_version_tokens"] > 0 for step in ranks] == [True, False, False]


def test_the_learning_rate_warms_up_from_the_first_step(trained, config):
    _, ranks, _ = trained
    full = config.learner.learning_rate
    assert [step[0]["learning_rate"] for step in ranks] == pytest.approx([full / 2, full, full])


def test_a_checkpoint_is_a_plain_hugging_face_folder(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights, _, folder = trained
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"
    assert not folder.with_name("hf.partial").exists()
