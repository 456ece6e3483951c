"""Real runs whose folder is wanted by another run, cannot be written, or is left at once."""

import json
import signal

from tests.support.faults import training


def test_a_run_is_alone_in_its_folder_and_outlives_that_it_cannot_write_there(shared_ray, tmp_path):
    """Folders stand where its files should be, as a full disk cannot be had here. The other run has another Ray."""
    mine = (f"run.folder={tmp_path}", "run.name=mine", "train.episodes_every=1", "train.steps=1000")
    folder = tmp_path / "mine"
    with training(*mine, environment=shared_ray) as run:
        line = run.wait_for("step 1/")
        other = training(*mine, "resume=auto")  # no context: its end would kill the coordinators of the tests' Ray
        assert other.end() == 2, other.output
        owner = json.loads((folder / "lease.json").read_text())
        assert f"is in use by run {owner['run']} on {owner['holder']['host']}" in other.output
        assert "whose last heartbeat came" in other.output

        (folder / "metrics.jsonl").rename(folder / "moved.jsonl")
        (folder / "episodes").rename(folder / "moved")
        (folder / "episodes").touch()
        for name in ("metrics.jsonl", "summary.json"):
            (folder / name).mkdir()
        line = run.wait_for("· metrics.jsonl could not be written", after=line)
        line = run.wait_for("  reward", after=run.wait_for("  reward", after=line))
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 130, run.output
    said = [line for line in run.lines if line.startswith("· ")]
    for text in ("metrics.jsonl could not be written", "episodes could not be written"):
        assert len([line for line in said if text in line]) == 1, run.output
    (left,) = [line for line in said if "summary.json could not be written" in line]
    summary = json.loads(left.partition("it is: ")[2])
    assert summary["status"] == "interrupted" and summary["error"] is None
    unwritten = summary["unwritten"]
    assert unwritten["metrics.jsonl"] >= 2 and unwritten["episodes"] >= 2
    assert f"· metrics.jsonl lacks {unwritten['metrics.jsonl']} that could not be written" in said
    written = (folder / "moved.jsonl").read_text().splitlines()
    assert len(written) + unwritten["metrics.jsonl"] == summary["steps"]
    assert "Traceback" not in run.output and not (folder / "lease.json").exists()


def test_a_run_that_is_stopped_as_soon_as_its_folder_is_there_leaves_a_summary(shared_ray, tmp_path):
    with training(f"run.folder={tmp_path}", "run.name=stopped", environment=shared_ray) as run:
        run.wait_for("· run folder")
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 130, run.output
    summary = json.loads((tmp_path / "stopped" / "summary.json").read_text())
    assert summary["status"] == "interrupted" and summary["steps"] == 0 and summary["error"] is None
    assert "Traceback" not in run.output and not (tmp_path / "stopped" / "lease.json").exists()
