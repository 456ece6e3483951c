"""Checkpoints on disk: which are whole, which is the newest, and which are kept."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.run.checkpoints import CheckpointError, Checkpoints, Scores, checkpoints_of
from pipeline.run.config import load_training_config
from tests.support.checkpoint_files import state, write


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


def test_the_best_by_validation_are_kept_whatever_their_reward(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, reward in [(1, 0.9), (2, 0.1), (3, 0.5), (4, 0.2), (5, 0.3)]:
        write(checkpoints, step, reward)
    scores = Scores({1: 0.2, 2: 0.8, 3: 0.8})
    assert checkpoints.prune(5, keep_last=1, keep_best=1, scores=scores) == [4, 3, 1]  # of equal ones, the older stays
    assert checkpoints.steps() == [5, 2]


def test_a_checkpoint_whose_validation_is_running_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3, 4):
        write(checkpoints, step, reward=1 / step)
    assert checkpoints.prune(4, keep_last=1, keep_best=1, scores=Scores({1: 0.2, 3: 0.1}, frozenset({2}))) == [3]
    assert checkpoints.prune(4, keep_last=1, keep_best=0, scores=Scores({}, frozenset({2}))) == [2, 1]


def test_before_there_are_scores_rewards_decide(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, reward in [(1, 0.9), (2, 0.1), (3, 0.5)]:
        write(checkpoints, step, reward)
    assert checkpoints.prune(3, keep_last=1, keep_best=1, scores=Scores({})) == [2]


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
