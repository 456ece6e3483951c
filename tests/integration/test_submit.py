"""jobs/submit.py with real Ray heads, real submissions and a job that does not train."""

import http.server
import io
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from rich.console import Console

import jobs.support.local_head
from jobs.submit import Interrupts, SubmissionError, submit, submit_job, whole_paths
from jobs.support.local_head import find_cluster, free_port, local_head
from jobs.support.progress import JobProgress
from jobs.support.ray_token import ClusterError, is_this_machine, require_token
from pipeline.run.config import load_training_config

ROOT = Path(__file__).parents[2]
JOB = """
import json, os, signal, sys, time
from pathlib import Path
settings = dict(argument.split("=", 1) for argument in sys.argv[2:])
run = Path(settings["run.folder"], settings["run.name"])
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


class Screen(JobProgress):
    """Keeps what is shown; Ctrl-C comes with the line that begins with `interrupt_at`."""

    def __init__(self, interrupt_at: str | None = None):
        super().__init__(Console(file=io.StringIO()))
        self.interrupt_at = interrupt_at

    @property
    def shown(self) -> str:
        return self.console.file.getvalue()

    def line(self, line: str) -> None:
        super().line(line)
        if self.interrupt_at and line.startswith(self.interrupt_at):
            signal.raise_signal(signal.SIGINT)


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


def test_a_job_that_the_cluster_refuses_says_why(source, running_head):
    client = find_cluster(running_head)
    submit_job(client, "twice", ["true"], source)
    with pytest.raises(SubmissionError, match="did not accept the job(.|\n)*twice"):
        submit_job(client, "twice", ["true"], source)


def test_an_interrupt_before_there_is_a_job():
    with Interrupts(Screen()), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_an_interrupt_while_the_job_is_being_submitted():
    ended = []
    with Interrupts(Screen()) as interrupts:
        interrupts.raising = False
        signal.raise_signal(signal.SIGINT)
        assert not ended
        interrupts.to_end_job(lambda: ended.append(True))
    assert ended


def test_a_second_interrupt_gives_up_waiting():
    ended = []
    with Interrupts(Screen()) as interrupts:
        interrupts.raising = False
        interrupts.to_end_job(lambda: ended.append(True))
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert ended == [True]


def test_a_named_cluster_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{free_port(0)}")
    with pytest.raises(ClusterError, match="nothing listens"):
        find_cluster()


def test_another_program_on_the_port_is_no_cluster():
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert find_cluster(server.server_port) is None
    finally:
        server.shutdown()
        server.server_close()


def test_a_head_that_does_not_start_shows_its_log(tmp_path, monkeypatch, short_folder):
    ray = tmp_path / "ray"
    ray.write_text("#!/bin/sh\necho no memory left\nexit 3\n")
    ray.chmod(0o755)
    monkeypatch.setattr(jobs.support.local_head, "RAY", str(ray))
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    with pytest.raises(ClusterError, match="status 3(.|\n)*no memory left"), local_head(free_port(0)):
        pass


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("· starting 1 generator (vLLM)", True),
        ("step 12/40  reward 0.412  tokens/s 1830", True),
        ("ValueError: wrong", True),
        ("a line of the driver's", True),
        ("(Generator pid=12) what nobody knew", True),
        ("(raylet) a worker was killed", True),
        ("/a/b.py:12: FutureWarning: soon", True),
        ("2026-01-01 00:00:00,000\tINFO worker.py:1841 -- Connecting to existing Ray cluster", False),
        ("2026-01-01 00:00:00,000\tERROR worker.py:1841 -- no", True),
        ("Running entrypoint for job x: python", False),
    ],
)
def test_what_is_shown(line, shown):
    screen = Screen()
    screen.line(line + "\n")
    assert bool(screen.shown) == shown


def test_the_bar_follows_the_steps_on_a_terminal_only():
    line = "step 12/40  reward 0.412  tokens/s 1830"
    terminal = JobProgress(Console(file=io.StringIO(), force_terminal=True, width=100))
    with terminal:
        terminal.line(line)
    assert "12/40" in terminal.console.file.getvalue().replace(line, "")
    plain = Screen()
    with plain:
        plain.line(line)
    assert plain.shown == line + "\n"


def test_files_are_given_by_their_whole_path(tmp_path):
    (tmp_path / "questions.json").touch()
    config = load_training_config(["preset=tiny", "model.path=some/name", "data.path=questions.json"])
    assert whole_paths(config, tmp_path) == [f"data.path={tmp_path / 'questions.json'}"]
    (tmp_path / "mine.yaml").touch()
    config = load_training_config(["preset=tiny", "model.path=some/name", "agent.prompt_template=mine.yaml"])
    assert whole_paths(config, tmp_path) == [f"agent.prompt_template={tmp_path / 'mine.yaml'}"]
    arguments = ["preset=tiny", "model.path=some/name", "data.passage_folders=[shared, s3://bucket/x]"]
    (folders,) = whole_paths(load_training_config(arguments), tmp_path)
    assert load_training_config(["preset=tiny", folders]).data.passage_folders == [
        f"{tmp_path}/shared",
        "s3://bucket/x",
    ]


def test_which_clusters_are_on_this_machine():
    assert is_this_machine("127.0.0.1")
    assert is_this_machine("localhost")
    assert not is_this_machine("198.51.100.1")


def test_a_wrong_setting_ends_before_anything_starts():
    done = subprocess.run(
        [sys.executable, "-m", "jobs.submit", "preset=tiny", "train.step=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "did you mean 'train.steps'" in done.stderr
