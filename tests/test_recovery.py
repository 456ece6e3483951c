"""What dies, dies for real: generators, learners, the coordinator, whole runs. tests/chaos.py has all the rest."""

import json
import signal
from pathlib import Path

import psutil
import pytest

from tests.chaos import BUSY, GROUPS
from tests.faults import Run, check_history, rows_of


def test_a_run_outlives_a_generator_a_learner_and_the_coordinator(tmp_path):
    run = Run(f"run.folder={tmp_path}", "run.name=broken", "train.steps=1000", "generator.count=2", *BUSY)
    line = run.wait_for("step 3/")
    run.busy_engine().parent().kill()  # in the middle of conversations
    line = run.wait_for("died; starting it again", after=line)
    line = run.wait_for("step ", after=line)
    run.kill("Learner")
    line = run.wait_for("learners are back", after=line)
    before = rows_of(tmp_path / "broken")
    line = run.wait_for("  reward", after=line)
    line = run.wait_for("· saved checkpoints/", after=line)
    run.kill("Coordinator")
    line = run.wait_for("the coordinator died and was started again", after=line)
    line = run.wait_for("  reward", after=run.wait_for("all started", after=line))
    run.process.send_signal(signal.SIGTERM)
    assert run.end(120) == 130, run.output

    summary = check_history(tmp_path / "broken", GROUPS, max_staleness=1)
    assert summary["group_moves"] >= 1 and summary["learner_restarts"] == 1 and summary["coordinator_restarts"] == 1
    # At most one conversation of each episode of each group that moved.
    assert 1 <= summary["conversations_redone"] <= 16 * summary["group_moves"]
    assert summary["failures"].get("GeneratorLost", 0) == 0 and summary["rows_quarantined"] == 0
    # Learners went back to a checkpoint, and versions did not.
    assert "going back from step" in run.output
    assert before[-1]["version"] >= before[-1]["step"]


REPEATABLE = (
    "train.max_staleness=0",
    "train.seeded_sampling=true",
    "train.steps=7",
    "data.synthetic_chunks=3",
    "objective.entropy_coefficient=0",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("whole")
    run = Run(f"run.folder={folder}", "run.name=whole", *REPEATABLE)
    assert run.end() == 0, run.output
    check_history(folder / "whole", GROUPS, max_staleness=0, steps=7)
    return rows_of(folder / "whole")


def test_a_killed_run_goes_on_as_if_nothing_had_been_with_other_ranks_and_generators(uninterrupted, tmp_path):
    run = Run(f"run.folder={tmp_path}", "run.name=killed", *REPEATABLE)
    run.wait_for("step 5/")
    for process in [*psutil.Process(run.process.pid).children(recursive=True), run.process]:
        process.kill()
    run.process.wait()

    refused = Run(f"run.folder={tmp_path}", "run.name=killed", *REPEATABLE)
    assert refused.end() == 2 and "resume=auto" in refused.output

    again = ("learner.ranks=1", "generator.count=2", "resume=auto")
    resumed = Run(f"run.folder={tmp_path}", "run.name=killed", *REPEATABLE, *again)
    assert resumed.end() == 0, resumed.output
    assert "· resuming after step 4" in resumed.output
    check_history(tmp_path / "killed", GROUPS, max_staleness=0, steps=7)
    rows = rows_of(tmp_path / "killed")
    assert [row["positions"] for row in rows] == [row["positions"] for row in uninterrupted]
    assert [row["reward"] for row in rows] == [row["reward"] for row in uninterrupted]
    for name in ("loss", "grad_norm", "entropy", "learning_rate"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in uninterrupted], rel=1e-4, abs=1e-7)
    abandoned = [json.loads(line) for line in (tmp_path / "killed" / "abandoned.jsonl").read_text().splitlines()]
    assert {row["step"] for row in abandoned} <= {5, 6} and abandoned
    assert json.loads((Path(resumed_checkpoint(tmp_path)) / "run.json").read_text())["ranks"] == 1


def resumed_checkpoint(folder: Path) -> str:
    return json.loads((folder / "killed" / "summary.json").read_text())["checkpoint"]
