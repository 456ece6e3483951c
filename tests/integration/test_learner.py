"""The contract with DeepSpeed (actors/learning/zero_engine.py, actors/learning/step.py): ZeRO-3 ranks against plain
torch."""

import asyncio
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.learning.objective import token_losses
from pipeline.learning.packing import Item, build_micro_batch, split_updates
from pipeline.learning.policy import Policy, inputs_of, tensors
from pipeline.learning.schedule import learning_rate
from pipeline.run.checkpoints import MODEL
from pipeline.weights.buckets import unpack_bucket
from pipeline.weights.transport import BUCKETS
from tests.support.groups import random_group, record_of
from tests.support.reading import LAYOUTS, reading_group

STEPS, GROUPS = 3, 6
# Of each group's episodes: all different from the mean, two equal to it, all equal.
DIFFERENT, SOME_AT_THE_MEAN, EQUAL = [1.0, 0.0, 0.0, 0.5], [1.0, 0.0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]
REWARDS = [DIFFERENT, DIFFERENT, SOME_AT_THE_MEAN, DIFFERENT, EQUAL, DIFFERENT]

CASES = {
    "paper": {"objective": {"entropy_coefficient": 0.0}},  # so conversations without an advantage are not computed
    # Everything that has a path of its own through the learner.
    "everything": {
        "learner": {"schedule": "cosine", "checkpoint_layers": "1"},
        "objective": {"kl_coefficient": 0.5, "entropy_coefficient": 0.01, "entropy_weight": "reward"},
        "train": {"updates_per_step": 3},
    },
    "one rank": {"learner": {"ranks": 1}},
    "around the sampling policy": {"objective": {"decoupled": False}, "train": {"updates_per_step": 2}},
}


def case_config(tiny_config, case: dict):
    """A configuration with the case's values, by section."""
    common = {
        "learner": {
            "micro_batch_tokens": 256,
            "warmup_steps": 2,
            "weight_decay": 0.01,
            "num_cpus": 0.5,
            "max_grad_norm": 0.5,
        },
        "train": {"steps": STEPS + 2},
    }
    sections = {
        name: replace(getattr(tiny_config, name), **common.get(name, {}), **case.get(name, {}))
        for name in ("learner", "objective", "train")
    }
    return replace(tiny_config, **sections)


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [[group(rng, f"p{step}-{i}", i) for i in range(GROUPS)] for step in range(STEPS)]


def group(rng, name: str, i: int):
    """Of random prompts; or of sections, which share prefixes that are worth a split in both layouts."""
    if i < 2:
        return random_group(rng, name, episodes=4, empty=True)
    return reading_group(rng, LAYOUTS[i % 2], name=name, section=20, part=8, missing=i % 3)


def records(ray, groups):
    return [(record_of(g, f"g{i}", REWARDS[i]), ray.put(g)) for i, g in enumerate(groups)]


def rate_of(config, update: int) -> float:
    return learning_rate(config.learner, update, config.train.steps * config.train.updates_per_step)


async def weights_of(gang) -> dict[str, torch.Tensor]:
    weights = {}
    await gang.copy_weights(1, BUCKETS)
    for sent in itertools.chain(*(await gang.send_weights()).pieces):
        bucket = await sent.bucket
        weights.update((n, t.clone()) for n, t in unpack_bucket(bucket.entries, torch.from_numpy(bucket.data.copy())))
    return weights


@pytest.fixture(scope="module", params=CASES)
def trained(request, ray_session, tiny_config, wide_model, batches, tmp_path_factory):
    """Three steps of a gang: its configuration, the weights it published, its updates, its checkpoint, and what a
    fourth step made of a reward that is not a number, and a fifth of the same groups with good ones."""
    from actors.learning.gang import LearnerGang

    config = case_config(tiny_config, CASES[request.param])
    if request.param == "everything":
        config = replace(config, model=replace(config.model, path=str(wide_model)))
    folder = tmp_path_factory.mktemp("checkpoint")

    async def run():
        gang = LearnerGang(config, config.learner.ranks)
        await gang.start()
        steps = [await gang.train(step, step, records(ray_session, groups)) for step, groups in enumerate(batches)]
        weights = await weights_of(gang)
        await gang.copy_checkpoint(str(folder))
        await gang.write_checkpoint()
        good = records(ray_session, batches[0])
        bad = [*good[:-1], (record_of(batches[0][-1], "bad", [np.nan, 0, 0, 0]), good[-1][1])]
        spoiled = await gang.train(STEPS, STEPS, bad), await weights_of(gang), await gang.train(STEPS, STEPS, good)
        await gang.close()
        return weights, steps, spoiled

    weights, steps, spoiled = asyncio.run(run())
    return config, weights, steps, spoiled, folder / MODEL


def rows_of(group, rewards):
    """Each conversation of a group by itself: inputs of the policy, and what the loss wants to know."""
    rewards = np.array(rewards, np.float32)
    advantages = (rewards - rewards.mean())[group.episodes]
    for c in range(len(group.lengths)):
        if not len(group.response(c)):
            continue
        row = build_micro_batch([Item(0, c)], {0: group}, {0: advantages}, {0: rewards})
        batch = tensors(row)
        yield inputs_of(batch), batch


def reference_weights(config, batches) -> tuple[dict, list[float]]:
    """The same steps in one process of plain torch, one conversation a forward pass."""
    from transformers import AutoModelForCausalLM

    def load():
        model = AutoModelForCausalLM.from_pretrained(config.model.path, attn_implementation="sdpa")
        policy = Policy(model, config.train.temperature, train_entropy=True)
        policy.model.set_attn_implementation("sdpa")  # not the learner's
        return policy

    policy, initial, o = load(), load(), config.objective
    le = config.learner
    optimizer = torch.optim.AdamW(policy.parameters(), lr=le.learning_rate, weight_decay=le.weight_decay)
    norms = []
    for version, groups in enumerate(batches):
        with torch.no_grad():
            proximal = [
                [policy(*inputs)[0] for inputs, _ in rows_of(group, rewards)]
                for group, rewards in zip(groups, REWARDS, strict=True)
            ]
        for chosen in split_updates(len(groups), config.train.updates_per_step, (config.run.seed, version)):
            tokens = sum(len(groups[g].logprobs) for g in chosen)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate_of(config, len(norms))
            optimizer.zero_grad()
            for g in chosen:
                for (inputs, batch), old in zip(rows_of(groups[g], REWARDS[g]), proximal[g], strict=True):
                    with torch.no_grad():
                        reference = initial(*inputs)[0] if o.kl_coefficient else None
                    losses = token_losses(
                        *policy(*inputs),
                        batch["advantages"],
                        batch["rewards"],
                        behaviour=batch["behaviour"],
                        proximal=old,
                        reference=reference,
                        objective=o,
                    ).losses
                    (losses.sum() / tokens).backward()
            norms.append(torch.nn.utils.clip_grad_norm_(policy.parameters(), le.max_grad_norm).item())
            optimizer.step()
    return dict(policy.model.named_parameters()), norms


def test_zero3_makes_the_weights_of_plain_torch(trained, batches):
    config, weights, steps, _, _ = trained
    reference, norms = reference_weights(config, batches)
    assert weights.keys() == reference.keys()
    from safetensors.torch import load_file

    start = load_file(f"{config.model.path}/model.safetensors")
    for name, expected in reference.items():
        moved = (expected - start[name]).norm()
        assert moved > 0, f"{name} was not trained"
        assert (weights[name] - expected).norm() / expected.norm() <= 1e-5, name
        assert (weights[name] - expected).norm() / moved <= 1e-2, name
    assert [update.grad_norm for step in steps for update in step] == pytest.approx(norms, rel=1e-4)


def total(rank: dict, name: str) -> float:
    """The sum over a rank's tokens."""
    return rank["metrics"][name].total


def tokens_of(rank: dict) -> int:
    return rank["metrics"]["entropy"].count


def same_version_tokens(rank: dict) -> int:
    return rank["metrics"]["logprob_mismatch_tokens"].value


def test_the_ranks_share_the_tokens_and_run_as_many_micro_batches(trained, batches):
    config, _, steps, _, _ = trained
    for step, groups in zip(steps, batches, strict=True):
        assert len(step) == config.train.updates_per_step
        for update in step:
            assert len(update.ranks) == config.learner.ranks
            assert all(tokens_of(rank) > 0 for rank in update.ranks)
            assert update.work.tokens == sum(len(groups[g].logprobs) for g in update.groups)
            assert sum(tokens_of(rank) for rank in update.ranks) == sum(
                tokens_to_compute(config, groups[g], REWARDS[g]) for g in update.groups
            )
            assert len({rank["micro_batches"] for rank in update.ranks}) == 1
        assert sum(update.work.shared for update in step) > 0


def tokens_to_compute(config, group, rewards) -> int:
    """Response tokens of the conversations that have a gradient."""
    if config.objective.terms():
        return len(group.logprobs)
    has_gradient = (np.array(rewards) != np.mean(rewards))[group.episodes]
    return int(np.diff(group.response_offsets)[has_gradient].sum())


def test_staleness_and_mismatch_are_measured_token_by_token(trained):
    """All tokens are of version 0; only at the first step did the learner have that version too."""
    config, _, steps, _, _ = trained
    for age, step in enumerate(steps):
        assert all(update.work.staleness == (*[0] * age, update.work.tokens) for update in step)
    ranks = [[rank for update in step for rank in update.ranks] for step in steps]
    assert [sum(same_version_tokens(rank) for rank in step) > 0 for step in ranks] == [True, False, False]
    first, *others = steps[0]
    assert all(same_version_tokens(rank) == tokens_of(rank) for rank in first.ranks)
    # The other updates have moved on; what the weights were at the start, the proximal pass alone has kept.
    known = [same_version_tokens(rank) == tokens_of(rank) for update in others for rank in update.ranks]
    assert all(known) if config.objective.decoupled else not any(known)


def test_the_ratio_is_one_in_the_first_update_of_a_step_and_moves_in_the_others(trained):
    config, _, steps, _, _ = trained
    if not config.objective.decoupled:
        assert all(
            total(rank, "importance_mean") == tokens_of(rank)
            for step in steps
            for update in step
            for rank in update.ranks
        )
        return
    for first, *others in steps:
        assert all(total(rank, "ratio_mean") == pytest.approx(tokens_of(rank), rel=1e-6) for rank in first.ranks)
        assert all(total(rank, "clip_fraction") == 0 for rank in first.ranks)
        assert all(
            total(rank, "ratio_mean") != pytest.approx(tokens_of(rank), rel=1e-6) for o in others for rank in o.ranks
        )


def test_the_kl_to_the_initial_model_is_0_at_first_and_grows(trained):
    config, _, steps, _, _ = trained
    kl = [sum(total(rank, "kl") for rank in update.ranks) for step in steps for update in step]
    if not config.objective.kl_coefficient:
        assert not any(kl)
    else:
        assert kl[0] == pytest.approx(0, abs=1e-4) and kl[-1] > 1e-3


def test_the_learning_rate_follows_the_schedule_in_optimizer_steps(trained):
    config, _, steps, _, _ = trained
    rates = [rank["learning_rate"] for step in steps for update in step for rank in update.ranks[:1]]
    assert rates == pytest.approx([rate_of(config, update) for update in range(len(rates))])
    assert rates[0] == config.learner.learning_rate / 2 and rates[1] == config.learner.learning_rate


def test_an_update_that_is_not_finite_is_skipped_on_all_ranks_and_its_group_is_named(trained):
    config, before, steps, (spoiled, after, next_step), _ = trained
    assert sorted(update.skipped for update in spoiled) == [False] * (len(spoiled) - 1) + [True]
    (skipped,) = [update for update in spoiled if update.skipped]
    assert GROUPS - 1 in skipped.groups and skipped.culprits == [GROUPS - 1]
    assert all(rank["grad_norm"] is None for rank in skipped.ranks)
    assert all(torch.isfinite(weight).all() for weight in after.values())
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert bool(changed) == (len(spoiled) > 1)  # by the good updates of the step, if there are any
    assert not any(update.skipped for update in next_step)
    # A skipped update is none in the schedule either.
    done = sum(not update.skipped for step in [*steps, spoiled] for update in step)
    assert next_step[0].ranks[0]["learning_rate"] == pytest.approx(rate_of(config, done))


def test_a_checkpoint_is_a_plain_hugging_face_folder(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, weights, _, _, folder = trained
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"
    assert not folder.with_name("hf.partial").exists()
