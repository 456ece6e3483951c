"""Packing: everything is trained once, no rank runs out of step, and the gradient knows nothing of any of it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learning.packing import (
    UNEVEN,
    Item,
    assign_runs,
    balanced,
    build_micro_batch,
    plan_update,
    split_updates,
    work_of,
)
from pipeline.rollout.episodes import Completion, Conversation, Episode, pack_group
from pipeline.rollout.prefix_tree import PrefixTree
from tests.support.forests import seen_by
from tests.support.groups import record_of
from tests.support.reading import LAYOUTS, group_of, reading_group


def tree_of(sequences, least_shared: int = 1) -> PrefixTree:
    return PrefixTree.of([np.array(tokens, np.int32) for tokens in sequences], least_shared)


sequences = st.integers(1, 3).flatmap(
    lambda words: st.lists(st.lists(st.integers(1, words), min_size=1, max_size=15), min_size=1, max_size=9)
)
groups_of = st.lists(sequences, min_size=1, max_size=8).map(lambda groups: dict(enumerate(groups)))
ranks_of, budgets = st.integers(1, 6), st.integers(1, 80)


def trees_of(groups, least_shared: int = 1) -> dict[int, PrefixTree]:
    return {g: tree_of(group, least_shared) for g, group in groups.items()}


def lengths_in(groups, items: list[Item]) -> list[int]:
    return [len(groups[item.group][item.conversation]) for item in items]


def computed(groups, items: list[Item]) -> int:
    """Tokens of a micro-batch that the model computes."""
    return sum(lengths_in(groups, items)) - sum(item.shared for item in items)


def prefixes(groups, items) -> set:
    """All different prefixes of a micro-batch, each with its group. With `least_shared` 1 each is computed once."""
    return {(g, tuple(groups[g][c][: n + 1])) for g, c, *_ in items for n in range(len(groups[g][c]))}


@given(groups_of, ranks_of, budgets, st.sampled_from([1, 3]))
def test_every_conversation_is_trained_once_within_the_budget_in_equal_numbers_of_micro_batches(
    groups, ranks, budget, least_shared
):
    plan = plan_update(trees_of(groups, least_shared), ranks, budget)
    assert len(plan) == ranks
    assert len({len(micro_batches) for micro_batches in plan}) == 1
    items = [item for micro_batches in plan for micro_batch in micro_batches for item in micro_batch]
    assert sorted((g, c) for g, c, _ in items) == [(g, c) for g, group in groups.items() for c in range(len(group))]
    for micro_batches in plan:
        assert all(computed(groups, m) <= budget or len(m) == 1 for m in micro_batches)
        if [] in micro_batches:  # only where there is nothing left to divide
            assert all(len({item.group for item in m}) <= 1 for m in micro_batches)


@given(groups_of, ranks_of, budgets)
def test_items_share_what_is_equal_with_the_item_before(groups, ranks, budget):
    for micro_batches in plan_update(trees_of(groups), ranks, budget):
        for items in micro_batches:
            assert computed(groups, items) == len(prefixes(groups, items))
            assert not items or items[0].shared == 0
            for a, b in zip(items, items[1:], strict=False):
                assert b.shared == 0 or a.group == b.group
                of_a, of_b = groups[a.group][a.conversation], groups[b.group][b.conversation]
                assert of_a[: b.shared] == of_b[: b.shared]


@given(groups_of, st.integers(1, 4), budgets)
def test_a_group_is_on_one_rank_and_in_one_micro_batch_if_that_is_even_and_the_budget_allows(groups, ranks, budget):
    trees = trees_of(groups)
    homes: dict[int, list] = {g: [] for g in groups}
    for rank, micro_batches in enumerate(plan_update(trees, ranks, budget)):
        for number, items in enumerate(micro_batches):
            for g in {item.group for item in items}:
                homes[g].append((rank, number))
    sizes = [tree.tokens() for tree in trees.values()]
    loads = [sum(sizes[i] for i in share) for share in balanced(sizes, ranks)]
    if max(loads) <= UNEVEN * sum(sizes) / ranks:
        for g, tree in trees.items():
            assert len({rank for rank, _ in homes[g]}) == 1
            assert tree.tokens() > budget or len(homes[g]) == 1


@given(groups_of, st.integers(1, 4))
def test_cutting_groups_makes_the_largest_load_no_larger(groups, ranks):
    trees = trees_of(groups)
    sizes = [tree.tokens() for tree in trees.values()]
    loads = [sum(trees[run.group].tokens(run.start, run.stop) for run in share) for share in assign_runs(trees, ranks)]
    assert max(loads) <= max(sum(sizes[i] for i in share) for share in balanced(sizes, ranks))


def test_examples_of_any_lengths_are_divided_evenly_and_in_step():
    """As in fine-tuning: every example is a tree of its own."""
    lengths = np.random.default_rng(0).lognormal(6.5, 0.8, 256).clip(16, 8000).astype(int)
    trees = {i: PrefixTree.without_sharing(lengths[i : i + 1]) for i in range(256)}
    plan = plan_update(trees, 16, 8192)
    sizes = np.array([[sum(lengths[item.group] for item in items) for items in of_rank] for of_rank in plan])
    assert sizes.max() <= 8192
    assert sizes.max(0).sum() <= 1.1 * lengths.sum() / 16  # the ranks run micro-batch after micro-batch together


def group_at_the_presets_sizes(is_shared: bool) -> PrefixTree:
    """16 episodes of 6 memory conversations and an answer: 1,000 tokens of problem, 5,000 of section, 1,000 more."""
    turn = [0 if not is_shared else 1000, *[6000 if is_shared else 0] * 15]
    shared = np.array([*turn * 6, *[1000 if is_shared else 0] * 16])
    shared[0] = 0
    return PrefixTree(np.arange(112), np.array([7000] * 96 + [2000] * 16), shared)


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize(("groups", "ranks"), [(8, 24), (16, 96), (16, 24), (3, 4), (1, 7)])
def test_few_groups_are_divided_evenly_among_many_ranks(groups, ranks, is_shared):
    """As in the paper's presets: eight groups of 112 conversations on 24 ranks, sixteen on 96."""
    trees = {g: group_at_the_presets_sizes(is_shared) for g in range(groups)}
    shares = assign_runs(trees, ranks)
    assert sorted((run.group, place) for share in shares for run in share for place in range(run.start, run.stop)) == [
        (g, place) for g in range(groups) for place in range(112)
    ]
    loads = [sum(trees[run.group].tokens(run.start, run.stop) for run in share) for share in shares]
    fair = sum(tree.tokens() for tree in trees.values()) / ranks
    # Few cuts divide a tree of sections evenly without computing a section again.
    assert max(loads) <= (1.6 if is_shared else 1.1) * fair


def test_nothing_to_compute_is_one_empty_micro_batch_on_every_rank():
    nothing = tree_of([[1, 2], [3]]).where(np.array([False, False]))
    assert plan_update({0: nothing, 4: nothing}, 2, 100) == [[[]], [[]]]
    assert plan_update({0: nothing, 4: tree_of([[1]])}, 2, 100) == [[[Item(4, 0, 0)]], [[]]]


def test_a_conversation_over_the_budget_gets_a_micro_batch_of_its_own():
    (micro_batches,) = plan_update({0: tree_of([[1] * 500, [2] * 5])}, 1, 100)
    assert sorted(micro_batches) == [[Item(0, 0, 0)], [Item(0, 1, 0)]]


def test_a_tree_over_the_budget_is_divided_and_its_prefix_computed_again():
    """A prefix of 60 tokens below four branches of 10; 80 tokens have room for two of them."""
    group = {0: [[1] * 60 + [10 + c] * 10 for c in range(4)]}
    trees = trees_of(group)
    plan = plan_update(trees, 1, 80)
    assert [[item.shared for item in items] for items in plan[0]] == [[0, 60], [0, 60]]
    work = work_of([record_with(group[0], [0])], list(trees.values()), plan, version=0)
    assert (work.computed, work.shared, work.recomputed) == (160, 120, 60)


def record_with(sequences, versions):
    """A record of which only the response tokens count: as many as `sequences` has, written by these versions."""
    group = group_of([[([1], tokens[: 1 + c % 2]) for c, tokens in enumerate(sequences)]])
    group = replace(group, versions=np.resize(np.array(versions, np.int32), len(group.versions)))
    return record_of(group, "g", [0.0])


@given(groups_of, ranks_of, budgets)
def test_the_work_is_counted_exactly(groups, ranks, budget):
    trees = {g: tree.where(np.arange(len(tree)) % 3 != 1) for g, tree in trees_of(groups).items()}
    plan = plan_update(trees, ranks, budget)
    records = [record_with(group, [3, 1, 3]) for group in groups.values()]
    work = work_of(records, list(trees.values()), plan, version=4)
    micro_batches = [items for of_rank in plan for items in of_rank]
    chosen = [(g, c) for g, tree in trees.items() for c in tree.order.tolist()]
    assert work.computed == sum(len(prefixes(groups, items)) for items in micro_batches)
    assert work.computed + work.shared == sum(len(groups[g][c]) for g, c in chosen)
    assert work.recomputed == work.computed - len(prefixes(groups, chosen))
    # A token attends to itself and all before it: the prefix that it ends.
    assert work.pairs == sum(len(prefix) for items in micro_batches for _, prefix in prefixes(groups, items))
    assert work.predicted == sum(min(len(groups[g][c]), 1 + c % 2) for g, c in chosen)
    written = [version for group in groups.values() for version in np.resize([3, 1, 3], responses_of(group)).tolist()]
    assert work.tokens == len(written)
    assert work.staleness == tuple(written.count(4 - age) for age in range(4 - min(written) + 1))


def responses_of(sequences) -> int:
    """The response tokens of `record_with`."""
    return sum(min(len(tokens), 1 + c % 2) for c, tokens in enumerate(sequences))


@given(st.integers(1, 8), st.integers(1, 16), st.integers(0, 99))
def test_updates_are_disjoint_sets_of_as_many_groups(size, updates, seed):
    sets = split_updates(size * updates, updates, (seed, 5))
    assert [len(groups) for groups in sets] == [size] * updates
    assert sorted(g for groups in sets for g in groups) == list(range(size * updates))
    assert sets == split_updates(size * updates, updates, (seed, 5))


def test_groups_are_dealt_out_at_random():
    """Not in the order in which they were finished, and differently in every step."""
    assert (
        split_updates(64, 4, (0, 0))
        != split_updates(64, 4, (0, 1))
        != [list(range(i, i + 16)) for i in (0, 16, 32, 48)]
    )


def some_rows(seed: int):
    """Groups with shared prefixes, and the micro-batches of all ranks."""
    rng = np.random.default_rng(seed)
    sizes = {"vocabulary": int(rng.choice([2, 50])), "part": int(rng.integers(1, 5))}
    groups = {g: reading_group(rng, LAYOUTS[g % 2], **sizes) for g in (2, 5)}
    trees = {g: tree_of([group.inputs(c) for c in range(len(group.lengths))]) for g, group in groups.items()}
    for ranks, budget in ((1, 10_000), (2, 60)):
        yield groups, [m for micro_batches in plan_update(trees, ranks, budget) for m in micro_batches if m]


def numbers_of(groups) -> tuple[dict, dict]:
    """Advantages of conversations and rewards of episodes, all different."""
    advantages = {g: 100 * g + np.arange(len(group.lengths), dtype=np.float32) for g, group in groups.items()}
    rewards = {g: 0.5 + g + np.arange(len(group.episode_answers), dtype=np.float32) for g, group in groups.items()}
    return advantages, rewards


@pytest.mark.parametrize("seed", range(5))
def test_every_response_token_is_predicted_from_the_tokens_before_it_in_its_conversation(seed):
    for groups, plan in some_rows(seed):
        for items in plan:
            row = build_micro_batch(items, groups, *numbers_of(groups))
            assert len(row.tokens) == len(row.positions) == row.forest.tokens
            seen = seen_by(row.forest)
            r = 0
            for g, c, _ in items:
                prompt, response = groups[g].prompt(c), groups[g].response(c)
                for t, token in enumerate(response):
                    places = np.flatnonzero(seen[row.predict_at[r]])
                    places = places[np.argsort(row.positions[places])]
                    assert row.positions[places].tolist() == list(range(len(prompt) + t))
                    assert row.tokens[places].tolist() == [*prompt, *response[:t]]
                    assert places[-1] == row.predict_at[r] and row.targets[r] == token
                    r += 1
            assert r == len(row.targets) == len(row.predict_at)


@pytest.mark.parametrize("seed", range(3))
def test_every_response_token_has_the_numbers_of_its_conversation_episode_and_group(seed):
    for groups, plan in some_rows(seed):
        advantages, rewards = numbers_of(groups)
        for items in plan:
            row = build_micro_batch(items, groups, advantages, rewards)

            def of_tokens(values, items=items, groups=groups):
                return [v for (g, c, _), v in zip(items, values, strict=True) for _ in groups[g].response(c)]

            assert row.advantages.tolist() == of_tokens([advantages[g][c] for g, c, _ in items])
            assert row.rewards.tolist() == of_tokens([rewards[g][groups[g].episodes[c]] for g, c, _ in items])
            assert row.groups.tolist() == of_tokens([g for g, _, _ in items])
            behaviour = [
                groups[g].logprobs[groups[g].response_offsets[c] : groups[g].response_offsets[c + 1]]
                for g, c, _ in items
            ]
            assert row.behaviour.tolist() == np.concatenate([[], *behaviour]).tolist()
            assert row.is_response.all()


def test_two_conversations_may_predict_from_the_same_place():
    """Equal prompts: the first tokens of all responses are predicted at the prompt's end."""
    group = group_of([[([5, 6], [1, 2])], [([5, 6], [1, 3])], [([5, 6], [4])]])
    tree = tree_of([group.inputs(c) for c in range(3)])
    ((items,),) = plan_update({0: tree}, 1, 100)
    row = build_micro_batch(items, {0: group}, {0: np.arange(3)}, {0: np.arange(3)})
    assert row.tokens.tolist() == [5, 6, 1]
    predicted = sorted(zip(row.predict_at.tolist(), row.targets.tolist(), strict=True))
    assert predicted == [(1, 1), (1, 1), (1, 4), (2, 2), (2, 3)]


@pytest.mark.parametrize(("prompt", "logprob", "message"), [([], -1.0, "prompt"), ([1], float("nan"), "not finite")])
def test_an_unusable_conversation_is_refused(prompt, logprob, message):
    with pytest.raises(ValueError, match=message):
        pack_group("p", [Episode([Conversation("memory", prompt, Completion([5], [logprob], [0], "stop"))])])
