"""make train after its job: the exit status, the summary and the log, which are this job's or an earlier one's."""

import contextlib
import json
import math
import os
from pathlib import Path

import pytest
from ray.job_submission import JobStatus

import jobs.support.local_head
from jobs.submit import main, submit
from pipeline.summary import write_summary
from tests.support.job_client import JobClient
from tests.support.screen import Screen


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """Submit a run named `old` to a cluster; return the exit status."""

    def run(client: JobClient, *arguments: str, screen: Screen | None = None) -> int:
        monkeypatch.setattr(jobs.support.local_head, "find_cluster", lambda port: client)
        arguments = arguments or ("run.name=old",)
        return submit(["preset=tiny", *arguments], working_dir=tmp_path, progress=screen or Screen())

    return run


@pytest.fixture
def old(tmp_path) -> Path:
    """The folder of a finished run."""
    folder = tmp_path / "runs" / "old"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("run: {name: old}\n")
    (folder / "job.log").write_text("the earlier job\n")
    write_summary(folder, {"status": "completed", "steps": 80})
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    return folder


def job(status: JobStatus, exit_code: int | None, summary: str = ""):
    """A job that leaves a summary with this status; empty: none."""

    def run(folder: Path) -> tuple[JobStatus, int | None]:
        if summary:
            folder.mkdir(parents=True, exist_ok=True)
            write_summary(folder, {"status": summary, "steps": 3})
        return status, exit_code

    return run


def test_a_refused_job_leaves_the_earlier_run_alone(submitted, old, capsys):
    refused = JobClient(job(JobStatus.FAILED, 2), "configuration error: the run folder is not empty\n")
    assert submitted(refused) == 2
    printed = capsys.readouterr().out
    assert "failed, without a summary" in printed and "completed" not in printed
    assert (old / "job.log").read_text() == "the earlier job\n"
    log = old.parent / f"{refused.ids[0]}.log"
    assert log.read_text() == refused.lines and f"log         {log}" in printed


def test_a_job_that_resumes_a_run_keeps_the_log_of_the_earlier_one(submitted, old, capsys):
    assert submitted(JobClient(job(JobStatus.SUCCEEDED, 0, "completed"), "half a line\r whole\n")) == 0
    assert "completed: 3 steps" in capsys.readouterr().out
    assert (old / "job.log").read_bytes() == b"the earlier job\nhalf a line\r whole\n"
    assert list(old.parent.glob("*.log")) == []


def test_a_job_that_began_and_left_no_summary(submitted, old, capsys):
    def lost(folder: Path) -> tuple[JobStatus, int | None]:
        (folder / "config.yaml").write_text("run: {name: old}\ntrain: {}\n")
        return JobStatus.FAILED, 137

    assert submitted(JobClient(lost)) == 1
    assert "failed, without a summary" in capsys.readouterr().out
    assert json.loads((old / "summary.json").read_text())["steps"] == 80
    assert (old / "job.log").read_text() == "the earlier job\na line\n"


@pytest.mark.parametrize(
    ("status", "exit_code", "summary", "ended"),
    [
        (JobStatus.SUCCEEDED, 0, "completed", 0),
        (JobStatus.FAILED, 1, "failed", 1),
        (JobStatus.FAILED, -9, "", 1),
        (JobStatus.FAILED, None, "", 1),  # it never ran
        (JobStatus.FAILED, 2, "", 2),
        (JobStatus.FAILED, 1, "completed", 1),  # its evaluation failed
        (JobStatus.FAILED, 130, "completed", 130),
        (JobStatus.STOPPED, None, "interrupted", 130),
        (JobStatus.STOPPED, None, "completed", 130),  # stopped in its evaluation
        (JobStatus.STOPPED, None, "failed", 1),
        (JobStatus.STOPPED, None, "", 130),
    ],
)
def test_the_exit_status(submitted, capsys, status, exit_code, summary, ended):
    assert submitted(JobClient(job(status, exit_code, summary))) == ended
    assert ("after its training" in capsys.readouterr().out) == (summary == "completed" and ended != 0)


@pytest.mark.parametrize(
    "given", ["run.name=old", "run.name='old'", "preset=mine.yaml", "run.name=old-20250101-000000"]
)
def test_each_job_of_a_run_has_an_id_of_its_own(submitted, tmp_path, monkeypatch, given):
    """Ray accepts each id once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("preset: tiny\nrun: {name: old}\n")
    client = JobClient(job(JobStatus.SUCCEEDED, 0))
    for now in ("20260101-000000", "20260101-000001"):
        monkeypatch.setattr("time.strftime", lambda form, now=now: now)
        assert submitted(client, given) == 0
        assert client.ids[-1].startswith("old-") and client.ids[-1].endswith(f"-{now}")


def test_the_id_of_a_job_without_a_name_has_the_time_once(submitted, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    client = JobClient(job(JobStatus.SUCCEEDED, 0))
    assert submitted(client, "train.steps=1") == 0
    assert client.ids == ["tiny-20260101-000000"]


def test_a_cluster_that_answers_again(submitted, tmp_path):
    client, screen = JobClient(job(JobStatus.SUCCEEDED, 0, "completed")), Screen()
    client.lost = 1
    assert submitted(client, screen=screen) == 0
    assert screen.shown.count("a line") == 1
    assert (tmp_path / "runs" / "old" / "job.log").read_text() == "a line\n"


@pytest.mark.parametrize("own", [False, True])
def test_a_cluster_that_is_lost(tmp_path, monkeypatch, capsys, own):
    client = JobClient(job(JobStatus.RUNNING, None))
    client.lost = math.inf
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("logging.disable", lambda level: None)
    monkeypatch.setattr("jobs.submit.LOST_S", 0.0)
    monkeypatch.setattr(jobs.support.local_head, "find_cluster", lambda port: None if own else client)
    monkeypatch.setattr(jobs.support.local_head, "local_head", lambda port: contextlib.nullcontext(client))
    assert main(["preset=tiny", "run.name=old"]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(
        "the Ray cluster at http://127.0.0.1:8265 has not reported on the job for 0 s: connection refused; "
    )
    follows = f"`ray job logs --address http://127.0.0.1:8265 --follow {client.ids[0]}`"
    assert said.endswith("run.name=old resume=auto resumes the run" if own else f"{follows} shows it")


def test_a_request_to_stop_that_the_cluster_does_not_hear(submitted):
    client, screen = JobClient(job(JobStatus.SUCCEEDED, 0)), Screen(interrupt_at="a line")
    client.lost = 1
    assert submitted(client, screen=screen) == 0
    again = f"`ray job stop --address http://127.0.0.1:8265 {client.ids[0]}` asks again"
    assert f"· the job was not asked to stop: connection refused; {again}\n" in screen.shown
