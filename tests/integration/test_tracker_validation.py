"""What the tracker leaves of validations: rows, answers, and what a roll-back or a full disk does to them."""

import json

import pytest

from jobs.evaluate import compare_runs
from pipeline.run.config import load_training_config
from pipeline.run.validation import validation_row
from tests.support.disks import full_disk
from tests.support.faults import until
from tests.support.result_rows import row as result


@pytest.fixture
def start(random_model, tmp_path, monkeypatch):
    """Starts a tracker in this process instead of an actor of its own."""
    from actors import tracker as module

    config = load_training_config(
        ["preset=tiny", f"model.path={random_model}", "wandb.mode=disabled", "run.name=tracked"]
    )

    def start(step: int = 0, again: bool = False):
        monkeypatch.setattr(module, "was_started_again", lambda: again)
        return module.Tracker.__ray_metadata__.modified_class(config, str(tmp_path), step)

    return start


def validation(step: int) -> tuple[dict, list[dict]]:
    """The row and the answers of a validation whose questions are all right from step 4 on."""
    answers = [
        result(float(step >= 4), id=f"q{number}", length=144)
        | {"versions": [step, step + 1], "prompt_tokens_computed": 3}
        for number in range(4)
    ]
    return validation_row(step, step, "questions", answers, 1.0), answers


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]


def test_rows_and_answers_are_written_and_drawn_and_two_validations_compare(start, tmp_path, capsys):
    tracker = start()
    tracker.log({"step": 1, "reward": 0.5})
    for step in (0, 4):
        assert tracker.validated(*validation(step)) == []
    assert rows(tmp_path) == [validation(0)[0], validation(4)[0]]
    until(lambda: (tmp_path / "training.png").exists(), 20)
    assert tracker._gauges.keys() >= {"validation_score", "validation_score_144"}
    folders = [str(tmp_path / "validation" / name) for name in ("step-000000", "step-000004")]
    assert compare_runs(folders) == 0
    assert (
        "step-000004" in capsys.readouterr().out
        and (tmp_path / "validation").joinpath("compare-step-000000-step-000004", "comparison.md").exists()
    )


def test_going_back_forgets_later_validations_and_a_restart_knows_the_others(start, tmp_path):
    tracker = start()
    for step in (0, 4, 8):
        tracker.validated(*validation(step))
    assert tracker.roll_back(5) == []
    assert [row["step"] for row in rows(tmp_path)] == [0, 4]
    assert sorted(path.name for path in (tmp_path / "validation").iterdir()) == ["step-000000", "step-000004"]
    _, known, *_ = start(again=True).begun()  # Ray started it again
    assert known == rows(tmp_path)
    _, known, *_ = start(step=3).begun()  # the run is resumed
    assert [row["step"] for row in known] == [0] == [row["step"] for row in rows(tmp_path)]


def test_a_full_disk_puts_a_row_off_and_what_is_not_written_is_counted(start, tmp_path, monkeypatch):
    tracker, full = start(), full_disk(monkeypatch)
    tracker.validated(*validation(0))
    full(0)
    said = tracker.validated(*validation(4))
    assert [line.partition(" could")[0] for line in said] == ["· metrics.jsonl", "· validation"]
    unwritten, _ = tracker.flush()
    assert unwritten["validation.jsonl"] == 1 and unwritten["validation"] == 1
    full(None)
    unwritten, said = tracker.flush()
    assert "validation.jsonl" not in unwritten and "· metrics.jsonl is written again" in said
    assert [row["step"] for row in rows(tmp_path)] == [0, 4]


def test_half_a_surrogate_pair_in_an_answer_is_written(start, tmp_path):
    row, answers = validation(0)
    answers[0]["answer"] = "\ud800"
    assert start().validated(row, answers) == []
    assert "\\ud800" in (tmp_path / "validation/step-000000/results.jsonl").read_text()


def test_a_torn_last_line_is_no_row(start, tmp_path):
    start().validated(*validation(0))
    with (tmp_path / "validation.jsonl").open("a") as file:
        file.write('{"step": 4, "sc')
    _, known, *_ = start(again=True).begun()
    assert [row["step"] for row in known] == [0]


def test_a_call_that_is_repeated_after_the_tracker_died_writes_its_row_once(start, tmp_path):
    start().validated(*validation(0))
    start(again=True).validated(*validation(0))
    assert rows(tmp_path) == [validation(0)[0]]


def test_rows_that_could_not_be_read_at_the_start_are_not_overwritten(start, tmp_path, monkeypatch):
    first = start()
    first.log({"step": 1, "reward": 0.5})
    first.validated(*validation(0))
    full = full_disk(monkeypatch)
    full(0)
    resumed = start(step=0)  # the row of step 1 is to be moved to abandoned.jsonl, which fails
    _, known, *_ = resumed.begun()
    assert [row["step"] for row in known] == [0]
    full(None)
    resumed.validated(*validation(4))
    assert [row["step"] for row in rows(tmp_path)] == [0, 4]
