"""The steps of the figures: every one with arguments that its job takes, and their end by a signal."""

import subprocess
import sys
import time

import pytest

from jobs.figures.recipe import (
    FiguresConfig,
    all_steps,
)
from jobs.support.steps import Step
from pipeline.config import load_config
from pipeline.evaluation.config import EvaluationConfig, check_evaluation
from pipeline.fine_tuning.config import FineTuningConfig, check_fine_tuning
from pipeline.run.config import load_training_config

CONFIG = FiguresConfig(seeds=[0, 1], chunks=[8, 2048])
SCHEMAS = {"jobs.fine_tune": FineTuningConfig, "jobs.evaluate": EvaluationConfig}


def test_every_step_is_run_once_and_its_arguments_are_sound():
    steps = all_steps(CONFIG)
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        inputs = ["model.path=somewhere"] if step.model else []
        inputs += ["data.path=successes.jsonl"] if step.data else []
        arguments = [*step.arguments, *inputs, f"run.name={step.name}"]
        if step.job == "jobs.train":
            assert load_training_config(arguments).train.evaluation == "none"
        else:
            config = load_config(arguments, SCHEMAS[step.job])
            (check_evaluation if step.job == "jobs.evaluate" else check_fine_tuning)(config)


@pytest.mark.parametrize("at_once", [1, 2])
def test_sigterm_ends_the_steps_under_way_too(tmp_path, at_once):
    steps = [Step(f"endless-{n}", "tests.support.endless_job", ()) for n in range(3)]
    command = (
        "from pathlib import Path; from jobs.support.steps import JobProgress, Step, run_steps; "
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
