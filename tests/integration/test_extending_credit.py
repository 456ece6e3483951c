"""The examples of docs/extending.md in a run: rewards of conversations, an estimator and an objective from outside."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.documents.synthetic import synthetic_problem
from pipeline.data.rows import write_problem_file
from tests.support.examples import write_examples
from tests.support.faults import rows_of, run_job

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_and_its_evaluation_use_what_the_user_named(tmp_path, monkeypatch):
    examples = write_examples(tmp_path / "mine", monkeypatch)
    problems = tmp_path / "problems.jsonl"
    write_problem_file([replace(synthetic_problem(3, i, chunks=3), task="keeps") for i in range(8)], problems)
    held_out = tmp_path / "held-out.jsonl"
    write_problem_file([replace(synthetic_problem(4, i, chunks=3), task="keeps") for i in range(8)], held_out)
    status, output = run_job(
        "jobs.train",
        *"preset=tiny train.groups_per_step=4 train.group_size=4 train.steps=2 train.max_staleness=0".split(),
        f"model.path={ROOT}/configs/models/tiny",
        "data.source=file",
        f"data.path={problems}",
        "scorer.modules.keeps=my_rewards:keeps_the_answer",
        "objective.advantage=my_advantages:outcome_and_state",
        "objective.loss=my_objective:cispo",
        f"run.folder={tmp_path}",
        "run.name=mine-run",
        "wandb.mode=disabled",
        *("train.evaluate_every=1", "validation.data.source=file", f"validation.data.path={held_out}"),
        f"train.evaluation=preset=eval_tiny data.source=file data.path={problems} evaluate.methods=[memory] "
        "generator.count=1 wandb.mode=disabled",
        environment={"PYTHONPATH": f"{examples}{os.pathsep}{os.environ['PYTHONPATH']}"},
    )
    assert status == 0, output
    folder = tmp_path / "mine-run"
    rows = rows_of(folder)
    assert len(rows) == 2 and json.loads((folder / "summary.json").read_text())["failures"] == {}
    for row in rows:
        assert 0 < row["turn_reward_memory"] < 1 and row["turn_reward_answer"] == 0
        assert row["turn_reward"] == pytest.approx(row["turn_reward_memory"] * 3 / 4)  # three memories and an answer
        assert row["weight_max"] > 0 and row["clip_fraction"] is not None and "importance_mean" not in row
        assert row["tokens_trained"] > 0 and row["grad_norm"] > 0
    validations = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert [validations[0]["step"], validations[-1]["step"]] == [0, 2]
    assert validations[-1]["answers"] == 8 and not any(validation["errors"] for validation in validations)
    evaluated = [path for path in tmp_path.glob("**/results.jsonl")]
    answers = [json.loads(line) for path in evaluated for line in path.read_text().splitlines()]
    assert answers and all(answer["error"] is None for answer in answers)
    assert all(answer["score"] == answer["exact_match"] for answer in answers)
