"""make train before and around its job: interrupts, what is shown, and which cluster is asked."""

import http.server
import io
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from rich.console import Console

import jobs.support.local_head
from jobs.submit import Interrupts, SubmissionError, whole_paths, whole_preset
from jobs.support.local_head import find_cluster, free_port, local_head
from jobs.support.progress import JobProgress
from jobs.support.ray_token import ClusterError, is_this_machine, require_token
from pipeline.run.config import load_training_config
from tests.support.screen import Screen

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def no_other_cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
        require_token()
        yield


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


def test_files_of_held_out_questions_are_given_by_their_whole_path(tmp_path):
    (tmp_path / "held-out.jsonl").touch()
    arguments = ["preset=tiny", "model.path=some/name", "validation.data.source=file"]
    arguments += ["validation.data.path=held-out.jsonl", "validation.data.passage_folders=[shared]"]
    given = whole_paths(load_training_config(arguments), tmp_path)
    data = load_training_config([*arguments, *given]).validation.data
    assert data.path == str(tmp_path / "held-out.jsonl") and data.passage_folders == [f"{tmp_path}/shared"]


def test_preset_files_are_given_by_their_whole_path(tmp_path):
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "link.yaml").symlink_to("elsewhere/mine.yaml")  # it names its base beside itself
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.yaml").touch()
    assert whole_preset("preset=mine.yaml", tmp_path) == f"preset={tmp_path / 'mine.yaml'}"
    assert whole_preset("preset=link.yaml", tmp_path) == f"preset={tmp_path / 'link.yaml'}"
    assert whole_preset("preset=tiny", tmp_path) == "preset=tiny"
    evaluation = "train.evaluation=preset=eval_tiny preset=./mine.yaml evaluate.methods=[memory]"
    arguments = ["preset=tiny", "model.path=some/name", evaluation]
    given = whole_paths(load_training_config(arguments), tmp_path)
    train = load_training_config([*arguments, *given]).train
    assert train.evaluation == f"preset=eval_tiny preset={tmp_path / 'mine.yaml'} evaluate.methods=[memory]"
    (tmp_path / "with blank").mkdir()
    (tmp_path / "with blank" / "mine.yaml").touch()
    with pytest.raises(SubmissionError, match=r"train\.evaluation: .* holds one; move the preset's file"):
        whole_paths(load_training_config(arguments), tmp_path / "with blank")


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
    assert done.stderr.startswith("configuration error:\n") and "did you mean 'train.steps'" in done.stderr
