"""The layout of DeepSpeed's ZeRO-3 checkpoints, and how ranks of another number read their parts of one.

ZeRO-3 flattens each parameter and splits it into one part per rank, all of the same size; what exceeds the parameter is
padding. A rank's file has its parts of all parameters end to end, in the optimizer's order, in one flat float32 tensor
per sub-group; each tensor of the optimizer's state has the same layout. The files are mapped into memory, so a rank
reads little more than it needs.
"""

import copy
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

AT_ONCE = 8  # parameters that a rank reads concurrently; a file server answers several requests faster than one
OPTIMIZER_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
MODEL_FILE = "zero_pp_rank_0_mp_rank_00_model_states.pt"

SubGroup = Mapping[str, int]  # numbers in each of its parameters, by name, in order


@dataclass(frozen=True)
class Piece:
    """Numbers that move from a part of the old layout to a part of the new one.

    Attributes:
        rank: the old rank that has them.
        old, new: where they begin in the old and in the new part.
        size: how many.
    """

    rank: int
    old: int
    new: int
    size: int


def part_size(numbers: int, ranks: int) -> int:
    """The size of each rank's part of a parameter, padding included."""
    return -(-numbers // ranks)


def pieces(numbers: int, old_ranks: int, ranks: int, rank: int) -> Iterator[Piece]:
    """Yield what the part of `rank` consists of, without its padding.

    Args:
        numbers: the size of the parameter.
        old_ranks: the number of ranks that wrote it.
        ranks: the number of ranks that read it.
        rank: the one that reads.
    """
    old_size, size = part_size(numbers, old_ranks), part_size(numbers, ranks)
    begin = at = rank * size
    end = min(begin + size, numbers)
    while at < end:
        old_rank, old = divmod(at, old_size)
        length = min(end - at, old_size - old)
        yield Piece(old_rank, old, at - begin, length)
        at += length


def optimizer_files(names: Iterable[str]) -> dict[int, str]:
    """Which of these files has the optimizer's state of which rank."""
    found = ((OPTIMIZER_FILE.fullmatch(name), name) for name in names)
    return {int(match[1]): name for match, name in found if match}


def ranks_to_read(sizes: Iterable[int], old_ranks: int, ranks: int, rank: int) -> set[int]:
    """The old ranks that have something for a rank (arguments: `pieces`, of all parameters)."""
    return {piece.rank for size in set(sizes) for piece in pieces(size, old_ranks, ranks, rank)}


def read_ranks(folder: Path, ranks: Iterable[int], classes: Sequence[Any]) -> dict[int, dict]:
    """Read the optimizer's files of these ranks (`read_file`); the folder need not have others.

    Raises:
        RuntimeError: one is missing.
    """
    of_rank = optimizer_files(path.name for path in folder.iterdir())
    if missing := set(ranks) - of_rank.keys():
        raise RuntimeError(f"{folder} lacks the optimizer's state of ranks {sorted(missing)}")
    return {rank: read_file(folder / of_rank[rank], classes) for rank in ranks}


def files_to_read(names: Collection[str], sizes: Iterable[int], ranks: int, rank: int) -> set[str]:
    """The files of a checkpoint that a rank needs.

    Args:
        names: all files.
        sizes: numbers in each parameter.
        ranks: the number of ranks that read.
        rank: the one that reads.
    """
    of_rank = optimizer_files(names)
    needed = ranks_to_read(sizes, len(of_rank), ranks, rank)
    own = f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"  # read if the number of ranks is the same
    return {MODEL_FILE, *(of_rank[old] for old in needed), *({own} & set(names))}


def resharded(
    saved: Mapping[int, dict],
    old_ranks: int,
    old_groups: Sequence[SubGroup],
    groups: Sequence[SubGroup],
    ranks: int,
    rank: int,
    moved: Callable[[], None] = lambda: None,
) -> tuple[list[torch.Tensor], dict[int, dict[str, Any]]]:
    """A rank's part of the weights and of the optimizer's state.

    Args:
        saved: the content of the old ranks' files, by rank; those that have nothing for this rank may be missing.
        old_ranks: the number of ranks that wrote them.
        old_groups: the sub-groups of these ranks.
        groups: the sub-groups of this rank.
        ranks: the number of ranks that read.
        rank: this rank.
        moved: called for each parameter, from several threads.

    Returns:
        The weights of each sub-group, float32 [sum of its part sizes]; and the optimizer's state of each, by number.

    Raises:
        RuntimeError: the parameters are not those of the checkpoint.
    """
    old_places = _places(old_groups, old_ranks)
    if {name: size for group in old_groups for name, size in group.items()} != {
        name: size for group in groups for name, size in group.items()
    }:
        raise RuntimeError("the checkpoint is of another model: its parameters have other names or sizes")
    some = next(iter(saved.values()))
    weights, states, moves = [], {}, []
    for number, group in enumerate(groups):
        flat = sum(part_size(size, ranks) for size in group.values())
        old_state = _state(some)[old_places[next(iter(group))][0]]
        old_flat = _weights(some)[old_places[next(iter(group))][0]].numel()
        split = [key for key, value in old_state.items() if torch.is_tensor(value) and value.shape == (old_flat,)]
        weights.append(torch.zeros(flat))
        # Copies: sub-groups must not share the tensor in which AdamW counts its steps.
        states[number] = copy.deepcopy({key: value for key, value in old_state.items() if key not in split})
        states[number] |= {key: torch.zeros(flat) for key in split}
        offset = 0
        for name, size in group.items():
            old_group, old_offset = old_places[name]
            for piece in pieces(size, old_ranks, ranks, rank):
                sources = [_weights(saved[piece.rank])[old_group]]
                sources += [_state(saved[piece.rank])[old_group][key] for key in split]
                targets = [weights[-1], *(states[number][key] for key in split)]
                moves.append((sources, old_offset + piece.old, targets, offset + piece.new, piece.size))
            offset += part_size(size, ranks)

    def move(sources, old: int, targets, new: int, size: int) -> None:
        for source, target in zip(sources, targets, strict=True):
            target[new : new + size] = source[old : old + size]
        moved()

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(lambda arguments: move(*arguments), moves))
    return weights, states


def read_file(path: Path, classes: Sequence[Any]) -> dict:
    """Read a file that DeepSpeed wrote. Its tensors are mapped, not read.

    Args:
        path: the file.
        classes: classes of DeepSpeed that it may hold, besides tensors and plain values.
    """
    with torch.serialization.safe_globals(list(classes)):
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _places(groups: Sequence[SubGroup], ranks: int) -> dict[str, tuple[int, int]]:
    """Sub-group and offset of each parameter's part in the files of these ranks."""
    places = {}
    for number, group in enumerate(groups):
        offset = 0
        for name, size in group.items():
            places[name] = number, offset
            offset += part_size(size, ranks)
    return places


def _weights(saved: dict) -> list[torch.Tensor]:
    return saved["optimizer_state_dict"]["fp32_flat_groups"]


def _state(saved: dict) -> dict[int, dict[str, Any]]:
    return saved["optimizer_state_dict"]["optimizer_state_dict"]["state"]
