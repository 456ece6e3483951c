"""What dies, dies for real: generators, learners, the coordinator, whole runs. tests/chaos/__main__.py has all the
rest."""

import json
import re
import signal
from contextlib import ExitStack

import pytest

from pipeline.run.checkpoints import Checkpoints
from tests.support.faults import SMALL, check_history, inject, rows_of, training, until

GROUPS = 4  # a step


@pytest.fixture
def start():
    """Starts runs, and ends those that a test leaves behind when it fails."""
    with ExitStack() as runs:
        yield lambda *arguments, environment=None: runs.enter_context(training(*arguments, environment=environment))


def test_a_run_outlives_an_engine_a_learner_and_the_coordinator(start, shared_ray, tmp_path):
    validated = "train.evaluate_every=2 validation.data.synthetic_chunks=[3] validation.data.synthetic_count=4".split()
    run = start(f"run.folder={tmp_path}", "run.name=broken", "train.steps=1000", *validated, environment=shared_ray)
    line = run.wait_for("step 2/")
    inject("engine", after=50)  # in the middle of conversations, which nobody else can go on with
    line = run.wait_for("generator-0 died; starting it again", after=line)
    line = run.wait_for("generator-0 is in service", after=line)
    line = run.wait_for("  reward", after=line)
    inject("forward")
    line = run.wait_for("learners are back", after=line)
    before = rows_of(tmp_path / "broken")
    line = run.wait_for("  reward", after=line)
    line = run.wait_for("· saved checkpoints/", after=line)
    inject("coordinator")
    line = run.wait_for("the coordinator died and was started again", after=line)
    run.wait_for("  reward", after=run.wait_for("all started", after=line))
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 130, run.output

    summary = check_history(tmp_path / "broken", GROUPS, max_staleness=1)
    assert summary["group_moves"] >= 1 and summary["learner_restarts"] == 1 and summary["coordinator_restarts"] == 1
    # At most one conversation of each episode of each group that moved.
    assert 1 <= summary["conversations_redone"] <= 4 * summary["group_moves"]
    assert summary["failures"].get("GeneratorLost", 0) == 0 and summary["rows_quarantined"] == 0
    validations = [json.loads(line) for line in (tmp_path / "broken" / "validation.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in validations]
    assert steps == sorted(set(steps)) and steps[0] == 0 and steps[-1] > 2 and all(step % 2 == 0 for step in steps)
    assert all(row["answers"] == 4 and not row["errors"] for row in validations)
    assert all(row["version"] <= row["version_min"] for row in validations)  # never by older weights
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
def whole(shared_ray, tmp_path_factory):
    """A synchronous run that nothing happens to: its arguments and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    with training(f"run.folder={folder}", "run.name=whole", *REPEATABLE, environment=shared_ray) as run:
        assert run.end() == 0, run.output
    return REPEATABLE, folder / "whole"


def test_a_killed_run_goes_on_as_if_nothing_had_been_with_other_ranks_and_generators(
    start, whole, shared_ray, tmp_path
):
    settings = (f"run.folder={tmp_path}", "run.name=killed", f"train.checkpoint_folder=file://{tmp_path}/elsewhere")
    stopped = inject("coordinator stands still", after=5)
    killed = start(*settings, *REPEATABLE)  # with a Ray of its own, which dies with it
    killed.wait_for("step 5/")
    until(stopped.exists)
    killed.kill_all()

    refused = start(*settings, *REPEATABLE, environment=shared_ray)
    assert refused.end() == 2 and "resume=auto" in refused.output

    other = ("learner.ranks=1", "generator.count=2", "resume=auto")
    resumed = start(*settings, *REPEATABLE, *other, environment=shared_ray)
    assert resumed.end() == 0, resumed.output
    (resumed_after,) = re.findall(r"· resuming after step (\d)", resumed.output)
    assert resumed_after in "24"  # 4, unless the disk was so slow that this checkpoint was not whole
    summary = check_history(tmp_path / "killed", GROUPS, max_staleness=0, steps=7)
    check_history(whole[1], GROUPS, max_staleness=0, steps=7)
    rows, uninterrupted = rows_of(tmp_path / "killed"), rows_of(whole[1])
    assert [row["positions"] for row in rows] == [row["positions"] for row in uninterrupted]
    assert [row["reward"] for row in rows] == [row["reward"] for row in uninterrupted]
    for name in ("loss", "grad_norm", "entropy", "learning_rate"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in uninterrupted], rel=1e-4, abs=1e-7)
    abandoned = [json.loads(line) for line in (tmp_path / "killed" / "abandoned.jsonl").read_text().splitlines()]
    assert [row["step"] for row in abandoned] == list(range(int(resumed_after) + 1, 6))
    assert summary["checkpoint"] == f"file://{tmp_path}/elsewhere/killed/7"
    assert Checkpoints(f"file://{tmp_path}/elsewhere/killed").read(7).state.ranks == 1

    # A later one that cannot even start does not forget what there was.
    (tmp_path / "bad.jsonl").write_text("this is not JSON\n" * 30)
    bad = ("train.steps=9", "data.source=file", f"data.path={tmp_path}/bad.jsonl", "resume=auto")
    failed = start(*settings, *REPEATABLE, *bad, environment=shared_ray)
    assert failed.end() == 1 and "rows are bad" in failed.output
    after = json.loads((tmp_path / "killed" / "summary.json").read_text())
    assert after["status"] == "failed" and after["steps"] == 7
    assert all(after[name] == summary[name] for name in ("reward_first", "reward_last", "checkpoint"))


def test_on_policy_the_importance_weight_is_one_and_nothing_is_clipped(whole, capsys):
    from jobs.train import main

    arguments, folder = whole
    rows = rows_of(folder)
    assert len(rows) == 7
    for row in rows:
        assert row["staleness_max"] == 0 and row["clip_fraction"] == 0 and row["kl"] == 0
        assert row["ratio_mean"] == pytest.approx(1, abs=1e-6)
        assert 0 < row["logprob_mismatch_tokens"] <= row["tokens_trained"]  # not of groups that need not be computed
        assert abs(row["importance_mean"] - 1) <= row["logprob_mismatch_mean"] * 1.1 + 1e-7
        assert row["importance_max"] <= 1 + 1.1 * row["logprob_mismatch_max"] + 1e-7
        assert row["proximal_seconds"] == 0  # the pass would add nothing
        assert row["entropy"] > 0 and row["updates"] == 1 and row["updates_skipped"] == 0
    # The learning rates are those that --dry-run shows.
    assert main([*SMALL, *arguments, "--dry-run"]) == 0
    _, _, table = capsys.readouterr().out.partition("  step  optimizer steps  learning rate\n")
    planned = [(int(step), int(updates), float(rate)) for step, updates, rate in map(str.split, table.splitlines())]
    assert [(row["step"], row["updates_total"]) for row in rows] == [plan[:2] for plan in planned]
    assert [row["learning_rate"] for row in rows] == pytest.approx([plan[2] for plan in planned], rel=1e-5)
    assert rows[-1]["learning_rate"] < rows[-2]["learning_rate"] < rows[1]["learning_rate"]
