"""The tutorials' commands, as they stand there, one page after the other in one working folder.

Files of the pages are blocks that begin with `# file: <path>`; commands are the blocks marked `sh`. A command that
trains or evaluates gets further arguments here, which make it short. The first page runs with the embedded model in the
place of one that would have to be downloaded.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import CONFIGS
from pipeline.data.documents.synthetic import synthetic_problem
from pipeline.data.rows import write_problem_file
from tests.support.examples import TUTORIALS, write_examples
from tests.support.faults import LIMIT_S, rows_of

COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# English words are unknown to it, so its questions have more tokens.
EMBEDDED = {
    "preset=smollm2": "preset=tiny agent.problem_tokens=24 agent.window=128 data.source=file "
    "validation.data.source=file train.evaluate_every=0",
    "preset=eval_smollm2": "preset=eval_tiny agent.problem_tokens=24 data.source=file",
    "agent.chunk_tokens=320 agent.memory_tokens=48": "agent.chunk_tokens=18 agent.memory_tokens=14",
}
SHORT = "train.groups_per_step=4 train.group_size=4 train.steps={steps} train.max_staleness=0 wandb.mode=disabled"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working folder with the files of all pages."""
    folder = tmp_path_factory.mktemp("tutorials")
    with pytest.MonkeyPatch.context() as patch:
        write_examples(folder, patch)
    (folder / "configs").symlink_to(CONFIGS)
    return folder


@pytest.fixture(scope="module")
def follow(folder):
    """Runs all commands of a page; returns what they printed.

    Arguments: the page; by job, what is added to each of its commands.
    """

    def follow(page: str, **more: str) -> str:
        blocks = COMMANDS.findall((TUTORIALS / f"{page}.md").read_text(encoding="utf-8"))
        assert blocks, f"{page} has no commands"
        printed = []
        for block in blocks:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", with_arguments(block, more)],
                cwd=folder,
                env=os.environ
                | {
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                    "PYTHONPATH": f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}",
                },
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
            printed.append(done.stdout)
        return "\n".join(printed)

    return follow


def with_arguments(block: str, more: dict[str, str]) -> str:
    """A block of commands, with `more` behind each command of a job."""
    for preset, embedded in EMBEDDED.items():
        block = block.replace(f"{preset} ", f"{embedded} ")
    lines = block.replace("\\\n", " ").splitlines()
    for number, line in enumerate(lines):
        job = re.match(r"python -m jobs\.(\w+) (?!--compare)", line)
        if job and "--dry-run" not in line:
            lines[number] = f"{line} {more[job[1]]}"
    return "\n".join(lines)


def answers_in(folder: Path) -> list[dict]:
    """The answers of all evaluations in a folder: of a run, before and after training."""
    files = folder.glob("**/results.jsonl")
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_own_questions_go_through_training_and_evaluation(follow, folder):
    short = SHORT.format(steps=3) + " train.checkpoint_every=3 train.episodes_every=1"
    printed = follow("own-questions", train=short, evaluate="wandb.mode=disabled generator.count=1", ask="--no-keep")
    assert "parameters" in printed and "validation after step 3" in printed
    assert "Found by text match" in printed or "No passage was found" in printed  # of the answer to a question
    rows = rows_of(folder / "runs" / "mine")
    assert [row["step"] for row in rows] == [1, 2, 3] and all(row["rows_quarantined"] == 0 for row in rows)
    answers = answers_in(folder / "runs" / "mine-answers")
    asked = {("h1", "memory"), ("h2", "memory"), ("h1", "closed_book"), ("h2", "closed_book")}
    assert {(answer["id"], answer["method"]) for answer in answers} == asked


def test_a_run_can_be_read(follow, folder):
    """The run of the page before."""
    printed = follow("reading-a-run", view="")
    assert '"logprob_mismatch_mean"' in printed and '"status": "completed"' in printed
    assert "step-000003.jsonl reward" in printed and "   memory '" in printed
    run = folder / "runs" / "mine"
    page = (TUTORIALS / "reading-a-run.md").read_text(encoding="utf-8")
    parts = re.findall(r"^## \d+\. (\S+[./]\S*)$", page, re.MULTILINE)
    assert len(parts) == 7 and all((run / part).exists() for part in parts)


def test_an_own_agent_is_trained_and_evaluated(follow, folder):
    """With the rewards for its gates of docs/extending.md: a gated memory, all from outside."""
    problems = [replace(synthetic_problem(3, i, chunks=3), task="gate") for i in range(8)]
    write_problem_file(problems, folder / "gate-problems.jsonl")
    gates = "data.source=file data.path=gate-problems.jsonl scorer.modules.gate=gate_rewards:gate "
    gates += "objective.advantage=gru_mem train.episodes_every=1 train.evaluate_every=0"
    evaluation = "preset=eval_tiny data.source=file data.path=gate-problems.jsonl generator.count=1 "
    evaluation += "evaluate.methods=[my_agent:GatedAgent] wandb.mode=disabled"
    short = f"{SHORT.format(steps=2)} {gates} {shlex.quote(f'train.evaluation={evaluation}')}"
    printed = follow("own-agent", train=short)
    assert '"role": "gate"' in printed and '"role": "answer"' in printed
    run = folder / "runs" / "own-agent"
    rows = rows_of(run)
    assert len(rows) == 2 and json.loads((run / "summary.json").read_text())["failures"] == {}
    for row in rows:
        assert row["tokens_trained"] > 0 and row["grad_norm"] > 0
        assert row["memory_tokens"] > 0 and row["memory_written"] is not None
        assert -1 <= row["turn_reward_gate"] <= 1 and row["turn_reward_answer"] == 0
        assert row["turn_reward"] == np.float32(row["turn_reward_gate"] * 3 / 4)  # three gates and an answer
    answers = answers_in(run / "evaluation")
    assert len(answers) == 2 * 8 and all(answer["error"] is None for answer in answers)
    assert all(answer["score"] == answer["exact_match"] for answer in answers)  # the reward that the scorer gives
    assert all(answer["memory_trace"]["tokens"][1] == 3 == len(answer["memories"]) for answer in answers)


def test_own_scorers_are_trained_on_and_validated_with(follow, folder):
    """With the advantage estimator and the objective of docs/extending.md, and rows that all reward conversations."""
    for name, seed in (("keeps-problems", 3), ("keeps-held-out", 4)):
        problems = [replace(synthetic_problem(seed, i, chunks=3), task="keeps") for i in range(8)]
        write_problem_file(problems, folder / f"{name}.jsonl")
    mine = "data.path=keeps-problems.jsonl objective.advantage=my_advantages:outcome_and_state "
    mine += "objective.loss=my_objective:cispo train.evaluate_every=1 validation.data.source=file "
    mine += "validation.data.path=keeps-held-out.jsonl"
    short = f"{SHORT.format(steps=2)} {mine} train.evaluation=none"
    follow("own-scorer", train=short)
    run = folder / "runs" / "own-scorer"
    rows = rows_of(run)
    assert len(rows) == 2 and json.loads((run / "summary.json").read_text())["failures"] == {}
    for row in rows:
        assert 0 < row["turn_reward_memory"] < 1 and row["turn_reward_answer"] == 0
        assert row["turn_reward"] == pytest.approx(row["turn_reward_memory"] * 3 / 4)  # three memories and an answer
        assert row["weight_max"] > 0 and row["clip_fraction"] is not None and "importance_mean" not in row
        assert row["tokens_trained"] > 0 and row["grad_norm"] > 0
    validations = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert [validations[0]["step"], validations[-1]["step"]] == [0, 2]
    assert validations[-1]["answers"] == 8 and not any(validation["errors"] for validation in validations)
