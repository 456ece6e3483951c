"""Checkpoints: complete or not there, and what learners make of them, whatever their number."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.exceptions import RayTaskError

from actors.learning.zero_engine import SAVED_CLASSES
from pipeline.learning.zero_shards import MODEL_FILE, optimizer_files, read_file, resharded
from pipeline.run.checkpoints import Checkpoints
from tests.integration.test_learner import case_config, records, weights_of
from tests.support.checkpoint_files import state
from tests.support.faults import until
from tests.support.groups import random_group

# What learners make of them.

STEPS = 4  # two before the checkpoint, two after it


@pytest.fixture(scope="module")
def config(tiny_config):
    learner = {"schedule": "cosine", "ranks": 2, "stall_s": 60.0}
    return case_config(tiny_config, {"learner": learner, "train": {"updates_per_step": 2}})


def with_learner(config, **values):
    return replace(config, learner=replace(config.learner, **values))


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(7)
    return [[random_group(rng, f"p{step}-{i}", episodes=4) for i in range(6)] for step in range(STEPS)]


async def saved(gang, folder: Path, ranks: int, step: int = 2) -> None:
    files = await gang.write_checkpoint()
    made = replace(state(step), ranks=ranks)
    Checkpoints(folder.parent).finish(made, files)


async def steps(ray, gang, batches, first: int, last: int) -> list[dict]:
    """What the ranks said of the steps; the learning rates among it."""
    trained = [await gang.train(step, step, records(ray, batches[step])) for step in range(first, last)]
    return [update.ranks[0] for updates in trained for update in updates]


@pytest.fixture(scope="module")
def uninterrupted(ray_session, config, batches, tmp_path_factory):
    """A run of two ranks that writes a checkpoint after its second step while it trains the third: its folder, and its
    weights and updates."""
    return uninterrupted_run(ray_session, config, batches, tmp_path_factory)


@pytest.fixture(scope="module")
def uninterrupted_muon(ray_session, config, batches, tmp_path_factory):
    config = with_learner(config, optimizer="muon", max_grad_norm=0.0)
    return uninterrupted_run(ray_session, config, batches, tmp_path_factory)


def uninterrupted_run(ray, config, batches, tmp_path_factory):
    from actors.learning.gang import LearnerGang

    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "2"

    async def run():
        gang = LearnerGang(config, 2)
        await gang.start()
        rows = await steps(ray, gang, batches, 0, 2)
        at_checkpoint = await weights_of(gang)
        await gang.copy_checkpoint(str(folder))
        rows += await steps(ray, gang, batches, 2, 3)
        await saved(gang, folder, ranks=2)
        rows += await steps(ray, gang, batches, 3, 4)
        weights = await weights_of(gang)
        await gang.close()
        return at_checkpoint, rows, weights

    return folder, *asyncio.run(run())


@pytest.mark.parametrize("ranks", [2, 1, 3])
def test_any_number_of_ranks_goes_on_as_if_nothing_had_been(ray_session, config, batches, uninterrupted, ranks):
    check_going_on(ray_session, config, batches, uninterrupted, ranks)


def test_muon_goes_on_too(ray_session, config, batches, uninterrupted_muon):
    """Its matrices have a state and a learning rate of their own."""
    config = with_learner(config, optimizer="muon", max_grad_norm=0.0)
    check_going_on(ray_session, config, batches, uninterrupted_muon, ranks=1)


def check_going_on(ray, config, batches, uninterrupted, ranks: int) -> None:
    from actors.learning.gang import LearnerGang

    folder, at_checkpoint, rows, weights = uninterrupted
    checkpoint = Checkpoints(folder.parent).newest_good()
    assert checkpoint.folder == str(folder)

    async def run():
        gang = LearnerGang(with_learner(config, ranks=ranks), ranks)
        await gang.start(checkpoint.folder)
        loaded = await weights_of(gang)
        rows = await steps(ray, gang, batches, 2, 4)
        weights = await weights_of(gang)
        await gang.close()
        return loaded, rows, weights

    loaded, resumed_rows, resumed = asyncio.run(run())
    # The state of its own step, though a step was trained between copying and writing it.
    for name, weight in at_checkpoint.items():
        assert torch.equal(loaded[name], weight), name
    later = rows[4:]
    assert [row["learning_rate"] for row in resumed_rows] == [row["learning_rate"] for row in later]
    assert [row["grad_norm"] for row in resumed_rows] == pytest.approx([row["grad_norm"] for row in later], rel=1e-4)
    for name, weight in weights.items():
        moved = (weight - at_checkpoint[name]).norm()
        assert moved > 0 and (resumed[name] - weight).norm() / moved <= (1e-6 if ranks == 2 else 1e-3), name


def test_the_parts_are_those_of_deepspeeds_own_conversion(uninterrupted, tmp_path):
    """Its universal checkpoint has each parameter whole."""
    state = uninterrupted[0] / "learner" / "state"
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--num_extract_workers=1", "--num_merge_workers=1", f"--input_folder={state}"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    subprocess.run([*command, f"--output_folder={tmp_path}"], check=True, capture_output=True, env=environment)
    common = read_file(state / MODEL_FILE, SAVED_CLASSES)
    groups = [{name: shape.numel() for name, shape in group.items()} for group in common["param_shapes"]]
    files = optimizer_files(os.listdir(state))
    saved = {rank: read_file(state / name, SAVED_CLASSES) for rank, name in files.items()}
    for ranks in (1, 3):
        for rank in range(ranks):
            weights, states = resharded(saved, 2, groups, groups, ranks, rank)
            for number, group in enumerate(groups):
                for key, values in {"fp32": weights[number], **states[number]}.items():
                    if key == "step":
                        continue
                    whole = [torch.load(tmp_path / "zero" / name / f"{key}.pt").flatten() for name in group]
                    padded = [torch.nn.functional.pad(values, (0, -len(values) % ranks)) for values in whole]
                    expected = torch.cat([values.reshape(ranks, -1)[rank] for values in padded])
                    assert torch.equal(values, expected), (ranks, rank, key)


def test_the_model_of_a_checkpoint_is_that_of_its_step(uninterrupted):
    from safetensors.torch import load_file

    folder, at_checkpoint, *_ = uninterrupted
    saved = load_file(folder / "hf" / "model.safetensors")
    assert all(torch.equal(at_checkpoint[name], weight) for name, weight in saved.items())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"hf/model.safetensors", "hf/tokenizer.json", "run.json"} < {entry["path"] for entry in manifest["files"]}


@pytest.fixture(scope="module")
def gang(ray_session, config):
    """Two ranks, of which the last test of this file kills one, and what runs their coroutines."""
    from actors.learning.gang import LearnerGang

    loop = asyncio.new_event_loop()

    async def start():
        gang = LearnerGang(config, 2)
        await gang.start()
        return gang

    gang = loop.run_until_complete(start())
    yield gang, loop.run_until_complete
    gang.kill()
    loop.close()


def test_lost_groups_are_named_before_anything_is_trained(ray_session, gang, batches):
    """Their owner died, with whose process the object goes, as it goes with a node."""
    from actors.learning.gang import GroupsLost

    gang, run = gang

    @ray_session.remote
    class Owner:
        def put(self, group):
            return [ray_session.put(group)]

    owner = Owner.remote()
    step = records(ray_session, batches[0])
    (lost,) = ray_session.get(owner.put.remote(batches[0][3]))
    ray_session.kill(owner)
    with pytest.raises(ray_session.exceptions.ObjectLostError):
        until(lambda: ray_session.get(lost) is None)
    step[3] = (step[3][0], lost)
    before = run(weights_of(gang))
    with pytest.raises(GroupsLost) as error:
        run(gang.train(0, 0, step))
    assert error.value.indices == [3]
    after = run(weights_of(gang))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run(gang.train(0, 0, records(ray_session, batches[0])))  # and the gang is whole


def test_a_checkpoint_that_cannot_be_written_says_why(ray_session, gang, tmp_path):
    """A folder stands where one of its files should be."""
    gang, run = gang
    folder = tmp_path / "checkpoints" / "2"
    run(gang.copy_checkpoint(str(folder)))
    (folder / "learner" / "state" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").mkdir()
    with pytest.raises(RayTaskError, match="Is a directory"):
        run(gang.write_checkpoint())
    run(gang.copy_checkpoint(str(tmp_path / "checkpoints" / "3")))
    assert run(gang.write_checkpoint())


def test_a_dead_rank_ends_the_gang_with_its_reason(ray_session, gang, batches):
    from actors.learning.gang import GangLost

    gang, run = gang
    ray_session.kill(gang.ranks[1])
    with pytest.raises(GangLost, match="a learner rank"):
        run(gang.train(0, 0, records(ray_session, batches[0])))
