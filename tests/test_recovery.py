"""What dies, dies for real: generators, learners, the coordinator, whole runs. tests/chaos.py has all the rest."""

import json
import signal
from contextlib import ExitStack

import pytest

from pipeline.checkpoints import Checkpoints
from tests.chaos import BUSY, GROUPS
from tests.faults import busy_engine, check_history, rows_of, training


@pytest.fixture
def start():
    """Starts runs, and ends those that a test leaves behind when it fails."""
    with ExitStack() as runs:
        yield lambda *arguments: runs.enter_context(training(*arguments))


def test_a_run_outlives_an_engine_a_learner_and_the_coordinator(start, tmp_path):
    run = start(f"run.folder={tmp_path}", "run.name=broken", "train.steps=1000", *BUSY)
    line = run.wait_for("step 3/")
    busy_engine(run.root).kill()  # in the middle of conversations, which nobody else can go on with
    line = run.wait_for("generator-0 died; starting it again", after=line)
    line = run.wait_for("generator-0 is in service", after=line)
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


def test_a_killed_run_goes_on_as_if_nothing_had_been_with_other_ranks_and_generators(start, tmp_path):
    whole = start(f"run.folder={tmp_path}", "run.name=whole", *REPEATABLE)
    settings = (f"run.folder={tmp_path}", "run.name=killed", f"train.checkpoint_folder=file://{tmp_path}/elsewhere")
    killed = start(*settings, *REPEATABLE)
    killed.wait_for("step 5/")
    killed.kill_all()

    refused = start(*settings, *REPEATABLE)
    assert refused.end() == 2 and "resume=auto" in refused.output

    resumed = start(*settings, *REPEATABLE, "learner.ranks=1", "generator.count=2", "resume=auto")
    assert resumed.end() == 0, resumed.output
    assert whole.end() == 0, whole.output
    assert "· resuming after step 4" in resumed.output
    summary = check_history(tmp_path / "killed", GROUPS, max_staleness=0, steps=7)
    check_history(tmp_path / "whole", GROUPS, max_staleness=0, steps=7)
    rows, uninterrupted = rows_of(tmp_path / "killed"), rows_of(tmp_path / "whole")
    assert [row["positions"] for row in rows] == [row["positions"] for row in uninterrupted]
    assert [row["reward"] for row in rows] == [row["reward"] for row in uninterrupted]
    for name in ("loss", "grad_norm", "entropy", "learning_rate"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in uninterrupted], rel=1e-4, abs=1e-7)
    abandoned = [json.loads(line) for line in (tmp_path / "killed" / "abandoned.jsonl").read_text().splitlines()]
    assert {row["step"] for row in abandoned} <= {5, 6} and abandoned
    assert summary["checkpoint"] == f"file://{tmp_path}/elsewhere/7"
    assert Checkpoints(f"file://{tmp_path}/elsewhere").read(7).state.ranks == 1
