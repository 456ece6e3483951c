"""The run folder before its job is at work, what a signal leaves in it, and how a command ends."""

import json
import os
import runpy
import signal
import sys
from pathlib import Path

import pytest

from jobs.support.driver import then_stop_ray
from jobs.support.run_evaluation import evaluation_of, is_evaluated
from jobs.support.run_folder import RunFolder, check_unused, leave_interrupted, leave_summary
from jobs.support.stop_signals import StopSignals
from pipeline.config import CONFIGS
from pipeline.errors import ConfigError
from pipeline.lease import LEASE, RUN_ID, take_lease
from pipeline.run.config import load_training_config
from pipeline.run.history import RunTotals
from pipeline.run.report import run_summary
from tests.support.disks import full_disk


@pytest.fixture
def config():
    return load_training_config(["preset=tiny", "run.name=mine"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_right_after_the_run_folder_is_made_leaves_a_summary(tmp_path, config, number):
    folder = tmp_path / "runs" / "mine"
    with StopSignals() as signals, RunFolder(folder, signals):
        signals.add(lambda: leave_interrupted(folder, run_summary(config, "interrupted", RunTotals())))
        os.kill(os.getpid(), number)
        assert signals.asked
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted" and summary["steps"] == 0 and summary["error"] is None
    assert not (folder / LEASE).exists()


def test_the_numbers_of_an_earlier_life_stay(tmp_path, config):
    before = run_summary(config, "failed", RunTotals(tokens_generated=7), error="broken", seconds=3.0)
    leave_summary(tmp_path, before)
    leave_interrupted(tmp_path, run_summary(config, "interrupted", RunTotals()))
    after = json.loads((tmp_path / "summary.json").read_text())
    assert after == before | {"status": "interrupted", "error": None}


def test_what_answers_a_signal_before_the_job_is_at_work_and_after():
    called, before = [], signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        signals.add(lambda: called.append("summary"))
        os.kill(os.getpid(), signal.SIGTERM)
        signals.add(lambda: called.append("stop"))  # the job is there by now
        assert called == ["summary", "stop"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
    with StopSignals() as signals:
        signals.add(lambda: called.append("summary"))
        signals.only(lambda: called.append("only stop"))
        os.kill(os.getpid(), signal.SIGTERM)
    assert called == ["summary", "stop", "only stop"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_folder_that_cannot_be_made_or_written_is_a_configuration_error(tmp_path, config, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="run folder .*/file/mine cannot be used: .*Not a directory"):
        with StopSignals() as signals, RunFolder(tmp_path / "file" / "mine", signals):
            pass
    full = full_disk(monkeypatch)
    full(0)
    with pytest.raises(ConfigError, match="cannot be used: .*No space left"):
        with StopSignals() as signals, RunFolder(tmp_path / "mine", signals):
            pass
    full(None)
    with StopSignals() as signals, RunFolder(tmp_path / "mine", signals) as place:
        place.save_config(config)
    assert (tmp_path / "mine" / "config.yaml").exists()


def test_a_summary_that_cannot_be_written_is_printed(tmp_path, config, monkeypatch, capsys):
    full_disk(monkeypatch)(0)
    leave_summary(tmp_path, run_summary(config, "failed", RunTotals(), error="why"))
    line = capsys.readouterr().out
    assert "summary.json could not be written" in line and "No space left" in line
    assert json.loads(line.partition("it is: ")[2])["error"] == "why"


def test_a_run_at_work_keeps_its_folder_and_a_dead_ones_is_taken_over(tmp_path, monkeypatch, capsys):
    from pipeline import lease as module

    monkeypatch.setattr(module, "BEAT_S", 0.1)
    with StopSignals() as signals, RunFolder(tmp_path, signals):
        with pytest.raises(ConfigError, match="is in use by run"):
            with RunFolder(tmp_path, signals):
                pass
    monkeypatch.setattr(module, "STALE_S", 0.3)
    monkeypatch.setattr(module, "SETTLE_S", 0.01)
    take_lease(tmp_path)  # and no heartbeat
    with StopSignals() as signals, RunFolder(tmp_path, signals):
        assert "took over the run folder" in capsys.readouterr().out


def test_a_folder_with_a_run_in_it_is_not_begun_in_again(tmp_path, config):
    check_unused(config, tmp_path / "none")
    (tmp_path / LEASE).touch()
    (tmp_path / RUN_ID).touch()
    check_unused(config, tmp_path)  # a run that never began
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match="not empty; choose another run.name, or resume that run with resume=auto"):
        check_unused(config, tmp_path)
    config.resume = "auto"
    check_unused(config, tmp_path)


def test_a_run_is_evaluated_with_its_own_prompts_and_scorers(tmp_path):
    """Whatever the presets say; what `train.evaluation` itself names wins."""
    template = tmp_path / "mine.yaml"
    template.write_bytes((CONFIGS / "prompts/tiny.yaml").read_bytes())
    arguments = ["preset=tiny", f"agent.prompt_template={template}", "scorer.modules.mine=a:b"]
    config = load_training_config(arguments)
    evaluation = evaluation_of(config, "model")
    assert evaluation.agent.prompt_template == str(template) and evaluation.scorer.modules == {"mine": "a:b"}
    assert evaluation.agent.window == 256  # of preset=eval_tiny
    named = "preset=eval_tiny agent.prompt_template=memagent scorer.modules.mine=c:d scorer.modules.other=e:f"
    evaluation = evaluation_of(load_training_config([*arguments, f"train.evaluation={named}"]), "model")
    assert evaluation.agent.prompt_template == "memagent"
    assert evaluation.scorer.modules == {"mine": "c:d", "other": "e:f"}


@pytest.mark.parametrize("value", ["none", "None", " none ", ""])
def test_an_evaluation_can_be_switched_off(value):
    assert is_evaluated(load_training_config(["preset=tiny"]))
    assert not is_evaluated(load_training_config(["preset=tiny", f"train.evaluation='{value}'"]))
    assert not is_evaluated(load_training_config(["preset=tiny", "train.evaluation=none"]))


def test_a_lines_file_of_a_job_is_not_in_its_way(tmp_path, monkeypatch):
    """jobs.submit shows the job though its log cannot be written."""
    from pipeline.storage import LineFile

    log = LineFile(Path(tmp_path / "runs" / "job.log"))
    full_disk(monkeypatch)(0)
    for number in range(3):
        log.put(f"line {number}")
    assert "No space left" in log.write() and log.unwritten == 3


def test_a_run_is_evaluated_with_its_own_method_and_lengths():
    arguments = ["preset=tiny", "train.method=my:Agent", "agent.chunk_tokens=30", "agent.window=300"]
    evaluation = evaluation_of(load_training_config(arguments), "model")
    assert evaluation.evaluate.methods == ["my:Agent"]
    assert (evaluation.agent.chunk_tokens, evaluation.agent.window) == (30, 300)
    named = "preset=eval_tiny evaluate.methods=[memory,direct] agent.chunk_tokens=18 agent.window=64"
    evaluation = evaluation_of(load_training_config([*arguments, f"train.evaluation={named}"]), "model")
    assert evaluation.evaluate.methods == ["memory", "direct"]
    assert (evaluation.agent.chunk_tokens, evaluation.agent.window) == (18, 64)


@pytest.mark.parametrize("job", ["evaluate", "fine_tune", "prepare", "train"])
def test_a_command_leaves_the_cluster_when_it_ends(job, monkeypatch):
    import ray

    left = []
    monkeypatch.setattr(ray, "is_initialized", lambda: not left)
    monkeypatch.setattr(ray, "shutdown", lambda: left.append(job))
    monkeypatch.delitem(sys.modules, f"jobs.{job}", raising=False)
    monkeypatch.setattr(sys, "argv", [job, "no such argument"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"jobs.{job}", run_name="__main__")
    assert ended.value.code == 2 and left == [job]


def test_a_command_that_fails_leaves_the_cluster_and_keeps_its_error(monkeypatch):
    import ray

    left = []
    monkeypatch.setattr(ray, "is_initialized", lambda: not left)
    monkeypatch.setattr(ray, "shutdown", lambda: left.append("left"))
    with pytest.raises(ZeroDivisionError):
        then_stop_ray(lambda arguments: 1 // len(arguments), [])
    assert left == ["left"]
    assert then_stop_ray(len, ["a", "b"]) == 2 and left == ["left"]  # there is no cluster to leave
