"""Jobs made of steps: their order, their folders, what is done, and their end by a signal."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from jobs.support.progress import JobProgress
from jobs.support.steps import (
    Children,
    Step,
    check_steps,
    checkpoint_of,
    is_done,
    record_arguments,
    run_step,
    run_steps,
)
from pipeline.errors import ConfigError
from pipeline.lease import Heartbeat, take_lease


def test_what_is_done_is_known_by_its_summary(tmp_path):
    step = Step("rl-0", "jobs.train", ())
    assert not is_done(step, tmp_path)
    (tmp_path / step.name).mkdir()
    with pytest.raises(ConfigError, match="left no checkpoint"):
        checkpoint_of(step.name, tmp_path)
    for status in ("interrupted", "completed"):
        summary = {"status": status, "checkpoint": "/runs/rl-0/checkpoints/100"}
        (tmp_path / step.name / "summary.json").write_text(json.dumps(summary))
        assert is_done(step, tmp_path) == (status == "completed")
    assert checkpoint_of(step.name, tmp_path) == "/runs/rl-0/checkpoints/100/hf"


# A job that waits until all whom it is told to meet are there, and fails if another one, whom it has to follow, is not.
MEETING = """
import sys, time
from pathlib import Path

name, meets, follows = (argument.split("=")[1] for argument in sys.argv[1:4])
folder = Path(sys.argv[-2].split("=")[1])
assert not follows or (folder / f"{follows}.ended").exists()
(folder / f"{name}.begun").touch()
deadline = time.monotonic() + 60
while not all((folder / f"{other}.begun").exists() for other in meets.split(",") if other):
    assert time.monotonic() < deadline
    time.sleep(0.05)
(folder / name).mkdir()
(folder / name / "summary.json").write_text('{"status": "completed", "checkpoint": "somewhere"}')
(folder / f"{name}.ended").touch()
"""


def meeting(name: str, meets: str = "", follows: str = "", how: str = "model") -> Step:
    arguments = (f"name={name}", f"meets={meets}", f"follows={follows}")
    return Step(name, "meeting", arguments, **{how: follows})


def test_steps_run_at_once_but_after_what_they_need(tmp_path, monkeypatch, capsys):
    (tmp_path / "meeting.py").write_text(MEETING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    steps = [
        meeting("a", meets="b"),
        meeting("c", meets="d", follows="a"),
        meeting("d", meets="c", follows="a", how="data"),
        meeting("b", meets="a"),
    ]
    assert run_steps(steps, tmp_path, 2, JobProgress()) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["· step 1 of 4: a", "· step 4 of 4: b"]
    assert sum(" took " in line for line in said) == 4


def test_after_a_step_that_failed_none_begins(tmp_path, monkeypatch, capsys):
    (tmp_path / "meeting.py").write_text(MEETING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "bad").write_text("where its run folder should be")
    assert run_steps([meeting("bad"), meeting("good")], tmp_path, 1, JobProgress()) == 1
    assert "bad ended with status 1; its log is" in capsys.readouterr().out
    assert "FileExistsError" in (tmp_path / "bad.log").read_text()
    assert not (tmp_path / "good.log").exists()


@pytest.fixture
def quick(monkeypatch):
    from pipeline import lease as module

    monkeypatch.setattr(module, "BEAT_S", 0.1)
    monkeypatch.setattr(module, "SETTLE_S", 0.01)


def test_a_step_whose_run_is_at_work_leaves_its_folder_alone_and_fails(tmp_path, quick):
    run = tmp_path / "rl-0"
    lease = take_lease(run)
    (run / "metrics.jsonl").write_text("a row")
    beating = Heartbeat(lease)
    assert run_step(Step("rl-0", "no_such_module", ()), tmp_path, Children(), None)[0] == 2
    beating.end()
    lease.keep()
    assert (run / "metrics.jsonl").read_text() == "a row"
    log = (tmp_path / "rl-0.log").read_text()
    assert f"is in use by run {lease.run}" in log and "no_such_module" not in log


def test_a_training_run_that_was_stopped_starts_over_as_another_run(tmp_path, monkeypatch, quick):
    (tmp_path / "lists.py").write_text(
        "import os, sys; print(os.listdir(f\"{sys.argv[1].split('=')[1]}/{sys.argv[2].split('=')[1]}\"))"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lease = take_lease(tmp_path / "rl-0")
    (lease.path.parent / "checkpoints").mkdir()
    (lease.path.parent / "metrics.jsonl").touch()
    lease.release()
    assert run_step(Step("rl-0", "lists", ()), tmp_path, Children(), None)[0] == 0
    assert (tmp_path / "rl-0.log").read_text() == "[]\n"


LISTS = """
import os, sys

print(sys.argv[1:], os.listdir(sys.argv[2].partition("=")[2]))
"""


def test_what_resumes_finds_what_an_interrupted_job_left(tmp_path, monkeypatch):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").touch()
    (tmp_path / "jobs" / "prepare.py").write_text(LISTS)
    monkeypatch.chdir(tmp_path)  # `python -m` looks there first
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "left.jsonl").touch()
    assert run_step(Step("samples", "jobs.prepare", ("facts",)), tmp_path, Children(), None)[0] == 0
    assert (tmp_path / "samples.log").read_text() == f"['facts', 'output={tmp_path}/samples'] ['left.jsonl']\n"


def test_a_training_run_that_resumes_keeps_its_folder(tmp_path, monkeypatch):
    (tmp_path / "lists.py").write_text("import os, sys; print(os.listdir(f\"{sys.argv[2].split('=')[1]}/rl\"))")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "metrics.jsonl").touch()
    assert run_step(Step("rl", "lists", ("resume=auto",)), tmp_path, Children(), None)[0] == 0
    assert (tmp_path / "rl.log").read_text() == "['metrics.jsonl']\n"


def test_a_step_that_began_with_other_arguments_is_named(tmp_path):
    step = Step("samples", "no_such_module", ("facts", "count=48"))
    check_steps([step], tmp_path)
    assert run_step(step, tmp_path, Children(), None)[0] == 1
    other = Step("samples", "no_such_module", ("facts", "count=16"))
    check_steps([other], tmp_path)  # the step made nothing
    (tmp_path / "samples").mkdir()
    check_steps([step], tmp_path)
    with pytest.raises(ConfigError, match="choose another folder:\n  .*/samples: now count=16, no longer count=48"):
        check_steps([other], tmp_path)
    with pytest.raises(ConfigError, match="samples: now model of start"):
        check_steps([replace(step, model="start")], tmp_path)


def test_a_step_that_was_made_from_another_model_is_named(tmp_path):
    start, rl = Step("start", "jobs.fine_tune", ()), Step("rl", "jobs.train", (), model="start")
    for step in (start, rl):
        (tmp_path / step.name).mkdir()
        record_arguments(step, tmp_path)
        (tmp_path / step.name / "summary.json").write_text('{"status": "completed"}')
    check_steps([start, rl], tmp_path)
    (tmp_path / "start" / "summary.json").unlink()
    with pytest.raises(ConfigError, match="rl: was made from another start"):
        check_steps([start, rl], tmp_path)


@pytest.mark.parametrize("name", ["a #1", "a: b", "a:", "${a}"])
def test_a_path_that_is_no_plain_value_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="choose a path without"):
        check_steps([], tmp_path / name)
    with pytest.raises(ConfigError, match="choose a path without"):
        check_steps([Step("samples", "job", (f"path={tmp_path / name}",))], tmp_path)


@pytest.mark.parametrize("summary", ["{}", "[]", "3", '{"status": null}'])
def test_a_summary_without_a_status_is_not_done(tmp_path, summary):
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "summary.json").write_text(summary)
    assert not is_done(Step("rl", "jobs.train", ()), tmp_path)
    with pytest.raises(ConfigError, match="left no checkpoint"):
        checkpoint_of("rl", tmp_path)


@pytest.mark.parametrize("at_once", [1, 2])
def test_sigterm_ends_the_steps_under_way_too(tmp_path, at_once):
    steps = [Step(f"endless-{n}", "tests.support.endless_job", ()) for n in range(3)]
    command = (
        "from pathlib import Path; from jobs.support.progress import JobProgress; "
        "from jobs.support.steps import Step, run_steps; "
        f"run_steps({steps!r}, Path({str(tmp_path)!r}), {at_once}, JobProgress())"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    logs = [tmp_path / f"{step.name}.log" for step in steps]
    deadline = time.monotonic() + 60
    while not all(log.exists() and log.read_text() for log in logs[:at_once]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.terminate()
    output, _ = running.communicate(timeout=60)
    assert running.returncode != 0 and "KeyboardInterrupt" in output
    assert ("· running" in output) == (at_once == 1)  # the lines of several steps are not mixed
    assert all(log.read_text().splitlines() == ["· running", "· stopping"] for log in logs[:at_once])
    assert not any(log.exists() for log in logs[at_once:])
