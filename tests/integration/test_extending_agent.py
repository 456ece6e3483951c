"""The agent of docs/extending.md in a run and its evaluation."""

import json
import os
from pathlib import Path

from tests.support.examples import write_examples
from tests.support.faults import run_job

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_and_its_evaluation_use_the_agent_that_the_user_named(tmp_path, monkeypatch):
    examples = write_examples(tmp_path / "mine", monkeypatch)
    prompts = f"agent.prompt_template={examples / 'my_prompts.yaml'}"
    status, output = run_job(
        "jobs.train",
        *"preset=tiny train.groups_per_step=4 train.group_size=4 train.steps=2 train.max_staleness=0".split(),
        "train.evaluate_every=0",
        f"model.path={ROOT}/configs/models/tiny",
        *("train.method=my_agent:GatedAgent", prompts),
        *(f"run.folder={tmp_path}", "run.name=gated", "wandb.mode=disabled", "train.episodes_every=1"),
        "train.evaluation=preset=eval_tiny data.synthetic_count=4 data.synthetic_chunks=[3] generator.count=1 "
        f"evaluate.methods=[my_agent:GatedAgent] {prompts} wandb.mode=disabled",
        environment={"PYTHONPATH": f"{examples}{os.pathsep}{os.environ['PYTHONPATH']}"},
    )
    assert status == 0, output
    folder = tmp_path / "gated"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and json.loads((folder / "summary.json").read_text())["failures"] == {}
    for row in rows:
        assert row["tokens_trained"] > 0 and row["grad_norm"] > 0
        assert row["memory_tokens"] > 0 and row["memory_written"] is not None
    (episodes,) = sorted((folder / "episodes").glob("*.jsonl"))[-1:]
    episode = json.loads(episodes.read_text().splitlines()[0])
    assert {c["role"] for c in episode["conversations"]} == {"gate", "answer"}
    results = sorted(tmp_path.glob("**/results.jsonl"))
    answers = [json.loads(line) for path in results for line in path.read_text().splitlines()]
    assert answers and len(answers) == 4 * len(results) and all(answer["error"] is None for answer in answers)
    assert all(answer["memory_trace"]["tokens"][1] == 3 == len(answer["memories"]) for answer in answers)
