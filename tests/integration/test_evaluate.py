"""The evaluation by its own command, on the embedded model: every question once, whatever happens on the way."""

import asyncio
import csv
import itertools
import json
import signal
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline.data.documents.synthetic import SyntheticRecipe
from pipeline.data.quarantine import Quarantine
from pipeline.data.rows import row_of
from pipeline.data.sample_files import SampleFiles
from pipeline.fine_tuning.conversations import conversation_examples
from tests.support.bad_scorers import ARGUMENTS
from tests.support.faults import Run, inject, run_job, until

ROOT = Path(__file__).resolve().parents[2]
METHODS = ["memory", "direct", "concat", "closed_book"]
COUNT, CHUNKS = 12, (8, 60)


@pytest.fixture(scope="module")
def run(shared_ray):
    """Runs a job to its end; returns its exit status and what it printed."""
    return lambda job, *arguments: run_job(job, *arguments, environment=shared_ray)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two lengths of a set by reference and by value, and a user's own questions, some of which cannot be used."""
    folder = tmp_path_factory.mktemp("data")
    for chunks in CHUNKS:
        recipe = SyntheticRecipe(5, chunks, COUNT)
        rows = [row_of(recipe.sample(i)) for i in range(COUNT)]
        (folder / f"synthetic-{chunks}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "paragraphs").mkdir()
    (folder / "paragraphs/p.jsonl").write_text('{"title": "Rex", "text": "Rex Paris ."}\n')
    own = {"question": "city Rex", "answers": ["Paris"]}
    rows = [
        own | {"id": "by reference", "passages": [0, 0], "passage_file": "paragraphs/p.jsonl"},
        own | {"id": "long question", "question": "city pet Sam pet pet", "document": "Rex Paris ."},
        own | {"id": "scorer raises", "document": "Rex Paris .", "task": "raises"},
        own | {"id": "own scorer", "document": "Rex Paris .", "task": "counts_letters"},
        own | {"id": "row gone", "passages": [7], "passage_file": "paragraphs/p.jsonl"},
        own | {"id": "by reference", "document": "the same id again"},
        {"id": "no answer", "question": "city Rex", "document": "Rex Paris ."},
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def arguments(data, tmp_path_factory) -> list[str]:
    return [
        "preset=eval_tiny",
        f"model.path={ROOT}/configs/models/tiny",
        f"data.path={data}",
        "data.max_bad_share=0.5",
        "generator.max_sequences=2",  # slow enough to be stopped
        f"run.folder={tmp_path_factory.mktemp('runs')}",
        "run.name=whole",
        "evaluate.max_attempts=2",
        "evaluate.memories=3",
        "evaluate.successes=true",
        "data.source=file",  # the preset's is synthetic
        "generator.count=1",
        *ARGUMENTS,
    ]


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


def test_a_key_that_is_new_since_the_evaluation_began_had_its_default():
    from pipeline.errors import ConfigError
    from pipeline.evaluation.config import EvaluationConfig, check_same

    before, now = asdict(EvaluationConfig()), asdict(EvaluationConfig())
    del before["evaluate"]["successes"]
    check_same(before, now)
    now["evaluate"]["successes"] = True
    with pytest.raises(ConfigError, match="evaluate.successes: False then, True now"):
        check_same(before, now)


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


def test_synthetic_questions_need_no_file():
    """Those of every task and length; sets, lengths and limit choose among them as among the samples of files."""
    from pipeline.config import load_config
    from pipeline.data.quarantine import Quarantine
    from pipeline.evaluation.config import EvaluationConfig
    from pipeline.evaluation.questions import input_states, open_source, read_questions

    def asked(*arguments):
        config = load_config([*SYNTHETIC, "data.synthetic_count=5", *arguments], EvaluationConfig)
        source = open_source(config)
        questions = read_questions(source, config, Quarantine(Path("none")))
        return source, config, questions

    source, config, questions = asked()
    assert [(q.set, q.length, q.id) for q in questions] == [
        (name, 18 * chunks, f"{name}-1000000-{i}")
        for name in ("synthetic", "values")
        for chunks in (3, 8)
        for i in range(5)
    ]
    last = source.sample(questions[-1].index)
    assert (last.id, last.task) == ("values-1000000-4", "values") and len(last.document.split()) == 18 * 8
    assert last == SyntheticRecipe(1_000_000, 8, 5, "values").sample(4)
    assert set(input_states(config.data, questions, "no folder", "tiny")) == set()
    *_, some = asked("data.sets=[values]", "data.lengths=[144]", "data.limit=2", "data.synthetic_seed=7")
    assert [(q.set, q.length, q.id) for q in some] == [("values", 144, "values-7-0"), ("values", 144, "values-7-1")]


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


def test_a_right_answer_that_was_cut_is_wrong(tmp_path):
    from actors.evaluator import Evaluator
    from pipeline.config import load_config
    from pipeline.evaluation.answers import AnswerRecord
    from pipeline.evaluation.config import EvaluationConfig
    from pipeline.evaluation.questions import Question, Trial
    from pipeline.lease import Lease
    from pipeline.problems import Problem

    config = load_config(["preset=eval_tiny"], EvaluationConfig)
    evaluator = Evaluator.__ray_metadata__.modified_class(config, str(tmp_path), Lease(str(tmp_path), "", ""))
    task, problem = Trial(Question(0, "s", 1, "q", 1), "direct", 0), Problem("q", "city Rex", ("Paris",), "Rex Paris .")

    def scores(cut: bool) -> list:
        answer = AnswerRecord("\\boxed{ Paris }", (), 3, 1, 10, 5, cut, 0, None, ())
        row = asyncio.run(evaluator._row(task, problem, answer, None, 1.0))
        metrics = ("score", "exact_match", "containment", "f1", "recall", "sub_em")
        return [row["cut"], row.get("score_if_not_cut"), *(row[name] for name in metrics)]

    assert scores(cut=False) == [False, None, 1, 1, 1, 1, 1, 1]
    assert scores(cut=True) == [True, 1, 0, 0, 0, 0, 0, 0]  # the filter takes the first number


def test_documents_under_way_are_bounded():

    from actors.evaluator import Room

    async def scenario():
        room, inside, most = Room(10), 0, 0

        async def work(size):
            nonlocal inside, most
            async with room.of(size):
                inside += size
                most = max(most, inside)
                await asyncio.sleep(0.001)
                inside -= size

        sizes = [4, 5, 6, 1, 25, 3, 10, 2] * 5
        await asyncio.wait_for(asyncio.gather(*map(work, sizes)), 10)
        return most, room.inside

    assert asyncio.run(scenario()) == (25, 0)  # what is larger goes in alone


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("evaluate.methods=[memry]", "the method 'memry' is none of memory, direct"),
        ("evaluate.methods=[]", "evaluate.methods is empty"),
        ("evaluate.methods=[memory,memory]", "names one twice"),
        ("evaluate.top_p=0", "evaluate.top_p=0.0 must be above 0"),
        ("evaluate.samples=0", "evaluate.samples=0 must be greater than 0"),
        ("train.steps=3", "unknown key 'train.steps'"),
        ("data.path=README.md", "the name of a sample file ends in .jsonl or .parquet"),
        ("data.path=/no/such/folder", "data.path=/no/such/folder: no such file or folder"),
        ("data.path=''", "set data.path: data.source=file reads samples, which jobs.prepare makes"),
        ("data.source=files", "data.source='files' must be one of file, synthetic"),
        ("data.source=synthetic", "is not read with data.source=synthetic; set data.source=file"),
        ("agent.window=257", "256 positions"),
    ],
)
def test_a_wrong_configuration_says_so_before_anything_starts(arguments, wrong, message, capsys):
    from jobs.evaluate import main

    assert main([*arguments, wrong]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("chunks=[1,8]", "data.synthetic_chunks=1 must be at least 3"),
        ("chunks=[8,8]", "data.synthetic_chunks: 8 comes twice"),
        ("chunks=[]", "data.synthetic_chunks is empty"),
        ("count=0", "data.synthetic_count must be at least 1"),
        ("tasks=[needle]", "data.synthetic_tasks: there is no 'needle'; there are: chains, needles, values"),
        ("tasks=[]", "data.synthetic_tasks is empty"),
    ],
)
def test_wrong_synthetic_settings_say_so(wrong, message, capsys):
    from jobs.evaluate import main

    assert main([*SYNTHETIC, f"data.synthetic_{wrong}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["evaluate.methods=[memory]"], "a filter asks with closed_book only"),
        (["run.name=x"], "a filter writes all its files to output"),
        (["output=s3://bucket/x"], "a filter writes to a local folder"),
    ],
)
def test_a_wrong_filter_says_so(data, tmp_path, wrong, message, capsys):
    from jobs.prepare import main

    good = ["filter", "preset=eval_tiny", "data.source=file", f"data.path={data}", f"output={tmp_path}"]
    assert main([*good, *wrong]) == 2
    assert message in capsys.readouterr().err


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


def test_passage_files_of_filtered_samples_are_beside_them(tmp_path, monkeypatch):
    from pipeline.evaluation.filtering import PassageLinks

    def names_in(folder: Path, paths: list[Path]) -> list[str]:
        links = PassageLinks(folder)
        return [links.name(str(path)) for path in paths]

    files = [tmp_path / name / "passages.arrow" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text(file.parent.name)
    output = tmp_path / "out"
    output.mkdir()
    names = ["passages.arrow", "2-passages.arrow"]
    for _ in range(2):  # resumed, it finds its links
        assert names_in(output, [*files, *files]) == 2 * names
    assert [(output / name).read_text() for name in names] == ["a", "b"]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    # In the very folder of the samples, and where the file system allows no links.
    assert names_in(files[0].parent, files[:1]) == ["passages.arrow"]
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError))
    other = tmp_path / "other"
    other.mkdir()
    for _ in range(2):
        assert names_in(other, files) == names
    assert not (other / names[0]).samefile(files[0]) and (other / names[0]).read_text() == "a"
