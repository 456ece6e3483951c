"""Packing: assigns conversations to ranks and packs them into micro-batches.

A micro-batch is a forest (pipeline/learning/forest.py): a row of conversations without padding, in which each prefix
that conversations of a group share is computed once. All ranks run the same number of micro-batches, because the
collectives of ZeRO-3 must match.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import NamedTuple

import numpy as np

from pipeline.learning.forest import Forest, build_forest
from pipeline.rollout.episodes import EpisodeGroup, GroupRecord
from pipeline.rollout.prefix_tree import PrefixTree, attended_pairs

UNEVEN = 1.1  # groups are cut further until no rank has more than this factor of its fair share
PIECES = (1, 1.25, 1.5, 1.75, 2, 3, 4, 8, 16)  # of a fair share, into which groups are cut


class Item(NamedTuple):
    """A conversation of a micro-batch."""

    group: int  # its index in the step
    conversation: int  # its index in the group
    shared: int = 0  # the first tokens that it shares with the item before


class Run(NamedTuple):
    """Some consecutive conversations of a group's tree."""

    group: int  # its index in the step
    start: int
    stop: int


@dataclass(frozen=True)
class Update:
    """One rank's share of one optimizer step."""

    micro_batches: list[list[Item]]
    tokens: int  # response tokens of the optimizer step over all ranks: the denominator of the loss


def split_updates(groups: int, updates: int, seed: tuple[int, ...]) -> list[list[int]]:
    """Divide the groups of a step at random among its optimizer steps, as disjoint sets of whole groups.

    The division is random because groups arrive in the order in which they finished, with short documents first.
    """
    order = np.random.default_rng(seed).permutation(groups)
    return [sorted(part.tolist()) for part in np.array_split(order, updates)]


def balanced(sizes: Sequence[int], bins: int) -> list[list[int]]:
    """Distribute indices over bins, largest first, each to the bin with the smallest total so far."""
    dealt: list[list[int]] = [[] for _ in range(bins)]
    load = [(0, b) for b in range(bins)]
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        size, b = min(load)
        dealt[b].append(index)
        load[b] = (size + sizes[index], b)
    return dealt


def assign_runs(trees: Mapping[int, PrefixTree], ranks: int) -> list[list[Run]]:
    """Assign the conversations of an update to ranks, balanced in tokens to compute.

    Groups stay whole if that makes the loads about equal. Else they are cut into runs of a rank's fair share, of a part
    of it, and so on. The shorter the runs, the more even the loads, but a prefix that spans a cut is computed twice.
    """
    fair = sum(tree.tokens() for tree in trees.values()) / ranks
    best: list[list[Run]] = []
    least = inf
    for pieces in (0, *PIECES):  # of a fair share; 0: whole groups
        runs = [Run(g, *run) for g, tree in trees.items() for run in tree.cut(ceil(fair / pieces) if pieces else inf)]
        dealt = balanced([_tokens(run, trees) for run in runs], ranks)
        shares = [[runs[i] for i in share] for share in dealt]
        largest = max(sum(_tokens(run, trees) for run in share) for share in shares)
        if largest < least:
            best, least = shares, largest
        if largest <= UNEVEN * fair:
            break
    return best


def _tokens(run: Run, trees: Mapping[int, PrefixTree]) -> int:
    return trees[run.group].tokens(run.start, run.stop)


def pack_runs(runs: list[Run], trees: Mapping[int, PrefixTree], budget: int) -> list[list[Run]]:
    """Pack runs into bins of at most `budget` tokens, first-fit decreasing.

    A larger run is cut. A conversation over the budget gets a bin of its own.
    """
    fitting = [Run(g, *part) for g, start, stop in runs for part in trees[g].cut(budget, start, stop)]
    sizes = {run: _tokens(run, trees) for run in fitting}
    bins: list[list[Run]] = []
    room: list[int] = []
    for run in sorted(fitting, key=lambda run: (-sizes[run], run)):
        fit = next((b for b, free in enumerate(room) if sizes[run] <= free), None)
        if fit is None:
            bins.append([run])
            room.append(budget - sizes[run])
        else:
            bins[fit].append(run)
            room[fit] -= sizes[run]
    return bins


def plan_update(trees: Mapping[int, PrefixTree], ranks: int, budget: int) -> list[list[list[Item]]]:
    """Plan one optimizer step: the items of each micro-batch of each rank.

    All ranks get the same number of micro-batches, at least one. A rank gets empty ones if it has fewer runs.

    Args:
        trees: the conversations to compute, by their group's index in the step.
        ranks: number of learner ranks.
        budget: tokens of a micro-batch.
    """
    trees = {g: tree for g, tree in trees.items() if len(tree)}
    if not trees:
        return [[[]] for _ in range(ranks)]
    plan = [pack_runs(runs, trees, budget) for runs in assign_runs(trees, ranks)]
    count = max(len(micro_batches) for micro_batches in plan)
    plan = [_evened(micro_batches, trees, budget, count) for micro_batches in plan]
    return [[_items(runs, trees) for runs in micro_batches] for micro_batches in plan]


def _evened(
    micro_batches: list[list[Run]], trees: Mapping[int, PrefixTree], budget: int, count: int
) -> list[list[Run]]:
    """The runs of a rank's micro-batches in `count` micro-batches of about equal tokens, largest first.

    So the ranks, which run micro-batch after micro-batch together, wait little for each other.
    """
    runs = [run for micro_batch in micro_batches for run in micro_batch]
    sizes = [_tokens(run, trees) for run in runs]
    dealt = [[runs[i] for i in part] for part in balanced(sizes, count)]
    if max(_size(m, trees) for m in dealt) > max([budget, *sizes]):  # so even a distribution does not fit the budget
        dealt = micro_batches + [[] for _ in range(count - len(micro_batches))]
    return sorted(dealt, key=lambda m: -_size(m, trees))


def _size(micro_batch: list[Run], trees: Mapping[int, PrefixTree]) -> int:
    return sum(_tokens(run, trees) for run in micro_batch)


def _items(runs: list[Run], trees: Mapping[int, PrefixTree]) -> list[Item]:
    """The conversations of a micro-batch's runs in depth-first order. Runs of one group share what they can."""
    items = []
    for g in sorted({run.group for run in runs}):
        tree = trees[g]
        places = [place for run in sorted(runs) if run.group == g for place in range(run.start, run.stop)]
        part = tree.at(np.array(places))
        items += [Item(g, c, n) for c, n in zip(part.order.tolist(), part.shared.tolist(), strict=True)]
    return items


@dataclass(frozen=True)
class Work:
    """What one optimizer step asks of all ranks together, in tokens.

    tokens      response tokens of all its groups, also of those that are not computed: the denominator of the loss
    staleness   these tokens by how many versions behind the learner the weights were that wrote them
    computed    tokens that go through the model
    shared      tokens that need not, because they are in a prefix that goes through the model anyway
    recomputed  tokens of prefixes that go through it again, because their group is divided
    pairs       pairs of a token that goes through it and one that it attends to
    predicted   response tokens whose log-probs are computed
    """

    tokens: int
    staleness: tuple[int, ...]
    computed: int
    shared: int
    recomputed: int
    pairs: int
    predicted: int


def work_of(records: list[GroupRecord], trees: list[PrefixTree], plan: list[list[list[Item]]], version: int) -> Work:
    """The work of an optimizer step.

    Args:
        records: the step's groups.
        trees: the conversations of each that are computed.
        plan: the result of `plan_update`.
        version: the learner's version before the step.
    """
    by_version = [entry for record in records for entry in record.tokens_by_version.items()]
    written_by, tokens = np.array(by_version, np.int64).reshape(-1, 2).T
    spared = np.array([item.shared for micro_batches in plan for items in micro_batches for item in items], np.int64)
    shared = int(spared.sum())
    in_all = sum(int(tree.lengths.sum()) for tree in trees)
    pairs = sum(int(attended_pairs(tree.lengths).sum()) for tree in trees) - int(attended_pairs(spared).sum())
    return Work(
        tokens=sum(record.response_tokens for record in records),
        staleness=tuple(np.bincount(version - written_by, tokens).astype(int).tolist()),
        computed=in_all - shared,
        shared=shared,
        recomputed=in_all - shared - sum(tree.tokens() for tree in trees),
        pairs=pairs,
        predicted=sum(int(r.response_lengths[tree.order].sum()) for r, tree in zip(records, trees, strict=True)),
    )


@dataclass(frozen=True)
class MicroBatch:
    """A row of T tokens, with R predictions of response tokens.

    The last token of a conversation predicts nothing, so it is not in the row. Several conversations may predict from
    the same place of the row.

    tokens      int64 [T]
    positions   int64 [T]    each token's position in its conversation
    predict_at  int64 [R]    place in the row of the hidden state that predicts response token r
    targets     int64 [R]    response token r
    behaviour   float32 [R]  log-prob under the behaviour policy
    advantages  float32 [R]  advantage of its conversation
    rewards     float32 [R]  reward of its episode
    is_response bool [R]     true; false in the placeholder of an empty micro-batch
    versions        int64 [R]  weight version that sampled it
    cache_versions  int64 [R]  weight version when its prompt was submitted
    groups          int64 [R]  index of its group in the step; -1 in a placeholder
    forest      which tokens attend to which
    """

    tokens: np.ndarray
    positions: np.ndarray
    predict_at: np.ndarray
    targets: np.ndarray
    behaviour: np.ndarray
    advantages: np.ndarray
    rewards: np.ndarray
    is_response: np.ndarray
    versions: np.ndarray
    cache_versions: np.ndarray
    groups: np.ndarray
    forest: Forest


# The arrays of a `MicroBatch`, in the order in which `build_micro_batch` fills them.
COLUMNS: dict[str, type] = {
    "tokens": np.int64,
    "positions": np.int64,
    "predict_at": np.int64,
    "targets": np.int64,
    "behaviour": np.float32,
    "advantages": np.float32,
    "rewards": np.float32,
    "is_response": np.bool_,
    "versions": np.int64,
    "cache_versions": np.int64,
    "groups": np.int64,
}


def build_micro_batch(
    items: list[Item],
    groups: dict[int, EpisodeGroup],
    advantages: dict[int, np.ndarray],
    rewards: dict[int, np.ndarray],
) -> MicroBatch:
    """Lay conversations out in a row.

    Args:
        items: the conversations in depth-first order; if empty, the result is a placeholder whose loss is zero.
        groups: the groups by their index in the step.
        advantages: the advantage of each conversation, float32 [C], by group.
        rewards: the reward of each episode, float32 [G], by group.
    """
    if not items:
        no, zero = np.zeros(1, np.int64), np.zeros(1, np.float32)
        return MicroBatch(no, no, no, no, zero, zero, zero, no.astype(bool), no, no, no - 1, Forest((0, 1)))
    inputs = [groups[item.group].inputs(item.conversation) for item in items]
    forest, places = build_forest([len(tokens) for tokens in inputs], [item.shared for item in items])
    columns: list[tuple] = []
    for (g, c, shared), tokens, at in zip(items, inputs, places, strict=True):
        group = groups[g]
        response = group.response(c)
        responses = slice(group.response_offsets[c], group.response_offsets[c + 1])
        n = len(response)
        columns.append(
            (
                tokens[shared:],
                np.arange(shared, len(tokens)),
                at[len(at) - n :],
                response,
                group.logprobs[responses],
                np.full(n, advantages[g][c], np.float32),
                np.full(n, rewards[g][group.episodes[c]], np.float32),
                np.ones(n, bool),
                group.versions[responses],
                np.full(n, group.cache_versions[c]),
                np.full(n, g),
            )
        )
    arrays = {
        name: np.concatenate(parts).astype(dtype)
        for (name, dtype), parts in zip(COLUMNS.items(), zip(*columns, strict=True), strict=True)
    }
    return MicroBatch(**arrays, forest=forest)
