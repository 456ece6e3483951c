"""ZeRO-3's layout at another number of ranks: against padding and splitting whole parameters with NumPy."""

import itertools

import numpy as np
import pytest
import torch

from pipeline.files import copy_files
from pipeline.learning.zero_shards import (
    MODEL_FILE,
    files_to_read,
    ranks_to_read,
    read_file,
    read_ranks,
    resharded,
)

SIZES = {"embedding": 1000, "norm": 7, "matrix": 96, "bias": 1, "head": 641}
KEYS = ("weights", "exp_avg", "exp_avg_sq")


def groups_of(*names):
    return [{name: SIZES[name] for name in group} for group in names]


WHOLE = groups_of(list(SIZES))
SPLIT = groups_of(["embedding", "norm"], ["matrix"], ["bias", "head"])


@pytest.fixture(scope="module")
def parameters():
    """By key and name, float32 [numbers in the parameter]."""
    rng = np.random.default_rng(3)
    return {key: {name: rng.random(size, np.float32) for name, size in SIZES.items()} for key in KEYS}


def part(parameters, key: str, group, ranks: int, rank: int) -> torch.Tensor:
    """What ZeRO-3 keeps of a sub-group on a rank."""
    rows = [np.pad(parameters[key][name], (0, -size % ranks)).reshape(ranks, -1) for name, size in group.items()]
    return torch.from_numpy(np.concatenate([row[rank] for row in rows]))


def written(parameters, groups, ranks: int, rank: int) -> dict:
    """A rank's file, as DeepSpeed 0.19 writes it."""
    states = {
        number: {"step": torch.tensor(5.0)} | {key: part(parameters, key, group, ranks, rank) for key in KEYS[1:]}
        for number, group in enumerate(groups)
    }
    weights = [part(parameters, "weights", group, ranks, rank) for group in groups]
    return {"optimizer_state_dict": {"fp32_flat_groups": weights, "optimizer_state_dict": {"state": states}}}


@pytest.mark.parametrize("old_ranks, ranks", [*itertools.permutations([1, 2, 3, 5, 16], 2)])
@pytest.mark.parametrize("old_groups, groups", [(WHOLE, WHOLE), (WHOLE, SPLIT), (SPLIT, WHOLE)])
def test_each_rank_gets_its_part_from_the_files_that_it_reads(parameters, old_ranks, ranks, old_groups, groups):
    names = [f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(old_ranks)] + [MODEL_FILE]
    for rank in range(ranks):
        read = files_to_read(names, SIZES.values(), ranks, rank)
        assert MODEL_FILE in read
        saved = {old: written(parameters, old_groups, old_ranks, old) for old in range(old_ranks) if names[old] in read}
        weights, states = resharded(saved, old_ranks, old_groups, groups, ranks, rank)
        for number, group in enumerate(groups):
            assert torch.equal(weights[number], part(parameters, "weights", group, ranks, rank))
            assert states[number].pop("step") == 5
            expected = {key: part(parameters, key, group, ranks, rank) for key in KEYS[1:]}
            assert states[number].keys() == expected.keys()
            assert all(torch.equal(states[number][key], expected[key]) for key in expected)


def test_a_rank_reads_few_files():
    """14B parameters in 96 parts of 146M, for 48 ranks: two parts each, and a few more for small parameters."""
    names = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(96)]
    assert files_to_read(names, [152064 * 5120, 5120 * 13824], 48, 7) == {MODEL_FILE, names[14], names[15]}
    assert len(files_to_read(names, [152064 * 5120, 5120 * 13824, 5120, 1024], 48, 7)) <= 5


def test_a_folder_with_only_the_files_that_a_rank_wanted_is_enough(parameters, tmp_path):
    """As a copy of a checkpoint in an object store."""
    for old in range(3):
        torch.save(written(parameters, SPLIT, 3, old), tmp_path / f"zero_pp_rank_{old}_mp_rank_00_optim_states.pt")
    sizes = [1000]
    assert ranks_to_read(sizes, 3, 5, 4) == {2}
    copied = tmp_path / "copied"
    copy_files(tmp_path, copied, lambda names: files_to_read(names, sizes, 5, 4) - {MODEL_FILE})
    assert [path.name for path in copied.iterdir()] == ["zero_pp_rank_2_mp_rank_00_optim_states.pt"]
    read = read_ranks(copied, ranks_to_read(sizes, 3, 5, 4), ())
    assert torch.equal(
        read[2]["optimizer_state_dict"]["fp32_flat_groups"][0], part(parameters, "weights", SPLIT[0], 3, 2)
    )
    with pytest.raises(RuntimeError, match=r"lacks the optimizer's state of ranks \[0, 1\]"):
        read_ranks(copied, ranks_to_read(sizes, 3, 1, 0), ())


def test_a_rank_of_the_same_number_reads_its_own_files():
    own = "zero_pp_rank_1_mp_rank_00_model_states.pt"
    names = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)] + [MODEL_FILE, own]
    assert files_to_read(names, SIZES.values(), 2, 1) == {names[1], MODEL_FILE, own}


def test_sub_groups_count_their_steps_apart(parameters):
    """AdamW adds 1 to the tensor of each."""
    _, states = resharded({0: written(parameters, WHOLE, 1, 0)}, 1, WHOLE, SPLIT, 2, 0)
    states[0]["step"] += 1
    assert [int(state["step"]) for state in states.values()] == [6, 5, 5]


@pytest.mark.parametrize("changed", [{"bias": 2}, {"new": 3}])
def test_another_model_is_refused(parameters, changed):
    with pytest.raises(RuntimeError, match="another model"):
        resharded({0: written(parameters, WHOLE, 1, 0)}, 1, WHOLE, [SIZES | changed], 2, 0)


def test_a_file_with_code_is_refused(tmp_path):
    torch.save({"optimizer_state_dict": print}, tmp_path / "state.pt")
    with pytest.raises(Exception, match="print"):
        read_file(tmp_path / "state.pt", ())
