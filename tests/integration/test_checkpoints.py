"""Checkpoints: complete or not there, and what learners make of them, whatever their number."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.exceptions import RayTaskError

from pipeline.errors import ConfigError
from pipeline.run.checkpoints import CheckpointError, Checkpoints, checkpoints_of
from pipeline.run.config import load_training_config
from tests.integration.test_learner import case_config, records, weights_of
from tests.support.checkpoint_files import state, write
from tests.support.faults import until
from tests.support.groups import random_group


@pytest.fixture(params=["path", "URI"])
def checkpoints(request, tmp_path) -> Checkpoints:
    made = Checkpoints(tmp_path / "checkpoints")
    for step in (2, 10, 4):
        write(made, step)
    return made if request.param == "path" else Checkpoints(f"file://{tmp_path}/checkpoints")


def test_the_newest_good_one_says_where_the_run_stood(checkpoints):
    newest = checkpoints.newest_good()
    assert (newest.step, newest.folder) == (10, checkpoints.folder(10))
    assert newest.state == state(10)
    assert Checkpoints("/no/such/folder").newest_good() is None


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[:-9])
    elif how == "changed":
        content[500] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "changed", "missing"])
@pytest.mark.parametrize("name", ["learner/state/rank_0.pt", "hf/model.safetensors", "run.json", "manifest.json"])
def test_one_that_is_not_what_was_written_is_passed_over(tmp_path, name, how):
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 4):
        write(checkpoints, step)
    path = tmp_path / "4" / name
    if name.endswith("json") and how == "changed":
        path.write_text("{}")
    else:
        spoil(path, how)
    said = []
    assert checkpoints.newest_good(said.append).step == 2
    if (name, how) == ("manifest.json", "missing"):
        assert checkpoints.steps() == [2]  # as if its writing had not been finished
    else:
        assert len(said) == 1 and "checkpoints/4 cannot be used" in said[0]
        with pytest.raises(CheckpointError):
            checkpoints.read(4)


def test_what_was_not_finished_is_not_there_and_can_be_cleared(checkpoints, tmp_path):
    (tmp_path / "checkpoints" / "12" / "hf").mkdir(parents=True)
    assert checkpoints.steps() == [10, 4, 2]
    checkpoints.clear(12)
    checkpoints.clear(99)  # there was none
    assert not (tmp_path / "checkpoints" / "12").exists()
    checkpoints.begin(4)
    assert checkpoints.steps() == [10, 2] and not any((tmp_path / "checkpoints" / "4" / "learner").iterdir())


def test_where_no_folder_can_be_made_it_shows_before_learners_copy_anything(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        Checkpoints(tmp_path / "file").begin(2)


def test_the_last_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, reward in [(1, 0.1), (2, 0.9), (3, 0.5), (4, 0.9), (5, 0.2), (6, 0.3)]:
        write(checkpoints, step, reward)
    assert checkpoints.prune(6, keep_last=2, keep_best=1) == [3, 2, 1]
    assert checkpoints.steps() == [6, 5, 4]
    assert checkpoints.prune(6, keep_last=1, keep_best=0) == [5, 4]


def test_those_of_a_history_that_was_left_are_not_kept_for_newer_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 4, 6):
        checkpoints.begin(step)
        write(checkpoints, step)
    (tmp_path / "6" / "run.json").unlink()  # so the run went back to 4, and has come to 5 since
    write(checkpoints, 5)
    assert checkpoints.prune(5, keep_last=1, keep_best=0) == [6, 4, 2]
    assert checkpoints.newest_good().step == 5


def test_newer_ones_that_another_process_wrote_stay(tmp_path):
    """It may have taken the folder over from this one, which does not know yet."""
    mine, others = Checkpoints(tmp_path), Checkpoints(tmp_path)
    for step, owner in [(2, mine), (4, mine), (6, others), (8, others)]:
        owner.begin(step)
        write(owner, step)
    assert mine.prune(4, keep_last=1, keep_best=0) == [2] and mine.steps() == [8, 6, 4]
    assert others.prune(8, keep_last=1, keep_best=0) == [6, 4]


def test_when_none_can_be_used_nothing_begins_anew_by_itself(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 4):
        write(checkpoints, step)
        spoil(tmp_path / str(step) / "hf" / "model.safetensors", "truncated")
    with pytest.raises(CheckpointError, match="no checkpoint in .* can be used"):
        checkpoints.newest_good()


def place(tmp_path, kind: str) -> str:
    return str(tmp_path / "shared" / "mine") if kind == "path" else f"file://{tmp_path}/shared/mine"


@pytest.mark.parametrize("kind", ["path", "URI"])
def test_a_folder_outside_the_run_folder_is_one_runs_alone(tmp_path, kind):
    mine, other = Checkpoints(place(tmp_path, kind), "my id"), Checkpoints(place(tmp_path, kind), "other id")
    mine.claim(resume=False)
    mine.claim(resume=True)  # it ended before its first checkpoint
    assert mine.owner() == "my id" and mine.steps() == []
    with pytest.raises(ConfigError, match="checkpoints of another run .run.id: my id.; choose another run.name"):
        other.claim(resume=False)
    write(Checkpoints(tmp_path / "shared" / "mine"), 2)
    mine.claim(resume=True)
    with pytest.raises(ConfigError, match="is not empty; .* resume=auto"):
        mine.claim(resume=False)
    with pytest.raises(ConfigError, match="put its id into run.id of the run folder"):
        other.claim(resume=True)
    with pytest.raises(OSError, match="is not this run's"):
        other.begin(4)
    assert mine.steps() == [2]
    mine.begin(4)


def test_files_of_nobody_are_no_place_for_checkpoints(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds files, and no run.id"):
        Checkpoints(tmp_path / "mine", "my id").claim(resume=True)


@pytest.mark.parametrize("base", ["/dev/null/mine", "nosuchstore://bucket/mine"])
def test_a_folder_that_cannot_be_written_shows_before_anything_starts(base):
    with pytest.raises(ConfigError, match=f"the checkpoint folder {base} cannot be used"):
        Checkpoints(base, "my id").claim(resume=False)


def test_runs_of_one_checkpoint_folder_prune_only_their_own(tmp_path):
    configs = [
        load_training_config(["preset=tiny", f"run.name={name}", f"train.checkpoint_folder={tmp_path}"])
        for name in "ab"
    ]
    first, second = (checkpoints_of(c, tmp_path / "runs" / c.run.name, f"id of {c.run.name}") for c in configs)
    for checkpoints in (first, second):
        checkpoints.claim(resume=False)
        for step in (1, 2, 3):
            write(checkpoints, step)
    assert first.prune(3, keep_last=1, keep_best=0) == [2, 1]
    assert first.folder(3) == f"{tmp_path}/a/3" and second.steps() == [3, 2, 1]


def test_without_such_a_folder_they_are_in_the_run_folder(tmp_path):
    checkpoints = checkpoints_of(load_training_config(["preset=tiny"]), tmp_path, "id")
    checkpoints.claim(resume=False)
    assert checkpoints.base == f"{tmp_path}/checkpoints" and not (tmp_path / "checkpoints").exists()


# What learners make of them.

STEPS = 4  # two before the checkpoint, two after it


@pytest.fixture(scope="module")
def config(tiny_config):
    learner = {"schedule": "cosine", "ranks": 2, "stall_s": 60.0}
    return case_config(tiny_config, {"learner": learner, "train": {"updates_per_step": 2}})


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
    """A run of two ranks that writes a checkpoint after its second step while it trains the third."""
    from actors.learning.gang import LearnerGang

    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "2"

    async def run():
        gang = LearnerGang(config, 2)
        await gang.start()
        rows = await steps(ray_session, gang, batches, 0, 2)
        at_checkpoint = await weights_of(gang)
        await gang.copy_checkpoint(str(folder))
        rows += await steps(ray_session, gang, batches, 2, 3)
        await saved(gang, folder, ranks=2)
        rows += await steps(ray_session, gang, batches, 3, 4)
        weights = await weights_of(gang)
        await gang.close()
        return at_checkpoint, rows, weights

    return folder, *asyncio.run(run())


@pytest.mark.parametrize("ranks", [2, 1, 3])
def test_any_number_of_ranks_goes_on_as_if_nothing_had_been(
    ray_session, config, batches, uninterrupted, tmp_path, ranks
):
    from actors.learning.gang import LearnerGang

    folder, at_checkpoint, rows, weights = uninterrupted
    checkpoint = Checkpoints(folder.parent).newest_good()
    assert checkpoint.folder == str(folder)

    async def run():
        gang = LearnerGang(replace(config, learner=replace(config.learner, ranks=ranks)), ranks)
        universal = "" if ranks == checkpoint.state.ranks else str(tmp_path / "universal" / "learner")
        await gang.start(checkpoint.folder, universal)
        loaded = await weights_of(gang)
        rows = await steps(ray_session, gang, batches, 2, 4)
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
