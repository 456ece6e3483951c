"""The whole system by its own command: problems to checkpoint, through Ray, vLLM and ZeRO-3, on a random tiny model."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.documents.synthetic import synthetic_problem
from pipeline.data.rows import write_problem_file
from pipeline.end_tokens import named_end_tokens
from pipeline.run.checkpoints import Checkpoints
from tests.support.bad_scorers import ARGUMENTS
from tests.support.faults import rows_of, run_job

SMALL = (
    "preset=tiny train.groups_per_step=4 train.group_size=4 train.checkpoint_every=2 generator.max_sequences=64 "
    "train.episodes_every=1 generator.timeout_s=600 train.evaluation=none train.evaluate_every=0"
).split()


@pytest.fixture(scope="module")
def run(shared_ray):
    """Runs a training job to its end; returns its exit status and what it printed."""
    return lambda *arguments: run_job("jobs.train", *SMALL, *ARGUMENTS, *arguments, environment=shared_ray)


@pytest.fixture(scope="module")
def problem_file(tmp_path_factory) -> Path:
    """Fourteen good problems, fewer than a run trains, five rows that cannot be used, and one whose scorer raises."""
    path = tmp_path_factory.mktemp("data") / "problems.jsonl"
    good = [synthetic_problem(seed=3, index=i, chunks=3) for i in range(14)]
    write_problem_file(good, path)
    rows = [dict(json.loads(line), task="counts_letters") for line in path.read_text().splitlines()]
    rows[0]["document"] += " <memory> <eos> [INST] Rex Paris ."  # special-token text: data like any other
    bad = [
        {"id": "no answer", "question": "city Rex", "document": "Rex Paris ."},
        {"id": "empty answer", "question": "city Rex", "answers": [""], "document": "Rex Paris ."},
        {"id": "empty document", "question": "city Rex", "answers": ["Paris"], "document": "  "},
        {
            "id": "long question",
            "question": "city pet Sam pet pet pet",
            "answers": ["Paris"],
            "document": "Rex Paris .",
        },
        {
            "id": "scorer raises",
            **{k: rows[1][k] for k in ("question", "answers", "document")},
            "task": "raises",
        },
    ]
    lines = [json.dumps(row) for row in [rows[0], *bad, *rows[1:]]]
    path.write_text("\n".join([*lines[:3], "{not json", *lines[3:]]) + "\n")
    return path


@pytest.fixture(scope="module")
def ending_model(random_model, tmp_path_factory) -> Path:
    """The random model with twenty words as further end tokens: nearly all of its answers were cut, and so wrong."""
    folder = tmp_path_factory.mktemp("models") / "ending"
    shutil.copytree(random_model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, *range(30, 50)]}))
    return folder


@pytest.fixture(scope="module")
def finished(run, problem_file, ending_model, tmp_path_factory) -> tuple[Path, dict, str]:
    runs = tmp_path_factory.mktemp("runs")
    status, output = run(
        f"model.path={ending_model}",
        f"run.folder={runs}",
        "run.name=finished",
        "train.steps=4",
        "data.source=file",
        f"data.path={problem_file}",
        "data.max_bad_share=0.9",
        *("train.evaluate_every=2", "validation.data.synthetic_chunks=[3,6]", "validation.data.synthetic_count=3"),
        "train.evaluation=preset=eval_tiny data.synthetic_chunks=[3] data.synthetic_count=5 evaluate.methods=[memory] "
        "generator.count=1",
    )
    assert status == 0, output
    folder = runs / "finished"
    return folder, json.loads((folder / "summary.json").read_text()), output


def test_the_run_ends_with_an_evaluation_of_the_model_before_and_after(finished):
    folder, summary, output = finished
    evaluation, names = folder / "evaluation", ("before-RL", "after-RL-4")
    for name in names:
        rows = [json.loads(line) for line in (evaluation / name / "results.jsonl").read_text().splitlines()]
        assert len(rows) == 5 and not any(row["error"] for row in rows)
        assert {row["document_tokens"] for row in rows} == {3 * 18}
    models = [json.loads((evaluation / name / "summary.json").read_text())["model"] for name in names]
    assert models[1] == summary["checkpoint"] + "/hf" != models[0]
    assert named_end_tokens(models[1]) == named_end_tokens(models[0]) == {1, *range(30, 50)}
    assert (evaluation / "accuracy.png").stat().st_size > 0
    table = (evaluation / "accuracy.md").read_text()
    assert "after RL" in table and "before RL" in table and table in output


def test_the_run_completes_and_says_what_it_was(finished):
    _, summary, _ = finished
    expected = {
        "status": "completed",
        "steps": 4,
        "weight_version": 4,
        "engine": "vllm",
        "zero_stage": 3,
        "learner_ranks": 2,
        "generators": 1,
        "scorers": 1,
        "episodes": 4 * 4 * 4,
        "groups_dropped_stale": 0,
        "error": None,
    }
    assert {key: summary[key] for key in expected} == expected
    assert summary["engine_version"].startswith("0.32")
    # The special-token text makes one document a chunk longer; the second pass may have it again.
    assert summary["conversations"] in (4 * 4 * 4 * 4 + 4, 4 * 4 * 4 * 4 + 8)
    assert summary["seconds"] > 0 and summary["tokens_generated"] >= summary["tokens_trained"] > 0


def test_staleness_keeps_its_bound_and_the_engine_agrees_with_the_learner(finished):
    folder, summary, _ = finished
    rows = rows_of(folder)
    assert [row["version"] for row in rows] == [1, 2, 3, 4]
    assert summary["staleness_max"] == max(row["staleness_max"] for row in rows) <= 1
    assert 0 <= summary["logprob_mismatch_mean"] <= 1e-4
    assert any(row["grad_norm"] > 0 for row in rows)
    assert all(row["cut_answer_fraction"] < 0.5 for row in rows)  # any of the model's end tokens ends an answer


def test_held_out_questions_are_answered_by_the_versions_on_record_before_and_after_training(finished):
    folder, summary, output = finished
    first, *_, last = rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert first["step"] == 0 and last["step"] == last["version_min"] == last["version_max"] == 4
    for row in rows:
        assert row["answers"] == 6 and not row["errors"]
        assert [(cell["length"], cell["questions"]) for cell in row["cells"]] == [(54, 3), (108, 3)]
        assert row["step"] <= row["version"] <= row["version_min"] <= row["version_max"] <= 4
        answers = (folder / f"validation/step-{row['step']:06d}/results.jsonl").read_text().splitlines()
        versions = [json.loads(answer)["versions"] for answer in answers]
        assert row["version_min"] == min(versions)[0] and row["version_max"] == max(new for _, new in versions)
        assert f"· validation after step {row['step']}: score {row['score']:.3f}" in output
    assert (summary["validation_score_first"], summary["validation_score_last"]) == (first["score"], last["score"])
    assert any(row["validation_share"] > 0 for row in rows_of(folder))


def test_a_row_tells_what_the_memories_did(finished):
    folder, _, _ = finished
    rows = rows_of(folder)
    # The random model writes random words: hardly a fact that is needed.
    assert all(0 < row["memory_tokens"] <= 16 for row in rows)
    assert all(row["memory_written"] < 0.2 and row["memory_junk"] > 0.8 for row in rows)


def test_bad_rows_are_quarantined_and_a_bad_scorer_costs_its_groups_only(finished):
    folder, summary, output = finished
    quarantined = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    reasons = {row["id"]: row["reason"] for row in quarantined}
    assert len(quarantined) == summary["rows_quarantined"] == 6
    assert "'answers'" in reasons["problems.jsonl:2"] and "not JSON" in reasons["problems.jsonl:4"]
    assert "agent.problem_tokens" in reasons["long question"]
    assert "always raises" in reasons["scorer raises"]
    assert list(summary["failures"]) == ["RayTaskError(ZeroDivisionError)"]
    assert summary["groups_failed"] in (3, 4)  # three attempts; in the second pass it gets no more than one
    assert "always raises" in output


def test_one_line_a_step_and_nothing_that_only_a_library_understands(finished):
    _, _, output = finished
    forwarded = [line for line in output.splitlines() if "pid=" in line]  # by Ray, of the workers
    assert not forwarded, "\n".join(forwarded)
    steps = [line for line in output.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/4", "2/4", "3/4", "4/4"]
    assert all(word in steps[0] for word in ("reward", "tokens/s", "staleness", "version"))


def test_the_checkpoints_load_in_plain_transformers_and_hold_new_weights(finished, random_model):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, summary, _ = finished
    assert summary["checkpoint"] == str(folder / "checkpoints" / "4")
    weights = [AutoModelForCausalLM.from_pretrained(folder / f"checkpoints/{n}/hf").state_dict() for n in (2, 4)]
    start = AutoModelForCausalLM.from_pretrained(random_model).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(start[name], weights[0][name]) and not torch.equal(weights[0][name], weights[1][name])
    AutoTokenizer.from_pretrained(folder / "checkpoints/4/hf")


def test_a_checkpoint_says_where_the_run_stands_in_its_data(finished):
    folder, summary, _ = finished
    checkpoints = Checkpoints(folder / "checkpoints")
    assert checkpoints.steps() == [4, 2]
    first, last = (checkpoints.read(step).state.cursor for step in (2, 4))
    for cursor, trained in ((first, 8), (last, 16)):
        assert all(position < cursor.position for position in cursor.open)
        assert len(set(cursor.open)) == len(cursor.open) <= 4 * 4  # in flight, buffered, to be retried, and one to come
        # All rows handed out are trained, open, or turned away.
        assert trained <= cursor.position - len(cursor.open) <= trained + 2 * 6
    assert first.position <= last.position


def test_the_run_folder_holds_config_episodes_and_wandb(finished):
    folder, summary, _ = finished
    assert "groups_per_step: 4" in (folder / "config.yaml").read_text()
    episode = json.loads((folder / "episodes" / "step-000004.jsonl").read_text().splitlines()[0])
    assert [c["role"] for c in episode["conversations"]] == ["memory"] * 3 + ["answer"]
    assert episode["problem"] and "reward" in episode and len(episode["sections"]) == len(episode["memories"]) == 3
    everything = [json.loads(row) for path in (folder / "episodes").iterdir() for row in path.read_text().splitlines()]
    tokens = [c["tokens"] for row in everything for c in row["conversations"]]
    assert all(sum(count for _, count in t["versions"]) == len(t["logprobs"]) == len(t["characters"]) for t in tokens)
    assert any(t["learner"] and len(t["learner"]) == len(t["logprobs"]) for t in tokens)
    assert (folder / "view.html").read_text().count('<script type="application/json" id="episode-') == len(everything)
    assert f"· page {folder / 'view.html'}" in finished[2]
    assert list(Path(summary["wandb_run"]).glob("view.html"))
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
    assert list(Path(summary["wandb_run"]).glob("run-*.wandb"))
    spans = json.loads((folder / "timeline.json").read_text().rstrip(",\n") + "]")
    rows = {event["tid"]: event["args"]["name"].split(" (")[0] for event in spans if event["name"] == "thread_name"}
    done = Counter((rows[event["tid"]], event["name"]) for event in spans if event["ph"] == "X")
    assert done["learners", "train"] == done["learners", "publish"] == summary["steps"] <= done["learners", "wait"]
    assert done["learners", "copy checkpoint"] == 2 and done["generator-0", "load weights"] > 0
    assert done["generator-0", "generate"] >= done["scorers", "score"] >= 4 * summary["steps"]


def test_a_malformed_file_ends_the_run_with_its_reason(run, random_model, tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("this is not JSON\n" * 30)
    status, output = run(
        f"model.path={random_model}",
        f"run.folder={tmp_path}",
        "run.name=malformed",
        "data.source=file",
        f"data.path={path}",
    )
    assert status == 1, output
    summary = json.loads((tmp_path / "malformed" / "summary.json").read_text())
    assert summary["status"] == "failed" and "2 of 30 rows are bad" in summary["error"] and summary["steps"] == 0


def scheduled(capsys, arguments: list[str]) -> list[tuple[int, int, float]]:
    """The table of steps, optimizer steps and learning rates that --dry-run prints."""
    from jobs.train import main

    assert main([*SMALL, *arguments, "--dry-run"]) == 0
    _, _, table = capsys.readouterr().out.partition("  step  optimizer steps  learning rate\n")
    return [(int(step), int(updates), float(rate)) for step, updates, rate in map(str.split, table.splitlines())]


def test_every_option_of_the_objective_at_work(run, problem_file, ending_model, tmp_path, capsys):
    """Several updates a step, a reference model, dynamic sampling, over-long shaping, activation checkpointing."""
    problems = tmp_path / "problems.jsonl"
    problems.write_text(problem_file.read_text().replace("counts_letters", "often_equal"))
    arguments = [
        f"model.path={ending_model}",
        f"run.folder={tmp_path}",
        "run.name=options",
        "data.source=file",
        f"data.path={problems}",
        "data.max_bad_share=1",
        "train.steps=3",
        "wandb.mode=disabled",
        "train.updates_per_step=2",
        "train.dynamic_sampling=true",
        "train.max_discarded=2",
        "train.mismatch_warning=1e-12",
        "objective.kl_coefficient=0.01",
        "objective.entropy_coefficient=0.001",
        "objective.overlong_penalty=0.5",
        "objective.advantage=leave_one_out",
        "learner.checkpoint_layers=all",
        "train.profile_steps=[2,3]",
    ]
    status, output = run(*arguments)
    assert status == 0, output
    rows = rows_of(tmp_path / "options")
    traces = sorted(path.name for path in (tmp_path / "options" / "profiles").iterdir())
    assert traces == [f"step-{step}-rank-{rank}.json.gz" for step in (2, 3) for rank in (0, 1)]
    assert [(r["step"], r["updates_total"], r["learning_rate"]) for r in rows] == [
        (step, updates, pytest.approx(rate, rel=1e-5)) for step, updates, rate in scheduled(capsys, arguments)
    ]
    assert all(row["updates"] == 2 and row["groups"] == 4 for row in rows)
    assert rows[0]["kl"] > 0 and rows[-1]["kl"] > rows[0]["kl"]  # the second update of a step has left the start
    assert all(row["kept_fraction"] == 4 / (4 + row["groups_discarded"]) for row in rows)
    assert 0 < sum(row["groups_discarded"] for row in rows) and all(row["groups_discarded"] <= 2 * 4 for row in rows)
    assert "  kept 0." in output
    assert all(row["proximal_seconds"] > 0 for row in rows)
    assert any(row["overlong_penalty"] < 0 for row in rows)
    assert output.count("more than train.mismatch_warning=1e-12") >= 1
    summary = json.loads((tmp_path / "options" / "summary.json").read_text())
    assert summary["updates"] == 6 and summary["groups_discarded"] == sum(row["groups_discarded"] for row in rows)


def test_a_run_whose_losses_are_not_finite_stops_with_the_last_good_weights(run, random_model, tmp_path):
    from safetensors.torch import load_file

    # Any token ends an answer, so that none is cut and each is scored.
    model, path = tmp_path / "model", tmp_path / "problems.jsonl"
    shutil.copytree(random_model, model)
    words = json.loads((model / "config.json").read_text())["vocab_size"]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(words))}))
    write_problem_file(
        [replace(synthetic_problem(seed=3, index=i, chunks=3), task="overflows") for i in range(14)], path
    )
    status, output = run(
        f"model.path={model}",
        f"run.folder={tmp_path}",
        "run.name=infinite",
        "data.source=file",
        f"data.path={path}",
        "train.max_skipped_updates=2",
        "wandb.mode=disabled",
    )
    assert status == 1, output
    folder = tmp_path / "infinite"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed" and "2 updates in a row were skipped" in summary["error"]
    assert summary["steps"] == summary["updates_skipped"] == 2 and summary["updates"] == 0
    (line,) = [line for line in output.splitlines() if line.startswith("· step 1: update 1 of 1 was skipped")]
    assert len(line.partition("groups: ")[2].split(", ")) == 4
    saved = load_file(Path(summary["checkpoint"]) / "hf" / "model.safetensors")
    start = load_file(model / "model.safetensors")
    assert all((saved[name] == start[name]).all() for name in saved)
