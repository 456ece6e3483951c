"""The gradient of forests is that of a plain loop over conversations, whatever is shared and however it is packed."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipeline.config import CONFIGS
from pipeline.learning.objective import token_losses
from pipeline.learning.packing import Item, build_micro_batch, plan_update, work_of
from pipeline.learning.policy import Policy, inputs_of, tensors
from pipeline.rollout.episodes import Episode, EpisodeGroup
from pipeline.rollout.prefix_tree import LEAST_SHARED, PrefixTree
from pipeline.sections import ObjectiveSection
from tests.support.groups import record_of
from tests.support.policies import FAMILIES, PLAIN, small_policy
from tests.support.reading import LAYOUTS, PAPER, SECTION_FIRST, group_of, reading_group

TINY = CONFIGS / "models" / "tiny"
TEMPERATURE = 0.8
ALL_TERMS = ObjectiveSection(
    clip_high=0.28, importance_cap=2.0, kl_coefficient=0.1, entropy_coefficient=0.05, entropy_weight="reward"
)
# An example is a seed, which cannot be made simpler.
of_seeds = settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


class Models(NamedTuple):
    """The same weights twice: with the learner's attention, and with transformers'."""

    policy: Policy
    plain: Policy
    reference: Policy
    plain_reference: Policy


@pytest.fixture(scope="module", params=FAMILIES)
def models(request) -> Models:
    return Models(*(small_policy(request.param, seed, attention) for seed in (1, 2) for attention in (None, PLAIN)))


class Result(NamedTuple):
    """`logprobs`, `entropies` and `reference` are of the response tokens, by group and conversation."""

    loss: float
    gradient: torch.Tensor
    logprobs: dict
    entropies: dict
    reference: dict


def rewards_of(advantages):
    """Any rewards that are not the advantages."""
    return {g: np.abs(values) for g, values in advantages.items()}


def micro_batch(items, groups, advantages):
    """`advantages`: of the episodes, which all their conversations have."""
    of_conversations = {g: values[groups[g].episodes] for g, values in advantages.items()}
    return build_micro_batch(items, groups, of_conversations, rewards_of(advantages))


def gradient_of(policy: Policy) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def proximal_of(behaviour, logprobs):
    """Anything between, to have all terms at work."""
    return (behaviour + logprobs.detach()) / 2


def of_forests(models: Models, groups, advantages, plan, objective=ALL_TERMS) -> Result:
    """One update; `plan`: the micro-batches of all ranks."""
    models.policy.zero_grad()
    total, tokens = 0.0, sum(len(group.logprobs) for group in groups.values())
    by_conversation: tuple[dict, dict, dict] = {}, {}, {}
    for items in plan:
        batch = tensors(micro_batch(items, groups, advantages))
        logprobs, entropy = models.policy(*inputs_of(batch))
        with torch.no_grad():
            reference, _ = models.reference(*inputs_of(batch))
        losses = token_losses(
            logprobs,
            entropy,
            batch["advantages"],
            batch["rewards"],
            behaviour=batch["behaviour"],
            proximal=proximal_of(batch["behaviour"], logprobs),
            reference=reference if objective.kl_coefficient else None,
            objective=objective,
        ).losses
        loss = losses[batch["is_response"]].sum() / tokens
        loss.backward()
        total += loss.item()
        counts = [len(groups[g].response(c)) for g, c, _ in items]
        if items:
            for known, values in zip(by_conversation, (logprobs, entropy, reference), strict=True):
                known.update(zip([(g, c) for g, c, _ in items], values.detach().split(counts), strict=True))
    return Result(total, gradient_of(models.policy), *by_conversation)


def of_a_plain_loop(models: Models, groups, advantages) -> Result:
    """One conversation at a time, full logits, every term of `ALL_TERMS` written out."""
    models.plain.zero_grad()
    terms, by_conversation = [], ({}, {}, {})

    def log_softmax(policy, row):
        hidden = policy.model.base_model(input_ids=row[None], use_cache=False).last_hidden_state[0]
        return torch.log_softmax(hidden @ policy.model.get_output_embeddings().weight.T / TEMPERATURE, -1)

    for g, group in groups.items():
        for c, episode in enumerate(group.episodes):
            prompt, response = group.prompt(c), torch.tensor(group.response(c), dtype=torch.long)
            if not len(response):
                continue
            row = torch.cat([torch.tensor(prompt, dtype=torch.long), response])
            at = torch.arange(len(prompt) - 1, len(row) - 1)
            now, old = log_softmax(models.plain, row)[at], log_softmax(models.plain_reference, row)[at].detach()
            start = group.response_offsets[c]
            behaviour, a = torch.tensor(group.logprobs[start : start + len(response)]), float(advantages[g][episode])
            each = torch.arange(len(response))
            logprob, entropy = now[each, response], -(now.exp() * now).sum(1)
            proximal = proximal_of(behaviour, logprob)
            w, rho = (proximal - behaviour).exp().clamp(max=2.0), torch.exp(logprob - proximal)
            gain = torch.minimum(rho * a, rho.clamp(0.8, 1.28) * a)
            gain = gain if a >= 0 else torch.maximum(gain, torch.tensor(3.0 * a))
            r = torch.exp(old[each, response] - logprob)
            terms.append(-w * gain + 0.1 * (r - torch.log(r) - 1).clamp(max=10) - 0.05 * abs(a) * entropy)
            for known, values in zip(by_conversation, (logprob, entropy, old[each, response]), strict=True):
                known[g, c] = values.detach()
    loss = torch.cat(terms).mean()
    loss.backward()
    return Result(loss.item(), gradient_of(models.plain), *by_conversation)


def tree_of(group: EpisodeGroup, least_shared: int = 1) -> PrefixTree:
    tree = PrefixTree.of([group.inputs(c) for c in range(len(group.lengths))], least_shared)
    return tree.where(np.diff(group.response_offsets) > 0)


def trees_of(groups, least_shared: int = 1) -> dict[int, PrefixTree]:
    return {g: tree_of(group, least_shared) for g, group in groups.items()}


def all_of(plan) -> list[list[Item]]:
    return [items for micro_batches in plan for items in micro_batches]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def assert_equal(got: Result, expected: Result, name: object = "") -> None:
    assert got.loss == pytest.approx(expected.loss, rel=1e-5, abs=1e-6), name
    assert distance(got.gradient, expected.gradient) < 1e-5, name
    for values, plain in zip(got[2:], expected[2:], strict=True):
        assert values.keys() == plain.keys(), name
        for key, each in plain.items():
            assert torch.allclose(values[key], each, rtol=0, atol=3e-5), (name, key)


def some_groups(seed: int) -> tuple[np.random.Generator, dict, dict]:
    """Groups of any layout and shape, and advantages of their episodes, some of them 0."""
    rng = np.random.default_rng(seed)

    def group(i: int) -> EpisodeGroup:
        turns = int(rng.integers(1, 5))
        return reading_group(
            rng,
            LAYOUTS[rng.integers(2)],
            episodes=int(rng.integers(2, 5)),
            turns=turns,
            missing=int(rng.integers(0, turns)),
            vocabulary=int(rng.choice([2, 5, 60])),
            section=int(rng.integers(1, 12)),
            part=int(rng.integers(1, 5)),
            name=str(i),
        )

    groups = {i: group(i) for i in range(int(rng.integers(1, 4)))}
    drawn = {g: rng.normal(size=len(group.episode_answers)) for g, group in groups.items()}
    return rng, groups, {g: (a * (rng.random(len(a)) < 0.8)).astype(np.float32) for g, a in drawn.items()}


@of_seeds
@given(seed=st.integers(0, 10**6))
def test_the_gradient_is_that_of_a_plain_loop_whatever_the_layout_the_tree_the_ranks_and_the_budget(models, seed):
    rng, groups, advantages = some_groups(seed)
    expected = of_a_plain_loop(models, groups, advantages)
    longest = max(int(group.lengths.max()) for group in groups.values())
    for ranks, budget, least_shared in (
        (1, 10_000, 1),
        (2, int(rng.integers(1, longest)), 1),
        (int(rng.integers(3, 6)), int(rng.integers(longest, 4 * longest)), int(rng.choice([1, 3, 16]))),
    ):
        plan = all_of(plan_update(trees_of(groups, least_shared), ranks, budget))
        assert_equal(of_forests(models, groups, advantages, plan), expected, (ranks, budget, least_shared))


def shuffled(group: EpisodeGroup, advantages, rng) -> tuple[EpisodeGroup, np.ndarray]:
    """The same group with its episodes, and the conversations of each, in another order."""
    order = rng.permutation(len(group.episode_answers))
    place = {int(old): new for new, old in enumerate(order)}
    episodes = [Episode() for _ in order]
    for c in rng.permutation(len(group.episodes)):
        written = [group.prompt(c).tolist(), group.response(c).tolist()]
        episodes[place[int(group.episodes[c])]].conversations.append((written, c))
    new_order = [c for episode in episodes for _, c in episode.conversations]
    starts = group.response_offsets
    new = group_of([[written for written, _ in episode.conversations] for episode in episodes])
    logprobs = np.concatenate([group.logprobs[starts[c] : starts[c + 1]] for c in new_order])
    return replace(new, logprobs=logprobs), advantages[order]


@settings(of_seeds, max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_the_gradient_does_not_depend_on_the_order_of_groups_episodes_and_conversations(models, seed):
    rng, groups, advantages = some_groups(seed)
    others = {new: shuffled(groups[old], advantages[old], rng) for new, old in enumerate(rng.permutation(len(groups)))}
    results = [
        of_forests(models, groups_, advantages_, all_of(plan_update(trees_of(groups_), 2, 60)))
        for groups_, advantages_ in (
            (groups, advantages),
            ({g: o[0] for g, o in others.items()}, {g: o[1] for g, o in others.items()}),
        )
    ]
    assert results[1].loss == pytest.approx(results[0].loss, rel=1e-5, abs=1e-6)
    assert distance(results[1].gradient, results[0].gradient) < 1e-5


SECTION = list(range(10, 30))
# The conversations of each episode, and the tokens to compute if each prefix is computed once.
CASES = {
    "equal to the last token": ([[([3, 4, 5], [6, 7])], [([3, 4, 5], [6, 7])]], 4),
    "equal up to the last token": ([[([3, 4, 5], [6, 7])], [([3, 4, 5], [6, 8])]], 4),
    "one is a prefix of another": ([[([3, 4], [5])], [([3, 4, 5, 6], [7, 8])]], 5),
    "one ends where another's response begins": ([[([3, 4], [5, 6])], [([3, 4, 5, 6], [7])]], 4),
    "two episodes": ([[([*SECTION, 1, 2], [3])], [([*SECTION, 5], [6, 7])]], 20 + 2 + 2),
    "empty responses": ([[([3, 4], []), ([3, 4], [5])], [([3], []), ([3, 6], [7, 8])]], 1 + 1 + 2),
    "nothing shared": ([[([3, 4], [5, 6])], [([4, 3], [5, 6])]], 6),
    "prompts of one token": ([[([3], [4, 5])], [([3], [6])], [([7], [8])]], 3),
    "the same first prompts": (
        [[([1, 2, *SECTION, 4], [5 + i, 6]), ([1, 2, 5 + i, 6, *SECTION, 4], [7])] for i in range(3)],
        23 + 3 * 1 + 3 * 23,
    ),
    "a prefix within a prefix": (
        [[([9, *SECTION, 30 + e, 8], [e]), ([9, *SECTION[::-1], 40 + e, 8], [e])] for e in range(3)],
        1 + 2 * 20 + 6 * 2,
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_gradient_of_an_unusual_tree(models, name, ranks):
    episodes, tokens = CASES[name]
    groups = {0: group_of(episodes)}
    advantages = {0: np.array([1.0, -0.5, 2.0], np.float32)[: len(episodes)]}
    trees = trees_of(groups)
    plan = plan_update(trees, ranks, 1000)
    work = work_of([record_of(groups[0], "g", np.ones(len(episodes)))], list(trees.values()), plan, 0)
    assert work.computed - work.recomputed == tokens
    assert work.recomputed == 0 or ranks > 1
    assert_equal(of_forests(models, groups, advantages, all_of(plan)), of_a_plain_loop(models, groups, advantages))


@pytest.mark.parametrize("layout", [PAPER, SECTION_FIRST])
def test_the_gradient_where_one_episode_is_shorter_by_three_turns(models, layout):
    groups = {0: reading_group(np.random.default_rng(0), layout, turns=4, missing=3)}
    assert np.bincount(groups[0].episodes).tolist() == [2, 5, 5, 5]
    advantages = {0: np.array([1.0, -0.5, 2.0, 0.0], np.float32)}
    plan = all_of(plan_update(trees_of(groups), 1, 1000))
    assert len(plan) == 1 and sum(item.shared for item in plan[0]) > 30
    assert_equal(of_forests(models, groups, advantages, plan), of_a_plain_loop(models, groups, advantages))


def test_the_gradient_of_a_tree_over_the_budget(models):
    """Its prefix is computed again and counted."""
    groups = {0: group_of([[([*SECTION, 30 + e], [e, 5, 6])] for e in range(4)])}
    advantages = {0: np.array([1.0, -0.5, 2.0, 0.3], np.float32)}
    trees = trees_of(groups)
    plan = plan_update(trees, 1, 26)
    assert [len(items) for items in plan[0]] == [2, 2]
    work = work_of([record_of(groups[0], "g", np.ones(4))], list(trees.values()), plan, 0)
    assert (work.computed, work.shared, work.recomputed) == (2 * 20 + 4 * 3, 2 * 20, 20)
    assert_equal(of_forests(models, groups, advantages, plan[0]), of_a_plain_loop(models, groups, advantages))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_of_a_trained_model_is_as_near_to_float64_as_that_of_plain_passes(layout):
    """Its attention is far sharper than that of random weights, so float32 rounds it more."""
    from transformers import AutoModelForCausalLM

    def policy(attention: str | None = None) -> Policy:
        policy = Policy(AutoModelForCausalLM.from_pretrained(TINY), TEMPERATURE, train_entropy=True)
        if attention:
            policy.model.set_attn_implementation(attention)
        return policy

    rng = np.random.default_rng(0)
    groups = {g: reading_group(rng, layout, vocabulary=115, section=30, part=15 + g) for g in range(2)}
    advantages = {g: rng.normal(size=4).astype(np.float32) for g in groups}
    plan = all_of(plan_update(trees_of(groups, LEAST_SHARED), 1, 16384))
    forest, plain, exact = policy(), policy(PLAIN), policy(PLAIN).double()
    expected = of_a_plain_loop(Models(exact, exact, exact, exact), groups, advantages)
    usual = of_a_plain_loop(Models(plain, plain, plain, plain), groups, advantages)
    got = of_forests(Models(forest, forest, forest, forest), groups, advantages, plan)
    assert distance(got.gradient.double(), expected.gradient) < 1.5 * distance(
        usual.gradient.double(), expected.gradient
    )


def test_a_conversation_of_advantage_0_has_a_gradient_of_exactly_0(models):
    """So it need not be computed, unless there is another term."""
    rng, groups, advantages = some_groups(1)
    none = {g: np.zeros_like(a) for g, a in advantages.items()}
    plan = all_of(plan_update(trees_of(groups), 1, 1000))
    assert not of_forests(models, groups, none, plan, ObjectiveSection()).gradient.any()
    for term in ("kl_coefficient", "entropy_coefficient"):
        assert of_forests(models, groups, none, plan, ObjectiveSection(**{term: 0.1})).gradient.any()


@pytest.mark.parametrize("items", [[], [Item(9, 0), Item(9, 1)]], ids=["empty", "of empty responses"])
def test_a_micro_batch_without_responses_runs_and_adds_no_gradient(models, items):
    _, groups, advantages = some_groups(0)
    groups[9], advantages[9] = group_of([[([5, 6], [])], [([7, 6], []), ([7], [1])]]), np.ones(2, np.float32)
    assert not of_forests(models, groups, advantages, [items]).gradient.any()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_prompt_tokens_have_no_weight_and_every_response_token_has_that_of_its_episode(seed):
    """The weight that a token of the row has in the loss is the derivative by its log-prob."""
    _, groups, advantages = some_groups(seed)
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


def test_in_bfloat16_a_forest_is_as_near_to_float32_as_plain_passes():
    """Heads of 64 and 2,000 tokens, as in real models: a section of 1,500, then memories and responses."""
    rng = np.random.default_rng(0)
    section = rng.integers(0, 200, 1500).tolist()
    group = group_of([[(section + rng.integers(0, 200, 200 + 60 * e).tolist(), [e] * 40)] for e in range(3)])
    ((items,),) = plan_update({0: tree_of(group)}, 1, 4000)
    assert sum(item.shared for item in items) == 2 * 1500
    sizes = {"vocab_size": 200, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2}

    def passed(attention, dtype, batches) -> tuple[torch.Tensor, torch.Tensor]:
        policy = small_policy("qwen2", 3, attention, dtype=torch.bfloat16, num_key_value_heads=1, **sizes).to(dtype)
        logprobs = []
        for batch in batches:
            row = tensors(micro_batch(batch, {0: group}, {0: np.array([1.0, -1.0, 0.5], np.float32)}))
            found, _ = policy(*inputs_of(row))
            (found * row["advantages"]).sum().backward()
            logprobs.append(found.detach())
        return torch.cat(logprobs), gradient_of(policy).float()

    alone = [[item._replace(shared=0)] for item in items]
    exact = passed(PLAIN, torch.float32, alone)
    plain, forest = passed(PLAIN, torch.bfloat16, alone), passed(None, torch.bfloat16, [items])
    for values, usual, expected in zip(forest, plain, exact, strict=True):
        assert distance(values, expected) < 1.5 * distance(usual, expected)
