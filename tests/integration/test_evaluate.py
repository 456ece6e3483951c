"""The evaluation by its own command, on the embedded model: every question once, whatever happens on the way."""

import csv
import itertools
import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline.data.quarantine import Quarantine
from pipeline.data.sample_files import SampleFiles
from pipeline.fine_tuning.conversations import conversation_examples
from tests.support.bad_scorers import ARGUMENTS
from tests.support.evaluation_data import CHUNKS, COUNT, evaluation_arguments, write_questions
from tests.support.faults import Run, inject, run_job, until

ROOT = Path(__file__).resolve().parents[2]
METHODS = ["memory", "direct", "concat", "closed_book"]


@pytest.fixture(scope="module")
def run(shared_ray):
    """Runs a job to its end; returns its exit status and what it printed."""
    return lambda job, *arguments: run_job(job, *arguments, environment=shared_ray)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_questions(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(data, tmp_path_factory) -> list[str]:
    return evaluation_arguments(data, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def interrupted(arguments, shared_ray) -> tuple[Path, list[dict], dict]:
    """The folder, the rows and the summary of an evaluation that was stopped when it had some of its answers."""
    held = inject("hold", after=120)  # two of the methods ask nine times for an answer, two once
    with Run("jobs.evaluate", *arguments, environment=shared_ray) as evaluation:
        until(held.exists)
        evaluation.wait_for("question ")
        evaluation.process.send_signal(signal.SIGTERM)
        assert evaluation.end() == 130, evaluation.output
    held.unlink()
    assert "the same command with run.name=whole resumes it" in evaluation.output
    folder = Path(arguments[5].partition("=")[2]) / "whole"
    return folder, rows_of(folder), json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(run, interrupted, arguments) -> tuple[Path, list[dict], dict, str]:
    """The same evaluation, resumed after all but a third of its lines were lost; its engine is killed once."""
    folder, rows, _ = interrupted
    path = folder / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 3]) + lines[len(lines) // 3][:-20])
    killed = inject("engine", after=30)
    status, output = run("jobs.evaluate", *arguments)
    assert status == 0 and killed.exists(), output
    return folder, rows_of(folder), json.loads((folder / "summary.json").read_text()), output


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def key(row: dict) -> tuple:
    return row["set"], row["length"], row["id"], row["method"]


def test_an_interrupted_evaluation_keeps_what_it_has(interrupted):
    _, rows, summary = interrupted
    assert 0 < len(rows) < 4 * (2 * COUNT + 5)
    assert summary["status"] == "interrupted" and summary["answers"] == len(rows)


def test_a_question_under_which_a_generator_died_is_asked_again(finished):
    _, rows, summary, output = finished
    assert "generator-0 died; starting it again" in output
    assert summary["failures"]["GeneratorLost"] >= 1 and not any("died" in str(row["error"]) for row in rows)


def test_taken_up_it_answers_every_question_once_and_what_it_had_stays(interrupted, finished):
    _, before, _ = interrupted
    folder, rows, summary, output = finished
    questions = [("synthetic", 18 * n, f"synthetic-5-{i}") for n in CHUNKS for i in range(COUNT)]
    own = ["by reference", "long question", "scorer raises", "own scorer", "row gone"]
    questions += [("questions", None, name) for name in own]
    assert Counter(map(key, rows)) == Counter((*question, method) for question in questions for method in METHODS)
    kept = [row for row in before[: len(before) // 3] if not row["error"]]  # errors are asked again
    assert rows[: len(kept)] == kept
    assert f"{len(kept)} of {len(rows)} answers are there already" in output
    assert summary["status"] == "completed" and summary["answers"] == len(rows)
    # The answers that were lost come again: their seeds are those of the questions.
    answers = {key(row): (row["answer"], row["memories"]) for row in rows}
    assert len(before) > 12 and all(answers[key(row)] == (row["answer"], row["memories"]) for row in before)


def test_errors_count_as_wrong_and_say_why(finished):
    _, rows, summary, _ = finished
    errors = {(row["id"], row["method"]): row for row in rows if row["error"]}
    assert summary["errors"] == len(errors)
    reasons = {name: {row["error"] for (i, _), row in errors.items() if i == name} for name, _ in errors}
    assert all("over agent.problem_tokens" in reason for reason in reasons["long question"])
    assert all("this scorer always raises" in reason for reason in reasons["scorer raises"])
    assert all("row" in reason for reason in reasons["row gone"])
    assert {name for name, _ in errors} == {"long question", "scorer raises", "row gone"}
    assert ("row gone", "closed_book") not in errors  # which does not read it
    assert all(row["score"] == 0 for row in errors.values())
    assert {row["score"] for row in rows if row["id"] == "own scorer"} <= {0, 0.25, 0.5, 0.75, 1}


def test_bad_rows_are_quarantined_and_counted_once(finished):
    folder, _, summary, _ = finished
    bad = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert summary["rows_quarantined"] == len(bad) == 2
    assert "occurs twice" in bad[0]["reason"] and "'answers'" in bad[1]["reason"]


def test_a_row_says_what_was_read_and_written(finished):
    _, rows, _, _ = finished
    by_key = {key(row): row for row in rows}
    memory, direct, concat, closed = (by_key["synthetic", 18 * 60, "synthetic-5-0", method] for method in METHODS)
    assert memory["conversations"] == concat["conversations"] == 61
    assert direct["conversations"] == closed["conversations"] == 1
    assert memory["document_tokens"] == direct["document_tokens"] == 1080 and closed["document_tokens"] is None
    assert direct["prompt_tokens"] == 256 - 16 and closed["prompt_tokens"] < 20
    assert len(memory["memories"]) == len(concat["memories"]) == 3 and direct["memories"] == []
    trace = memory["memory_trace"]
    assert trace["written"][1] >= 1 and trace["tokens"][1] == concat["memory_trace"]["tokens"][1] == 60
    assert 0 <= trace["kept"][0] <= trace["kept"][1] and 0 <= trace["junk"][0] <= trace["junk"][1]
    assert concat["memory_trace"]["written"] == [0, 0] and direct["memory_trace"] is closed["memory_trace"] is None
    assert by_key["questions", None, "by reference", "direct"]["document_tokens"] > 6  # two paragraphs of three words


def test_the_conversations_of_right_answers_are_kept_to_learn_from(finished):
    folder, rows, *_ = finished
    lines = [json.loads(line) for line in (folder / "successes.jsonl").read_text().splitlines()]
    right = {key(row): row for row in rows if row["score"] == 1}
    assert Counter(map(key, lines)) == {k: row["conversations"] for k, row in right.items()} and right
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "configs/models/tiny")
    for line in lines:  # the last of an episode is its answer
        right[key(line)]["last"] = line
    for row in right.values():
        assert tokenizer.decode(row["last"]["response_tokens"], skip_special_tokens=True) == row["answer"]
    source, quarantine = SampleFiles.open(str(folder / "successes.jsonl")), Quarantine(folder / "none", 0)
    examples = list(itertools.islice(conversation_examples(source, tokenizer, 256, 0, quarantine), len(lines)))
    assert quarantine.bad == 0
    assert sum(sum(e.learned) for e in examples) == sum(len(line["response_tokens"]) for line in lines)


def test_tables_and_figure_are_there(finished):
    folder, rows, summary, output = finished
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "table.csv").open() as file:
        cells = {(c["set"], c["length"], c["method"]): c for c in csv.DictReader(file) if c["metric"] == "score"}
    assert len(cells) == len(METHODS) * (len(CHUNKS) + 1) == len(summary["cells"])
    scores = [row["score"] for row in rows if row["set"] == "synthetic" and row["length"] == 144 and
              row["method"] == "memory"]  # fmt: skip
    assert float(cells["synthetic", "144", "memory"]["mean"]) == pytest.approx(sum(scores) / COUNT)
    assert (folder / "table.md").read_text() in output + "\n"
    assert [c["method"] for c in summary["cells"]][:4] == METHODS
    of_cell = {(c["set"], c["length"], c["method"]): c for c in summary["cells"]}
    traces = [row["memory_trace"] for row in rows if key(row)[:2] + key(row)[3:] == ("synthetic", 144, "memory")]
    kept, chances = (sum(trace["kept"][i] for trace in traces) for i in (0, 1))
    assert of_cell["synthetic", 144, "memory"]["memory_kept"] == pytest.approx(kept / chances)
    assert of_cell["synthetic", 144, "direct"]["memory_tokens"] is None
    assert "## What the memory did" in (folder / "table.md").read_text()
    assert list(Path(summary["wandb_run"]).glob("run-*.wandb"))


def test_another_configuration_is_refused(finished, arguments, capsys):
    from jobs.support.evaluation import check_folder
    from pipeline.config import load_config
    from pipeline.errors import ConfigError
    from pipeline.evaluation.config import EvaluationConfig

    folder, *_ = finished
    check_folder(
        load_config([*arguments, "generator.max_sequences=64", "wandb.mode=disabled"], EvaluationConfig), folder
    )
    with pytest.raises(ConfigError, match="evaluate.temperature: 0.7 then, 0.1 now"):
        check_folder(load_config([*arguments, "evaluate.temperature=0.1"], EvaluationConfig), folder)
    check_folder(load_config([*arguments, "data.max_bad_share=0.9", "evaluate.memories=1"], EvaluationConfig), folder)
    with pytest.raises(ConfigError, match="not empty"):
        check_folder(load_config(arguments, EvaluationConfig), folder.parent)


def test_changed_inputs_are_noticed(finished, arguments, tmp_path):
    from pipeline.evaluation.config import EvaluationData
    from pipeline.evaluation.questions import Question, input_states

    samples, passages, model, template = (tmp_path / name for name in ("a.jsonl", "p.arrow", "model", "t.yaml"))
    samples.write_text("{}\n")
    passages.write_bytes(b"x")
    template.write_bytes(b"x")
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"x")
    questions = [Question(0, "a", None, "q", 1, str(passages))]

    def states():
        return input_states(EvaluationData(path=str(samples)), questions, str(model), str(template))

    files = (samples, passages, model / "model.safetensors", template)
    before = states()
    assert set(before) == set(map(str, files))
    for path in files:
        then = states()
        path.write_bytes(path.read_bytes() + b"\n")
        assert [name for name in states() if states()[name] != then[name]] == [str(path)]
    folder, *_ = finished
    assert len(json.loads((folder / "inputs.json").read_text())) >= 6  # samples, passages, the model's


SYNTHETIC = ["preset=eval_tiny", "data.synthetic_tasks=[chains,values]", "data.synthetic_chunks=[3,8]"]


def test_a_synthetic_evaluation_is_taken_up_and_its_settings_may_not_change(run, finished, tmp_path):
    """All is answered already, so that no engine is started."""
    from jobs.support.evaluation import check, check_folder
    from pipeline.config import load_config, save_config
    from pipeline.errors import ConfigError
    from pipeline.evaluation.config import EvaluationConfig

    settings = [f"run.folder={tmp_path}", "run.name=synthetic", "wandb.mode=disabled", "data.synthetic_count=2"]
    settings += [f"model.path={ROOT}/configs/models/tiny", "evaluate.methods=[memory]"]
    config = load_config([*SYNTHETIC, *settings], EvaluationConfig)
    check(config)
    folder = tmp_path / "synthetic"
    folder.mkdir()
    save_config(config, folder / "config.yaml")
    _, [template, *_], *_ = finished
    rows = [
        template | {"set": name, "length": length, "id": f"{name}-1000000-{i}", "method": "memory", "score": 1.0}
        for name, length in (("synthetic", 54), ("synthetic", 144), ("values", 54), ("values", 144))
        for i in range(2)
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(row | {"error": None}) + "\n" for row in rows))
    status, output = run("jobs.evaluate", *SYNTHETIC, *settings)
    assert status == 0 and "8 of 8 answers are there already" in output, output
    cells = json.loads((folder / "summary.json").read_text())["cells"]
    assert [(cell["set"], cell["length"], cell["questions"]) for cell in cells] == [
        ("synthetic", 54, 2), ("synthetic", 144, 2), ("values", 54, 2), ("values", 144, 2),
    ]  # fmt: skip
    for changed in ("chunks=[3,9]", "count=3", "tasks=[chains]", "seed=0"):
        with pytest.raises(ConfigError, match=f"data.synthetic_{changed.partition('=')[0]}: .* then, .* now"):
            check_folder(load_config([*SYNTHETIC, *settings, f"data.synthetic_{changed}"], EvaluationConfig), folder)


def test_evaluations_are_compared_question_by_question(finished, tmp_path, capsys):
    from jobs.evaluate import main

    folder, rows, *_ = finished
    other = tmp_path / "other"
    other.mkdir()
    with (other / "results.jsonl").open("w") as file:
        file.writelines(json.dumps(row | {"score": 1.0}) + "\n" for row in rows[:-3])
    assert main(["--compare", str(folder), str(other)]) == 0
    (made,) = folder.parent.glob("compare-*")
    assert (made / "accuracy.png").exists() and (made / "comparison.md").read_text() in capsys.readouterr().out + "\n"
    assert main(["--compare", str(folder)]) == 2
    assert main(["--compare", str(folder), str(tmp_path)]) == 2
    assert "results.jsonl" in capsys.readouterr().err


def test_the_filter_drops_what_is_answered_without_the_document(run, data, tmp_path):
    """By a scorer that finds the answers to half of the questions right."""
    samples = tmp_path / "samples.jsonl"
    rows = [json.loads(line) for line in (data / "synthetic-8.jsonl").read_text().splitlines()]
    rows = [row | {"task": "half_are_right"} for row in rows]
    reference = {"id": "by reference", "passages": [0], "passage_file": f"{data}/paragraphs/p.jsonl"}
    rows.append({"question": "city Rex", "answers": ["x"], "task": "returns_nan", **reference})
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, output = run(
        "jobs.prepare",
        "filter",
        "preset=eval_tiny",  # whose methods and samples do not matter
        "generator.count=1",
        "wandb.mode=disabled",
        "data.source=file",
        f"data.path={samples}",
        f"output={tmp_path / 'filtered'}",
        f"data.passage_folders=[{data}]",
        *ARGUMENTS,
    )
    assert status == 0, output
    filtered = tmp_path / "filtered"
    kept, dropped = (
        [json.loads(line) for line in (filtered / name).read_text().splitlines()]
        for name in ("kept.jsonl", "dropped/dropped.jsonl")
    )
    right = {row["id"] for row in rows if sum(map(ord, row["answers"][0])) % 2 and row["id"] != "by reference"}
    assert {row["id"] for row in dropped} == right and 0 < len(right) < COUNT
    assert {row["id"] for row in kept} == {row["id"] for row in rows} - right
    (by_reference,) = [row for row in kept if row["id"] == "by reference"]
    assert by_reference["passage_file"] == "p.jsonl" and (filtered / "p.jsonl").samefile(data / "paragraphs/p.jsonl")
    report = json.loads((filtered / "filter.json").read_text())
    assert (report["asked"], report["kept"], report["dropped"], report["errors"]) == (13, len(kept), len(right), 1)
    assert f"{len(right)} of 13 samples" in output and "1 of 13 questions could not be asked" in output
    answers = [json.loads(line) for line in (filtered / "evaluation/results.jsonl").read_text().splitlines()]
    assert len(answers) == 26 and set(Counter(row["id"] for row in answers).values()) == {2}
    assert Counter(row["question"] for row in answers) == Counter(2 * [row["question"] for row in rows])
    assert {row["method"] for row in answers} == {"closed_book"}
