"""Packing: everything is trained once, no rank runs out of step, and a packed row computes what its parts would."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.objective import token_losses
from pipeline.packing import build_micro_batch, pack_items, plan_step
from pipeline.policy import Policy
from tests.groups import random_group

TEMPERATURE = 0.8

group_lengths = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=9), min_size=1, max_size=12)


@given(group_lengths, st.integers(1, 4), st.integers(50, 300))
def test_every_conversation_is_trained_once_within_the_budget_in_equal_numbers_of_micro_batches(lengths, ranks, budget):
    plan = plan_step([np.array(group) for group in lengths], ranks, budget)
    assert len(plan) == ranks
    assert len({len(micro_batches) for micro_batches in plan}) == 1
    items = [item for micro_batches in plan for micro_batch in micro_batches for item in micro_batch]
    assert sorted(items) == [(g, c) for g, group in enumerate(lengths) for c in range(len(group))]
    assert all(sum(lengths[g][c] for g, c in m) <= budget for micro_batches in plan for m in micro_batches)


@given(group_lengths, st.integers(1, 4))
def test_a_group_is_trained_on_one_rank(lengths, ranks):
    plan = plan_step([np.array(group) for group in lengths], ranks, 100)
    homes = [{g for micro_batch in micro_batches for g, _ in micro_batch} for micro_batches in plan]
    assert sum(len(home) for home in homes) == len(lengths)


def test_every_rank_has_work_when_there_are_groups_enough():
    plan = plan_step([np.array([10])] * 4, 4, 100)
    assert all(micro_batches[0] for micro_batches in plan)


def test_a_conversation_over_the_budget_gets_a_micro_batch_of_its_own():
    assert pack_items([(0, 0), (0, 1)], {(0, 0): 500, (0, 1): 5}, 100) == [[(0, 0)], [(0, 1)]]


def load(model, attention: str) -> Policy:
    from transformers import AutoModelForCausalLM

    return Policy(AutoModelForCausalLM.from_pretrained(model, attn_implementation=attention), TEMPERATURE)


@pytest.fixture(scope="module")
def policy(random_model):
    return load(random_model, "packed_sdpa")


@pytest.fixture(scope="module")
def reference(random_model):
    """The same weights with transformers' own attention."""
    return load(random_model, "sdpa")


def gradient(policy, groups, advantages, plan, tokens) -> tuple[float, torch.Tensor]:
    policy.zero_grad()
    total = 0.0
    for items in plan:
        batch = {k: torch.tensor(v) for k, v in vars(build_micro_batch(items, groups, advantages)).items()}
        logprobs = policy(*(batch[k] for k in ("tokens", "positions", "predict_at", "targets")))
        losses, _ = token_losses(
            logprobs, batch["behaviour"], batch["advantages"], clip_low=0.2, clip_high=0.28, dual_clip=3.0
        )
        loss = (losses * batch["weights"]).sum() / tokens
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in policy.parameters()])


def naive_gradient(policy, groups, advantages) -> tuple[float, torch.Tensor]:
    """One conversation at a time, full logits, a loop over tokens."""
    policy.zero_grad()
    terms = []
    embedding = policy.model.get_input_embeddings().weight  # tied to the lm_head
    for g, group in groups.items():
        for c, episode in enumerate(group.episodes):
            prompt, response = group.prompt(c), group.response(c)
            row = torch.tensor(np.concatenate([prompt, response]), dtype=torch.long)
            hidden = policy.model.base_model(input_ids=row[None], use_cache=False).last_hidden_state[0]
            logprobs = torch.log_softmax(hidden @ embedding.T / TEMPERATURE, -1)
            for t, token in enumerate(response):
                behaviour = group.logprobs[group.response_offsets[c] + t]
                ratio = torch.exp(logprobs[len(prompt) - 1 + t, int(token)] - behaviour)
                a = float(advantages[g][episode])
                objective = torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
                terms.append(-(objective if a >= 0 else torch.maximum(objective, torch.tensor(3.0 * a))))
    loss = torch.stack(terms).mean()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in policy.parameters()])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), budget=st.sampled_from([45, 100, 1000]), ranks=st.integers(1, 3))
def test_the_gradient_does_not_depend_on_ranks_or_packing(policy, reference, seed, budget, ranks):
    rng = np.random.default_rng(seed)
    groups = {i: random_group(rng, str(i)) for i in range(3)}
    advantages = {i: rng.normal(size=3).astype(np.float32) for i in groups}
    tokens = sum(len(group.logprobs) for group in groups.values())
    plan = plan_step([group.lengths for group in groups.values()], ranks, budget)
    loss, packed = gradient(policy, groups, advantages, [m for share in plan for m in share], tokens)
    naive_loss, naive = naive_gradient(reference, groups, advantages)
    assert loss == pytest.approx(naive_loss, rel=1e-5, abs=1e-6)
    assert distance(packed, naive) < 1e-5


def test_an_empty_micro_batch_runs_and_adds_no_gradient(policy):
    _, zero = gradient(policy, {}, {}, [[]], 1)
    assert zero.abs().max() == 0
