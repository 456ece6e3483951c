"""The gradient of packed micro-batches is that of a naive loop, whatever the packing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.learning.step import inputs_of, tensors
from pipeline.learning.objective import token_losses
from pipeline.learning.packing import Item, build_micro_batch, plan_update
from pipeline.learning.policy import Policy
from pipeline.rollout.episodes import Completion, Conversation, Episode, pack_group
from pipeline.rollout.prefix_tree import PrefixTree
from pipeline.sections import ObjectiveSection
from tests.support.groups import random_group

TEMPERATURE = 0.8
OBJECTIVE = ObjectiveSection(
    clip_high=0.28, importance_cap=2.0, kl_coefficient=0.1, entropy_coefficient=0.05, entropy_weight="reward"
)


def load(model, attention: str) -> Policy:
    from transformers import AutoModelForCausalLM

    policy = Policy(AutoModelForCausalLM.from_pretrained(model), TEMPERATURE, train_entropy=True)
    policy.model.set_attn_implementation(attention)
    return policy


@pytest.fixture(scope="module")
def policy(random_model):
    return load(random_model, "forest")


@pytest.fixture(scope="module")
def plain(random_model):
    """The same weights with transformers' own attention."""
    return load(random_model, "sdpa")


@pytest.fixture(scope="module")
def reference(other_model):
    return load(other_model, "forest").requires_grad_(False)


@pytest.fixture(scope="module")
def plain_reference(other_model):
    return load(other_model, "sdpa").requires_grad_(False)


def rewards_of(advantages):
    """Any rewards that are not the advantages."""
    return {g: np.abs(values) for g, values in advantages.items()}


def micro_batch(items, groups, advantages):
    """`advantages`: of the episodes, which all their conversations have."""
    of_conversations = {g: values[groups[g].episodes] for g, values in advantages.items()}
    return build_micro_batch(items, groups, of_conversations, rewards_of(advantages))


def gradient(policy, reference, groups, advantages, plan) -> tuple[float, torch.Tensor]:
    """The loss and gradient of one update; `plan`: the micro-batches of all ranks."""
    policy.zero_grad()
    total, tokens = 0.0, sum(len(group.logprobs) for group in groups.values())
    for items in plan:
        batch = tensors(micro_batch(items, groups, advantages))
        inputs = inputs_of(batch)
        logprobs, entropy = policy(*inputs)
        losses = token_losses(
            logprobs,
            entropy,
            batch["advantages"],
            batch["rewards"],
            behaviour=batch["behaviour"],
            proximal=(batch["behaviour"] + logprobs.detach()) / 2,  # anything between, to have all terms at work
            reference=reference(*inputs)[0],
            objective=OBJECTIVE,
        ).losses
        loss = losses[batch["is_response"]].sum() / tokens
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in policy.parameters()])


def naive_gradient(policy, reference, groups, advantages) -> tuple[float, torch.Tensor]:
    """One conversation at a time, full logits, a loop over tokens."""
    policy.zero_grad()
    terms = []

    def logits(policy, row):
        embedding = policy.model.get_input_embeddings().weight  # tied to the lm_head
        return policy.model.base_model(input_ids=row[None], use_cache=False).last_hidden_state[0] @ embedding.T

    for g, group in groups.items():
        for c, episode in enumerate(group.episodes):
            prompt, response = group.prompt(c), group.response(c)
            row = torch.tensor(np.concatenate([prompt, response]), dtype=torch.long)
            now = torch.log_softmax(logits(policy, row) / TEMPERATURE, -1)
            old = torch.log_softmax(logits(reference, row) / TEMPERATURE, -1)
            a = float(advantages[g][episode])
            for t, token in enumerate(response):
                at, behaviour = len(prompt) - 1 + t, float(group.logprobs[group.response_offsets[c] + t])
                logprob, entropy = now[at, int(token)], -(now[at].exp() * now[at]).sum()
                proximal = (behaviour + logprob.item()) / 2
                w, rho = min(np.exp(proximal - behaviour), 2.0), torch.exp(logprob - proximal)
                gain = torch.minimum(rho * a, rho.clamp(0.8, 1.28) * a)
                gain = gain if a >= 0 else torch.maximum(gain, torch.tensor(3.0 * a))
                r = torch.exp(old[at, int(token)] - logprob)
                terms.append(-w * gain + 0.1 * (r - torch.log(r) - 1).clamp(max=10) - 0.05 * abs(a) * entropy)
    loss = torch.stack(terms).mean()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in policy.parameters()])


def tree_of(group) -> PrefixTree:
    tree = PrefixTree.of([group.inputs(c) for c in range(len(group.lengths))], least_shared=1)
    return tree.where(np.diff(group.response_offsets) > 0)


def ragged(seed: int) -> tuple[dict, dict]:
    """Three groups of three episodes with 1 to 9 conversations, empty responses and cut ones; their advantages."""
    rng = np.random.default_rng(seed)
    groups = {i: random_group(rng, str(i), conversations=9, empty=True) for i in range(3)}
    return groups, {i: rng.normal(size=3).astype(np.float32) for i in groups}


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_gradient_is_that_of_a_naive_loop_whatever_the_ranks_the_budget_and_the_packing(
    policy, plain, reference, plain_reference, seed
):
    groups, advantages = ragged(seed)
    trees = {g: tree_of(group) for g, group in groups.items()}
    naive_loss, naive = naive_gradient(plain, plain_reference, groups, advantages)
    longest = max(int(tree.lengths.max()) for tree in trees.values())
    plans = {(ranks, x): plan_update(trees, ranks, x * longest) for ranks in (1, 2, 5) for x in (1, 2, 7)}
    plans["unpacked"] = [[[Item(g, c)] for g, group in groups.items() for c in range(len(group.lengths))]]
    for name, plan in plans.items():
        loss, packed = gradient(policy, reference, groups, advantages, [m for share in plan for m in share])
        assert loss == pytest.approx(naive_loss, rel=1e-5, abs=1e-6), name
        assert distance(packed, naive) < 1e-5, name


def shuffled(group, advantages, rng):
    """The same group with its episodes, and the conversations of each, in another order."""
    order = rng.permutation(len(group.episode_answers))
    place = {int(old): new for new, old in enumerate(order)}
    conversations = sorted(rng.permutation(len(group.episodes)), key=lambda c: place[int(group.episodes[c])])
    starts = group.response_offsets
    episodes = [Episode() for _ in order]
    for c in conversations:
        tokens = group.response(c).tolist()
        logprobs = group.logprobs[starts[c] : starts[c + 1]].tolist()
        response = Completion(tokens, logprobs, [0] * len(tokens), "stop")
        episodes[place[int(group.episodes[c])]].conversations.append(
            Conversation("memory", group.prompt(c).tolist(), response)
        )
    return pack_group(group.problem_id, episodes), advantages[order]


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_gradient_does_not_depend_on_the_order_of_groups_episodes_and_conversations(policy, reference, seed):
    def result(groups, advantages):
        plan = plan_update({g: tree_of(group) for g, group in groups.items()}, 2, 100)
        return gradient(policy, reference, groups, advantages, [m for share in plan for m in share])

    groups, advantages = ragged(seed)
    rng = np.random.default_rng(seed)
    others = {new: shuffled(groups[old], advantages[old], rng) for new, old in enumerate(rng.permutation(3))}
    loss, expected = result(groups, advantages)
    other_loss, other = result({g: o[0] for g, o in others.items()}, {g: o[1] for g, o in others.items()})
    assert other_loss == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert distance(other, expected) < 1e-5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_prompt_tokens_have_no_weight_and_every_response_token_has_that_of_its_episode(seed):
    """The weight that a token of the row has in the loss is the derivative by its log-prob."""
    groups, advantages = ragged(seed)
    items = [Item(g, c) for g, group in groups.items() for c in range(len(group.lengths))]
    row = micro_batch(items, groups, advantages)
    logprobs = torch.tensor(row.behaviour).requires_grad_()  # on-policy, so nothing is clipped
    losses = token_losses(
        logprobs,
        torch.zeros(len(logprobs)),
        torch.tensor(row.advantages),
        torch.tensor(row.rewards),
        behaviour=torch.tensor(row.behaviour),
        proximal=None,
        reference=None,
        objective=ObjectiveSection(),
    ).losses
    losses[torch.tensor(row.is_response)].sum().backward()
    weight = np.zeros(len(row.tokens))  # of the token that each place predicts
    weight[row.predict_at] = logprobs.grad
    start = 0
    for g, c, _ in items:
        group, prompt = groups[g], int(groups[g].prompt_lengths[c])
        inputs = [*group.prompt(c), *group.response(c)][:-1]
        assert row.tokens[start : start + len(inputs)].tolist() == inputs
        assert not weight[start : start + prompt - 1].any()
        assert weight[start + prompt - 1 : start + len(inputs)] == pytest.approx(-advantages[g][group.episodes[c]])
        start += len(inputs)
    assert start == len(row.tokens)


def test_an_empty_micro_batch_runs_and_adds_no_gradient(policy, reference):
    groups, advantages = ragged(0)
    _, zero = gradient(policy, reference, groups, advantages, [[]])
    assert zero.abs().max() == 0


def test_a_micro_batch_of_empty_responses_runs_and_adds_no_gradient(policy, reference):
    group = pack_group("p", [Episode([Conversation("memory", [5, 6], Completion([], [], [], "stop"))])] * 2)
    filled, advantages = ragged(0)
    _, zero = gradient(policy, reference, {**filled, 9: group}, advantages | {9: np.ones(2)}, [[Item(9, 0), Item(9, 1)]])
    assert zero.abs().max() == 0
