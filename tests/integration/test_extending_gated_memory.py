"""The gated memory of docs/extending.md, all from outside: agent, prompts, preset, and a reward for each turn."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.data.documents.synthetic import synthetic_problem
from pipeline.data.rows import write_problem_file
from tests.support.examples import write_examples
from tests.support.faults import run_job

ROOT = Path(__file__).resolve().parents[2]


def test_a_gated_memory_is_trained_on_a_reward_for_each_turn(tmp_path, monkeypatch):
    examples = write_examples(tmp_path / "mine", monkeypatch)
    problems = [replace(synthetic_problem(3, i, chunks=3), task="gate") for i in range(8)]
    write_problem_file(problems, tmp_path / "problems.jsonl")
    status, output = run_job(
        "jobs.train",
        f"preset={examples / 'gated_memory.yaml'}",
        f"agent.prompt_template={examples / 'my_prompts.yaml'}",
        f"model.path={ROOT}/configs/models/tiny",
        *("data.source=file", f"data.path={tmp_path / 'problems.jsonl'}"),
        *"train.groups_per_step=4 train.group_size=4 train.steps=2 train.max_staleness=0".split(),
        *("train.evaluation=none", "train.evaluate_every=0", "train.episodes_every=1", "train.episodes_shown=4"),
        *(f"run.folder={tmp_path}", "run.name=gated", "wandb.mode=disabled"),
        environment={"PYTHONPATH": f"{examples}{os.pathsep}{os.environ['PYTHONPATH']}"},
    )
    assert status == 0, output
    folder = tmp_path / "gated"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and json.loads((folder / "summary.json").read_text())["failures"] == {}
    for row in rows:
        assert -1 <= row["turn_reward_gate"] <= 1 and row["turn_reward_answer"] == 0
        assert row["turn_reward"] == np.float32(row["turn_reward_gate"] * 3 / 4)  # three gates and an answer
        assert row["tokens_trained"] > 0 and row["grad_norm"] > 0
