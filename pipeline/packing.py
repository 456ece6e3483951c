"""Which rank trains which conversations, and in which micro-batches.

A micro-batch is a row of conversations laid end to end, described by tokens, positions and segments, without
padding; attention is block-diagonal. All ranks run the same number of them: ZeRO-3's collectives pair up.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.episodes import EpisodeGroup

Item = tuple[int, int]  # (group, conversation) by their indices in the step


def assign_groups(group_tokens: list[int], ranks: int) -> list[list[int]]:
    """Give whole groups to ranks, longest first, each to the rank with the fewest tokens so far.

    Every rank gets a group when there are as many groups as ranks.
    """
    assigned: list[list[int]] = [[] for _ in range(ranks)]
    load = [(0, rank) for rank in range(ranks)]
    for group in sorted(range(len(group_tokens)), key=lambda g: (-group_tokens[g], g)):
        tokens, rank = min(load)
        assigned[rank].append(group)
        load[load.index((tokens, rank))] = (tokens + group_tokens[group], rank)
    return assigned


def pack_items(items: list[Item], lengths: dict[Item, int], budget: int) -> list[list[Item]]:
    """First-fit decreasing: bins of at most `budget` tokens; an item over the budget gets a bin of its own."""
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


def plan_step(lengths: list[np.ndarray], ranks: int, budget: int) -> list[list[list[Item]]]:
    """Plan one learner step: for each rank, its micro-batches as lists of (group, conversation).

    All ranks get the same number of micro-batches. A rank that would have fewer splits its fullest ones, and
    runs empty ones only when it has no more conversations to split.

    Args:
        lengths: for each group, tokens of each of its conversations, int [C].
        ranks: number of learner ranks.
        budget: tokens of a micro-batch.
    """
    tokens = {(g, c): int(n) for g, group in enumerate(lengths) for c, n in enumerate(group)}
    plan = [
        pack_items([(g, c) for g in groups for c in range(len(lengths[g]))], tokens, budget)
        for groups in assign_groups([int(group.sum()) for group in lengths], ranks)
    ]
    count = max(len(micro_batches) for micro_batches in plan)
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
    positions   int64 [T]    from 0 in every conversation; a new 0 begins a new segment of attention
    predict_at  int64 [R]    the position in the row whose hidden state predicts response token r
    targets     int64 [R]    response token r
    behaviour   float32 [R]  log-prob under the policy that sampled it
    advantages  float32 [R]
    weights     float32 [R]  1; 0 in the placeholder of an empty micro-batch
    versions        int64 [R]  weight version that sampled it
    cache_versions  int64 [R]  weight version when its prompt was submitted
    """

    tokens: np.ndarray
    positions: np.ndarray
    predict_at: np.ndarray
    targets: np.ndarray
    behaviour: np.ndarray
    advantages: np.ndarray
    weights: np.ndarray
    versions: np.ndarray
    cache_versions: np.ndarray


def build_micro_batch(
    items: list[Item], groups: dict[int, EpisodeGroup], advantages: dict[int, np.ndarray]
) -> MicroBatch:
    """Lay the conversations `items` end to end.

    Args:
        items: (group, conversation) pairs; none gives a placeholder whose loss is zero.
        groups: the groups by index.
        advantages: the advantage of each episode of each group, float32 [G].
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
            weights=one.astype(np.float32),
            versions=np.zeros(1, np.int64),
            cache_versions=np.zeros(1, np.int64),
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
                np.full(length - prompt, advantages[g][group.episodes[c]], np.float32),
                np.ones(length - prompt, np.float32),
                group.versions[responses],
                np.full(length - prompt, group.cache_versions[c]),
            )
        )
        start += length
    merged = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
    dtypes = [np.int64] * 4 + [np.float32] * 3 + [np.int64] * 2
    return MicroBatch(*(column.astype(dtype) for column, dtype in zip(merged, dtypes, strict=True)))
