"""What `make learn` runs, and what it draws of results that are made up."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import learn as learn_job
from jobs.learn import (
    LearnConfig,
    all_steps,
    compare_models,
    episode_table,
    learning_steps,
    main,
    measuring_steps,
    with_whole_paths,
)
from jobs.prepare import schema_of
from jobs.support.steps import Step, is_done, record_arguments
from pipeline.config import load_config
from pipeline.data.documents.synthetic import VALIDATION_SEED
from pipeline.evaluation.config import EvaluationConfig, check_evaluation
from pipeline.fine_tuning.config import FineTuningConfig, check_fine_tuning
from pipeline.run.config import load_training_config
from pipeline.run.rules import check_config
from tests.support.result_rows import rows_of

CONFIG = LearnConfig(measure=True)


def configuration(step: Step):
    """The configuration that a step's job reads from its arguments."""
    if step.prepares:
        kind, *settings = step.arguments
        return load_config([*settings, "output=x"], schema_of(kind))
    arguments = [*step.arguments, *(["model.path=x"] if step.model else [])]
    if step.job == "jobs.train":
        config = load_training_config(arguments)
        check_config(config)
    else:
        schemas = {"jobs.fine_tune": FineTuningConfig, "jobs.evaluate": EvaluationConfig}
        checks = {"jobs.fine_tune": check_fine_tuning, "jobs.evaluate": check_evaluation}
        config = load_config(arguments, schemas[step.job])
        checks[step.job](config)
    return config


def test_every_step_is_run_once_after_what_it_reads_and_its_arguments_are_sound():
    steps = all_steps(CONFIG)
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    for place, step in enumerate(steps):
        configuration(step)
        read = [name for name in names if any(f"runs/learn/{name}" in argument for argument in step.arguments)]
        assert all(names.index(name) < place for name in [*read, step.model] if name), step


def test_every_step_resumes():
    assert all(step.resumes for step in all_steps(CONFIG))


def test_training_validation_and_measuring_share_no_question_and_no_prose():
    made = {step.name: configuration(step) for step in all_steps(CONFIG) if step.prepares}
    del made["demonstrations"]
    training = made.pop("training")
    assert all(there.seed != training.seed for there in made.values())
    assert made["validation"].seed != made["short-trained-forms"].seed == made["long-trained-forms"].seed
    prose = {Path(getattr(there, "prose", "") or there.essay).resolve() for there in made.values()}
    assert len(prose) == 1 and Path(training.prose).resolve() not in prose


def test_models_are_measured_with_the_same_questions():
    evaluations = [step for step in measuring_steps(CONFIG) if not step.prepares]
    for data in {configuration(step).data.path for step in evaluations}:
        same = [step for step in evaluations if configuration(step).data.path == data]
        assert {step.model for step in same} >= {"start", "rl"}
        first, *others = map(configuration, same)
        assert all(
            (c.data, c.evaluate, c.agent, c.run.seed) == (first.data, first.evaluate, first.agent, first.run.seed)
            for c in others
        )


def test_documents_are_made_for_the_chunks_of_the_agent_that_reads_them():
    steps = {step.name: configuration(step) for step in learning_steps(CONFIG)}
    chunk = steps["rl"].agent.chunk_tokens
    assert steps["training"].chunk_tokens == steps["demonstrations"].agent.chunk_tokens == chunk
    assert 4 <= steps["training"].tokens[0] / chunk <= 6
    assert steps["start"].fine_tuning.max_tokens >= steps["rl"].agent.window


def test_samples_are_done_when_their_record_has_the_counts(tmp_path):
    step = learning_steps(CONFIG)[0]
    assert not is_done(step, tmp_path)
    (tmp_path / step.name).mkdir()
    record = tmp_path / step.name / "prepare.json"
    for text, done in (('{"kind": "facts"}', False), ('{"kind": "facts", "quarantined": 0}', True), ("{", False)):
        record.write_text(text)
        assert is_done(step, tmp_path) == done


def test_the_models_are_compared_in_a_table_and_a_figure(tmp_path, capsys):
    config = replace(CONFIG, folder=str(tmp_path))
    for step in measuring_steps(config):
        if not step.prepares:
            place = tmp_path / step.name
            place.mkdir()
            long, data = step.name.startswith("long"), step.name.split("-")[1]
            score = 1.0 if step.model == "rl" else 0.0
            rows = [
                r for n in ((8960, 35840) if long else (560, 2240)) for r in rows_of([score] * 4, set=data, length=n)
            ]
            (place / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    compare_models(config)
    assert (tmp_path / "learn.png").stat().st_size > 0
    table = (tmp_path / "learn.md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert sum(line.startswith(("| held |", "| trained |", "| untrained |")) for line in table.splitlines()) == 18
    assert "after RL − before RL" in table and "before RL − base" in table and "100.0" in table


def test_an_episode_before_and_after_stands_side_by_side():
    def answered(name: str, score: float, needed: int, *memories: str, answer: str, error=None) -> dict:
        about = {"conversations": 6, "document_tokens": 500, "question": f"Who | is {name}?", "error": error}
        trace = {"written": [0, needed]}
        return (
            rows_of([score])[0]
            | about
            | {"id": name, "memories": list(memories), "answer": answer, "memory_trace": trace}
        )

    before = [
        answered("a", 1.0, 2, "x", answer="right"),
        answered("b", 0.0, 1, "x", answer="wrong"),
        answered("c", 0.0, 2, "None", "None", answer="unknown"),
        answered("d", 0.0, 3, "x", answer="", error="lost"),
    ]
    after = [answered(name, 1.0, 2 - (name == "b"), "None", "Ada is here.", answer="Ada") for name in "abcd"]
    assert episode_table(before, after).splitlines() == [
        "Who \\| is c?",
        "",
        "| section | memory before RL | memory after RL |",
        "| --- | --- | --- |",
        "| 4 | None | None |",
        "| 5 | None | Ada is here. |",
        "| answer | unknown | Ada |",
    ]
    assert episode_table(before[:1], after) == ""


@pytest.fixture
def ran(monkeypatch):
    """The names of the steps of each call of run_steps, which runs nothing."""
    calls: list[list[str]] = []
    monkeypatch.setattr(learn_job, "run_steps", lambda steps, *_: calls.append([step.name for step in steps]) or 0)
    monkeypatch.setattr(learn_job, "checkpoint_of", lambda *_: "checkpoints/40/hf")
    return calls


def leave(arguments: list[str], folder: Path, name: str) -> None:
    """Leave what a completed step leaves."""
    (step,) = (s for s in all_steps(with_whole_paths(load_config(arguments, LearnConfig))) if s.name == name)
    (folder / name).mkdir(parents=True)
    record, text = ("prepare", {"quarantined": 0}) if step.prepares else ("summary", {"status": "completed"})
    (folder / name / f"{record}.json").write_text(json.dumps(text))
    record_arguments(step, folder)


def test_what_is_done_is_not_repeated(tmp_path, ran, capsys):
    (tmp_path / "model").mkdir()
    arguments = [f"folder={tmp_path / 'learn'}", f"model={tmp_path / 'model'}"]
    assert main(arguments) == 0
    assert ran == [["training", "validation", "demonstrations", "start", "rl"]]
    assert "the model that learned: checkpoints/40/hf" in capsys.readouterr().out
    leave(arguments, tmp_path / "learn", "training")
    assert main(arguments) == 0
    assert ran[1] == ["validation", "demonstrations", "start", "rl"]


def test_a_model_that_has_learned_is_not_trained_again_for_other_questions(tmp_path, ran, capsys):
    (tmp_path / "model").mkdir()
    arguments = [f"folder={tmp_path / 'learn'}", f"model={tmp_path / 'model'}"]
    for name in ("training", "validation", "demonstrations", "start", "rl"):
        leave(arguments, tmp_path / "learn", name)
    assert main([*arguments, "measure=true", "questions=3"]) == 1  # nothing has been measured
    assert "the models cannot be compared" in capsys.readouterr().err
    assert ran[0][:2] == ["short-trained-forms", "short-held-out-forms"]
    leave([*arguments, "measure=true", "questions=3"], tmp_path / "learn", "short-trained-forms")
    assert main([*arguments, "measure=true", "questions=4"]) == 2
    said = capsys.readouterr().err
    assert "short-trained-forms: now count=4, no longer count=3" in said and "learn/rl" not in said
    assert main([*arguments, "seed=1"]) == 2
    assert "training: now seed=1" in capsys.readouterr().err and len(ran) == 1


def test_every_step_has_the_dtype_of_the_start_also_on_another_machine(tmp_path, monkeypatch):
    config = replace(CONFIG, folder=str(tmp_path))
    for here in ("bfloat16", "float32"):
        monkeypatch.setattr(learn_job, "chosen_dtype", lambda _, here=here: here)
        of_models = [step for step in all_steps(config) if not step.prepares]
        assert all("model.dtype=bfloat16" in step.arguments for step in of_models)
        record_arguments(next(step for step in of_models if step.name == "start"), tmp_path)
    explicit = learning_steps(replace(config, dtype="float32"))
    assert "model.dtype=float32" in explicit[-1].arguments


def test_wrong_settings_are_named_before_anything_is_made(tmp_path, capsys):
    wrong = ["model=nowhere", "prose=none.txt", "questions=0", "dtype=half", f"seed={VALIDATION_SEED}"]
    assert main([*wrong, f"folder={tmp_path / 'learn'}"]) == 2
    said = capsys.readouterr().err
    assert "`make smollm2`" in said and "prose=none.txt" in said and "questions=0" in said
    assert "dtype=half" in said and f"seed={VALIDATION_SEED} is the seed of the questions" in said
    assert not (tmp_path / "learn").exists()


def test_the_steps_are_listed(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["--dry-run", f"model={tmp_path}", f"folder={tmp_path / 'learn'}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["training", "validation", "demonstrations", "start", "rl"]
