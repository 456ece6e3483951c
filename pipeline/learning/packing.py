"""Packing: assigns conversations to ranks and packs them into micro-batches.

A micro-batch is a row of conversations laid end to end without padding; attention is block-diagonal. All ranks run the
same number of micro-batches, because the collectives of ZeRO-3 must match.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from pipeline.rollout.episodes import EpisodeGroup

UNEVEN = 1.1  # groups are split further until no rank has more than this factor of its fair share

Item = tuple[int, int]  # (index of the group in the step, index of the conversation in the group)


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


def assign_items(lengths: Mapping[int, np.ndarray], ranks: int) -> list[list[Item]]:
    """Assign the conversations of an update to ranks, balanced in tokens.

    Groups stay whole unless there are fewer groups than ranks; then they are split into parts of about equal tokens.
    Conversations of length 0 are left out.
    """
    fewest = ceil(ranks / len(lengths))
    for parts in range(fewest, ranks + 1):
        units = [
            [(g, c) for c in sorted(part) if group[c]]
            for g, group in lengths.items()
            for part in balanced(group.tolist(), parts)
        ]
        dealt = balanced([_tokens(unit, lengths) for unit in units], ranks)
        shares = [[item for unit in share for item in units[unit]] for share in dealt]
        loads = [_tokens(share, lengths) for share in shares]
        if fewest == 1 or max(loads) * ranks <= UNEVEN * sum(loads):
            break
    return shares


def _tokens(items: list[Item], lengths: Mapping[int, np.ndarray]) -> int:
    return sum(int(lengths[g][c]) for g, c in items)


def pack_items(items: list[Item], lengths: dict[Item, int], budget: int) -> list[list[Item]]:
    """Pack items into bins of at most `budget` tokens, first-fit decreasing; a larger item gets a bin of its own."""
    bins: list[list[Item]] = []
    room: list[int] = []
    for item in sorted(items, key=lambda i: (-lengths[i], i)):
        fit = next((b for b, free in enumerate(room) if lengths[item] <= free), None)
        if fit is None:
            bins.append([item])
            room.append(budget - lengths[item])
        else:
            bins[fit].append(item)
            room[fit] -= lengths[item]
    return bins


def plan_update(lengths: Mapping[int, np.ndarray], ranks: int, budget: int) -> list[list[list[Item]]]:
    """Plan one optimizer step: each rank's micro-batches as lists of (group, conversation).

    All ranks get the same number of micro-batches, at least one. A rank with fewer splits its fullest ones. It gets
    empty ones only if no micro-batch is left to split.

    Args:
        lengths: tokens of each conversation, int [C], for each group of the update by its index in the step; 0 for a
            conversation that is not trained.
        ranks: number of learner ranks.
        budget: tokens of a micro-batch.
    """
    tokens = {(g, c): int(n) for g, group in lengths.items() for c, n in enumerate(group)}
    plan = [pack_items(items, tokens, budget) for items in assign_items(lengths, ranks)]
    count = max(1, *(len(micro_batches) for micro_batches in plan))
    for micro_batches in plan:
        while len(micro_batches) < count:
            fullest = max(micro_batches, key=lambda m: (len(m) > 1, sum(tokens[i] for i in m)), default=[])
            if len(fullest) > 1:
                micro_batches.append([fullest.pop() for _ in range(len(fullest) // 2)])
            else:
                micro_batches.append([])
    return plan


@dataclass(frozen=True)
class MicroBatch:
    """A row of T tokens with R response tokens.

    tokens      int64 [T]
    positions   int64 [T]    from 0 in every conversation; each 0 begins a new segment of attention
    predict_at  int64 [R]    index in the row of the hidden state that predicts response token r
    targets     int64 [R]    response token r
    behaviour   float32 [R]  log-prob under the behaviour policy
    advantages  float32 [R]  advantage of its conversation
    rewards     float32 [R]  reward of its episode
    is_response bool [R]     true; false in the placeholder of an empty micro-batch
    versions        int64 [R]  weight version that sampled it
    cache_versions  int64 [R]  weight version when its prompt was submitted
    groups          int64 [R]  index of its group in the step; -1 in a placeholder
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


def build_micro_batch(
    items: list[Item],
    groups: dict[int, EpisodeGroup],
    advantages: dict[int, np.ndarray],
    rewards: dict[int, np.ndarray],
) -> MicroBatch:
    """Lay conversations end to end in a row.

    Args:
        items: (group, conversation) pairs; if empty, the result is a placeholder whose loss is zero.
        groups: the groups by their index in the step.
        advantages: the advantage of each conversation, float32 [C], by group.
        rewards: the reward of each episode, float32 [G], by group.
    """
    if not items:
        one = np.zeros(1)
        return MicroBatch(
            tokens=np.zeros(2, np.int64),
            positions=np.arange(2),
            predict_at=np.zeros(1, np.int64),
            targets=np.zeros(1, np.int64),
            behaviour=one.astype(np.float32),
            advantages=one.astype(np.float32),
            rewards=one.astype(np.float32),
            is_response=np.zeros(1, bool),
            versions=np.zeros(1, np.int64),
            cache_versions=np.zeros(1, np.int64),
            groups=np.full(1, -1),
        )
    columns: list[tuple] = []
    start = 0
    for g, c in items:
        group = groups[g]
        tokens = group.tokens[group.offsets[c] : group.offsets[c + 1]]
        prompt, length = int(group.prompt_lengths[c]), len(tokens)
        responses = slice(group.response_offsets[c], group.response_offsets[c + 1])
        columns.append(
            (
                tokens,
                np.arange(length),
                start + np.arange(prompt - 1, length - 1),
                tokens[prompt:],
                group.logprobs[responses],
                np.full(length - prompt, advantages[g][c], np.float32),
                np.full(length - prompt, rewards[g][group.episodes[c]], np.float32),
                np.ones(length - prompt, bool),
                group.versions[responses],
                np.full(length - prompt, group.cache_versions[c]),
                np.full(length - prompt, g),
            )
        )
        start += length
    merged = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
    dtypes = [np.int64] * 4 + [np.float32] * 3 + [np.bool_] + [np.int64] * 3
    return MicroBatch(*(column.astype(dtype) for column, dtype in zip(merged, dtypes, strict=True)))
