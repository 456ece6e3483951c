"""jobs/submit.py with real Ray heads, real submissions and a job that does not train."""

import json
import shutil
from pathlib import Path

import pytest

from jobs.submit import SubmissionError, submit, submit_job
from jobs.support.local_head import find_cluster, free_port, local_head
from jobs.support.ray_token import require_token
from tests.support.screen import Screen

ROOT = Path(__file__).parents[2]
JOB = """
import json, os, signal, sys, time
from pathlib import Path
settings = dict(argument.split("=", 1) for argument in sys.argv[2:])
run = Path(settings["run.folder"], settings["run.name"])
if sys.argv[1] == "refuse":
    sys.exit(2)
run.mkdir()
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
print("· files:", *sorted(os.listdir()))
if sys.argv[1] == "fail":
    raise ValueError("no such document")
print("2026-01-01 00:00:00,000\\tINFO worker.py:1 -- connected")
for step in (1, 2):
    print(f"step {step}/2  reward {step / 2:.3f}  tokens/s 100", flush=True)
    while sys.argv[1] != "complete" and not stopped:
        time.sleep(0.1)
if sys.argv[1] == "save":
    time.sleep(4)  # longer than Ray waits by itself
status = "interrupted" if stopped else "completed"
(run / "summary.json").write_text(json.dumps({"status": status, "steps": 2, "seconds": 1, "checkpoint": "there"}))
sys.exit(130 if stopped else 0)
"""


@pytest.fixture(scope="module", autouse=True)
def no_other_cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
        require_token()
        yield


@pytest.fixture(scope="module")
def running_head(no_other_cluster):
    """The dashboard port of a cluster that somebody else started."""
    port = free_port(0)
    with local_head(port, num_cpus=1):
        yield port


@pytest.fixture
def source(tmp_path):
    """A checkout with a job in it."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "job.py").write_text(JOB)
    shutil.copy(ROOT / ".gitignore", folder)
    for heavy in (".git", ".venv", "runs", "models", "wandb"):
        (folder / heavy).mkdir()
        (folder / heavy / "large").write_text("x")
    return folder


def run_job(source: Path, port: int, how: str, screen: Screen, *arguments: str) -> int:
    return submit(["preset=tiny", *arguments], ("python", "job.py", how), source, port, screen)


def test_a_head_is_started_and_stopped_when_none_runs(source, capsys):
    port = free_port(0)
    screen = Screen()
    assert run_job(source, port, "complete", screen, "run.name=first") == 0
    assert "· starting a local Ray head" in screen.shown
    assert find_cluster(port) is None
    printed = capsys.readouterr()
    assert "completed: 2 steps" in printed.out and printed.err == ""
    assert (source / "runs/first/job.log").exists()


def test_a_running_head_is_used_and_left_alone(source, running_head, capsys):
    screen = Screen()
    assert run_job(source, running_head, "complete", screen, "run.name=second") == 0
    assert "starting a local Ray head" not in screen.shown
    assert find_cluster(running_head) is not None
    assert "checkpoint  there" in capsys.readouterr().out
    # Only the source is uploaded.
    assert "· files: .gitignore job.py\n" in screen.shown
    # The log is kept whole; the screen has what matters of it.
    log = (source / "runs/second/job.log").read_text()
    assert "worker.py:1 -- connected" in log and "step 2/2" in log
    assert "worker.py" not in screen.shown and "step 2/2  reward 1.000" in screen.shown


def test_ctrl_c_lets_the_job_save(source, running_head):
    screen = Screen("step 1")
    assert run_job(source, running_head, "save", screen, "run.name=stopped") == 130
    assert "· stopping: saving the trained state" in screen.shown
    assert json.loads((source / "runs/stopped/summary.json").read_text())["status"] == "interrupted"


def test_a_job_that_fails(source, running_head, capsys):
    screen = Screen()
    assert run_job(source, running_head, "fail", screen) == 1
    assert "ValueError: no such document" in screen.shown
    assert "failed, without a summary" in capsys.readouterr().out


def test_a_job_that_refuses_its_configuration_leaves_the_earlier_run_alone(source, running_head, capsys):
    assert run_job(source, running_head, "complete", Screen(), "run.name=third") == 0
    log = (source / "runs/third/job.log").read_text()
    capsys.readouterr()
    assert run_job(source, running_head, "refuse", Screen(), "run.name=third") == 2
    assert "failed, without a summary" in capsys.readouterr().out
    assert (source / "runs/third/job.log").read_text() == log


def test_a_job_that_the_cluster_refuses_says_why(source, running_head):
    client = find_cluster(running_head)
    submit_job(client, "twice", ["true"], source)
    with pytest.raises(SubmissionError, match="did not accept the job(.|\n)*twice"):
        submit_job(client, "twice", ["true"], source)
