"""Making samples: what is in the folder, whatever the number of workers and however often the job was stopped."""

import json
import shutil
from pathlib import Path

import pytest

from jobs import prepare
from pipeline.config import load_config
from pipeline.data.documents.passages import document_text
from pipeline.data.preparation import prepare_samples
from pipeline.data.recipes import RECIPES
from pipeline.data.rows import problem_from_row
from pipeline.data.sample_files import SampleFiles
from pipeline.errors import ConfigError, DataError

WORKERS = 4
QUESTIONS = 30


def question(i: int) -> dict:
    return {
        "_id": f"q{i}",
        "question": f"What is {i}?",
        "answer": f"answer {i}",
        "supporting_facts": [[f"Q{i}.0", 0]],
        "context": [[f"Q{i}.{n}", [f"About Q{i}.{n}."]] for n in range(3)],
    }


def questions_file(path: Path, bad: tuple[int, ...] = (), count: int = QUESTIONS) -> Path:
    rows = [question(i) | ({"answer": ""} if i in bad else {}) for i in range(count)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def questions(tmp_path) -> Path:
    return questions_file(tmp_path / "questions.json")


def make(folder: Path, kind: str, *arguments: str, workers: int = WORKERS, show=lambda line: None):
    settings = load_config([f"output={folder}", *arguments], RECIPES[kind])
    assert settings.faults() == []
    return prepare_samples(kind, settings, str(folder), workers, show)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_of_samples_by_reference(ray_session, tmp_path, questions):
    shown = []
    prepared = make(
        tmp_path / "out", "hotpotqa", f"path={questions}", "documents=9", "rows_per_file=12", show=shown.append
    )
    assert (prepared.samples, prepared.quarantined, prepared.files) == (QUESTIONS, 0, 3)
    files = ["hotpotqa-9-00000.jsonl", "hotpotqa-9-00001.jsonl", "hotpotqa-9-00002.jsonl"]
    assert list(contents(tmp_path / "out")) == [*files, "passages.arrow", "prepare.json", "questions.arrow"]
    rows = [row for name in files for row in lines(tmp_path / "out" / name)]
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(QUESTIONS)]
    assert all(row["passage_file"] == "passages.arrow" and len(row["passages"]) == 9 for row in rows)
    problem = problem_from_row(rows[20], "", str(tmp_path / "out"))
    text = document_text(problem)
    assert text.count("Document ") == 9
    assert f"Document {problem.metadata['gold_documents'][0]}:\nQ20.0\nAbout Q20.0." in text
    assert any(line.startswith(f"sample {QUESTIONS}/{QUESTIONS}  ") for line in shown)
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert record["kind"] == "hotpotqa" and record["settings"]["documents"] == 9
    assert record["inputs"][str(questions)]["size"] == questions.stat().st_size
    assert record["sets"] == {"hotpotqa-9": {"samples": QUESTIONS, "unit": "documents"}} and record["quarantined"] == 0


def test_such_a_folder_is_read_as_samples(ray_session, tmp_path, questions):
    make(tmp_path / "out", "hotpotqa", f"path={questions}", "documents=9")
    source = SampleFiles.open(str(tmp_path / "out"))
    assert [source.sample(index).id for index in range(len(source))] == [f"q{i}" for i in range(QUESTIONS)]
    assert document_text(source.sample(0)).startswith("Document 1:\n")


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("hotpotqa", ("path={questions}", "documents=9", "rows_per_file=7")),
        ("hotpotqa", ("path={questions}", "tokens=150", "tokenizer={model}", "limit=20")),
        ("ruler_hqa", ("path={questions}", "documents=[5,12]", "limit=17", "rows_per_file=10")),
        ("ruler", ("tasks=[niah_single_1,vt]", "tokens=[400,700]", "tokenizer={model}", "count=3")),
        ("synthetic", ("chunks=[3,5]", "tasks=[chains,long_chains]", "count=70", "rows_per_file=50")),
    ],
)
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    ray_session, tmp_path, random_model, kind, arguments, monkeypatch
):
    monkeypatch.setattr("pipeline.data.samples.ROWS_PER_TASK", 4)  # work for all
    questions = questions_file(tmp_path / "questions.json", bad=(11,))
    arguments = [a.format(questions=questions, model=random_model) for a in arguments]
    arguments.append("max_bad_share=0.2")
    one = make(tmp_path / "one", kind, *arguments, workers=1)
    several = make(tmp_path / "several", kind, *arguments, workers=WORKERS)
    assert one == several and one.samples > 0
    assert contents(tmp_path / "one") == contents(tmp_path / "several")


def test_the_files_of_several_sets_are_named_by_set_and_length(ray_session, tmp_path, questions):
    make(tmp_path / "a", "ruler_hqa", f"path={questions}", "documents=[5,12]", "limit=17", "rows_per_file=10")
    names = [f"ruler_hqa-{length}-0000{n}.jsonl" for length in (5, 12) for n in (0, 1)]
    assert sorted(names) == [name for name in contents(tmp_path / "a") if name.endswith(".jsonl")]
    short, long = (lines(tmp_path / "a" / f"ruler_hqa-{length}-00001.jsonl") for length in (5, 12))
    assert [row["id"] for row in short] == [row["id"] for row in long] == [f"q{i}" for i in range(10, 17)]
    assert all(set(a["passages"]) < set(b["passages"]) for a, b in zip(short, long, strict=True))
    assert {(row["metadata"]["set"], row["metadata"]["length"]) for row in long} == {("ruler_hqa", 12)}
    arguments = ("chunks=[3,5]", "tasks=[chains,needles]", "count=15", "rows_per_file=10", "seed=4")
    prepared = make(tmp_path / "b", "synthetic", *arguments)
    names = [
        f"{name}-{length}-0000{n}.jsonl" for name in ("synthetic", "needles") for length in (54, 90) for n in (0, 1)
    ]
    assert sorted(names) == sorted(name for name in contents(tmp_path / "b") if name.endswith(".jsonl"))
    assert prepared.most_tokens == 2 * 15 * (54 + 90)
    assert lines(tmp_path / "b" / "needles-90-00001.jsonl")[2]["id"] == "needles-4-12"


def test_a_job_goes_on_from_the_files_that_are_there(ray_session, tmp_path):
    questions = questions_file(tmp_path / "questions.json", bad=(1, 8, 9))
    arguments = [f"path={questions}", "documents=9", "rows_per_file=5", "max_bad_share=0.2"]
    whole = make(tmp_path / "whole", "hotpotqa", *arguments)
    expected = contents(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "torn")
    for name in ("hotpotqa-9-00001.jsonl", "hotpotqa-9-00004.jsonl"):
        (tmp_path / "torn" / name).unlink()
    (tmp_path / "torn" / "hotpotqa-9-00001.jsonl.partial").write_text("half")
    kept = tmp_path / "torn" / "hotpotqa-9-00000.jsonl"
    before, shown = kept.stat().st_mtime_ns, []
    assert make(tmp_path / "torn", "hotpotqa", *arguments, workers=1, show=shown.append) == whole
    assert contents(tmp_path / "torn") == expected
    assert "· 4 of 6 files are there already" in shown and kept.stat().st_mtime_ns == before
    assert make(tmp_path / "torn", "hotpotqa", *arguments, show=shown.append) == whole
    assert contents(tmp_path / "torn") == expected and "· 6 of 6 files are there already" in shown


def test_an_interrupted_job_goes_on(ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.preparation.PROGRESS_S", 0.0)
    monkeypatch.setattr("pipeline.data.samples.ROWS_PER_TASK", 4)
    questions = questions_file(tmp_path / "questions.json", bad=(1, 12))
    arguments = [f"path={questions}", "documents=9", "rows_per_file=10", "max_bad_share=0.2"]
    whole = make(tmp_path / "whole", "hotpotqa", *arguments)

    def interrupt(line: str) -> None:
        if line.startswith("sample 14/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "torn", "hotpotqa", *arguments, show=interrupt)
    names = list(contents(tmp_path / "torn"))
    assert "hotpotqa-9-00000.jsonl" in names and "hotpotqa-9-00001.jsonl" not in names
    assert not any(name.endswith(".partial") for name in names)
    assert make(tmp_path / "torn", "hotpotqa", *arguments) == whole
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_bad_rows_are_put_aside_with_their_reasons(ray_session, tmp_path):
    questions = questions_file(tmp_path / "questions.json", bad=(11,))
    prepared = make(tmp_path / "out", "hotpotqa", f"path={questions}", "documents=9", "rows_per_file=10")
    assert (prepared.samples, prepared.quarantined) == (QUESTIONS - 1, 1)
    assert len(lines(tmp_path / "out" / "hotpotqa-9-00001.jsonl")) == 9
    aside = lines(tmp_path / "out" / "quarantine" / "hotpotqa-9-00001.jsonl")
    row = question(11) | {"answer": ""}
    assert aside == [{"id": "questions.json:12", "reason": "'answer' is empty", "row": row}]


def test_too_many_bad_rows_stop_the_job_each_time_it_is_tried(ray_session, tmp_path):
    questions = questions_file(tmp_path / "questions.json", bad=tuple(range(0, QUESTIONS, 2)))
    arguments = [f"path={questions}", "documents=9", "rows_per_file=8"]
    for _ in range(2):
        with pytest.raises(DataError, match=r"of \d+ rows are bad, more than max_bad_share=0.05; their reasons are in"):
            make(tmp_path / "out", "hotpotqa", *arguments)
        assert sorted(path.name for path in (tmp_path / "out" / "quarantine").iterdir())[0] == "hotpotqa-9-00000.jsonl"
    prepared = make(tmp_path / "out", "hotpotqa", *arguments, "max_bad_share=0.6")  # and then it is let go on
    assert (prepared.samples, prepared.quarantined) == (QUESTIONS // 2, QUESTIONS // 2)


def test_the_share_of_bad_rows_is_that_of_all_rows(ray_session, tmp_path):
    arguments = ["documents=9", "rows_per_file=10"]
    few = questions_file(tmp_path / "few.json", bad=(0, 1, 2, 3, 4), count=100)
    assert make(tmp_path / "few", "hotpotqa", f"path={few}", *arguments).quarantined == 5
    many = questions_file(tmp_path / "many.json", bad=(0, 1, 2, 3, 4, 99), count=100)
    with pytest.raises(DataError, match="6 of 100 rows are bad"):
        make(tmp_path / "many", "hotpotqa", f"path={many}", *arguments)
    assert len(list((tmp_path / "many").glob("*.jsonl"))) == 9
    early = questions_file(tmp_path / "early.json", bad=tuple(range(6)), count=100)
    with pytest.raises(DataError, match="6 of 100 rows are bad"):
        make(tmp_path / "early", "hotpotqa", f"path={early}", *arguments)
    assert not list((tmp_path / "early").glob("*.jsonl"))


def distractors_file(path: Path, bad: int, good: int = 40) -> Path:
    rows = [{"title": f"Other {n}", "text": "Else."} for n in range(good)] + [{"title": "No text"}] * bad
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_bad_distractors_are_put_aside_and_counted(ray_session, tmp_path):
    questions = questions_file(tmp_path / "questions.json", bad=(11,))
    distractors = distractors_file(tmp_path / "distractors.jsonl", 2)
    arguments = [f"path={questions}", f"distractors={distractors}", "documents=9", "rows_per_file=10"]
    prepared = make(tmp_path / "out", "hotpotqa", *arguments)
    assert (prepared.samples, prepared.quarantined) == (QUESTIONS - 1, 3)
    aside = lines(tmp_path / "out" / "quarantine" / "passages.jsonl")
    assert [row["id"] for row in aside] == [f"{distractors}:41", f"{distractors}:42"]
    assert all("the texts 'title' and 'text'" in row["reason"] for row in aside)
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["quarantined"] == 3
    (tmp_path / "out" / "hotpotqa-9-00002.jsonl").unlink()
    assert make(tmp_path / "out", "hotpotqa", *arguments) == prepared


def test_too_many_bad_distractors_stop_the_job(ray_session, tmp_path, questions):
    arguments = [f"path={questions}", f"distractors={distractors_file(tmp_path / 'd.jsonl', 3)}", "documents=9"]
    with pytest.raises(DataError, match=f"d.jsonl: 3 of 43 .* reasons are in {tmp_path}/out/quarantine/passages.jsonl"):
        make(tmp_path / "out", "hotpotqa", *arguments)
    assert len(lines(tmp_path / "out" / "quarantine" / "passages.jsonl")) == 3
    assert make(tmp_path / "out", "hotpotqa", *arguments, "max_bad_share=0.1").quarantined == 3


def test_a_folder_without_samples_is_begun_anew(ray_session, tmp_path, questions):
    """With other settings and other inputs; nothing of the failed attempt comes into the samples or the counts."""
    distractors = distractors_file(tmp_path / "distractors.jsonl", 2)
    arguments = [f"path={questions}", f"distractors={distractors}", "rows_per_file=10"]
    with pytest.raises(DataError, match="43 paragraphs .* too few for documents=91"):
        make(tmp_path / "out", "hotpotqa", *arguments, "documents=91")
    quarantine = tmp_path / "out" / "quarantine"
    assert len(lines(quarantine / "passages.jsonl")) == 2
    (quarantine / "hotpotqa-9-00000.jsonl").write_text('{"id": "from too many bad rows"}\n')
    distractors_file(distractors, 0, good=50)
    prepared = make(tmp_path / "out", "hotpotqa", *arguments, "documents=9")
    assert (prepared.samples, prepared.quarantined) == (QUESTIONS, 0)
    assert make(tmp_path / "out", "hotpotqa", *arguments, "documents=9") == prepared
    make(tmp_path / "new", "hotpotqa", *arguments, "documents=9")
    assert {name: data for name, data in contents(tmp_path / "out").items() if data} == contents(tmp_path / "new")


def test_other_settings_need_another_folder(ray_session, tmp_path, questions):
    make(tmp_path / "out", "hotpotqa", f"path={questions}", "documents=9")
    before = contents(tmp_path / "out")
    with pytest.raises(
        ConfigError, match=r"choose another output\n  documents was 9, is now 8\n  seed was 0, is now 1"
    ):
        make(tmp_path / "out", "hotpotqa", f"path={questions}", "documents=8", "seed=1")
    with pytest.raises(ConfigError, match="kind: hotpotqa, now ruler_hqa"):
        make(tmp_path / "out", "ruler_hqa", f"path={questions}")
    assert contents(tmp_path / "out") == before


def test_a_changed_input_is_noticed(ray_session, tmp_path, questions):
    make(tmp_path / "out", "hotpotqa", f"path={questions}", "documents=9")
    questions.write_text(json.dumps([question(i) for i in range(4)]))
    with pytest.raises(ConfigError, match="questions.json has another size or modification time than before"):
        make(tmp_path / "out", "hotpotqa", f"path={questions}", "documents=9")


def test_a_file_more_or_less_in_the_essay_folder_is_noticed(ray_session, tmp_path, random_model):
    essay = tmp_path / "essay"
    essay.mkdir()
    for name in ("a", "b"):
        (essay / f"{name}.txt").write_text(" ".join(f"Sentence {n} of {name} is here." for n in range(300)))
    arguments = ["tasks=[niah_single_2]", "tokens=[400]", f"tokenizer={random_model}", "count=2"]
    arguments.append(f"essay=file://{essay}")
    prepared = make(tmp_path / "out", "ruler", *arguments)
    (essay / "notes.md").write_text("Not read.")
    assert make(tmp_path / "out", "ruler", *arguments) == prepared
    (essay / "b.txt").rename(essay / "c.txt")
    with pytest.raises(ConfigError) as raised:
        make(tmp_path / "out", "ruler", *arguments)
    assert str(raised.value).splitlines()[1:] == [
        f"  file://{essay}/b.txt is gone from the inputs",
        f"  file://{essay}/c.txt is new among the inputs",
    ]


def test_an_essay_that_was_left_out_can_be_given(ray_session, tmp_path, random_model):
    arguments = ["tasks=[niah_single_2]", "tokens=[400]", f"tokenizer={random_model}", "count=2"]
    with pytest.raises(DataError, match="essay"):
        make(tmp_path / "out", "ruler", *arguments)
    (tmp_path / "essay.txt").write_text(" ".join(f"Sentence {n} is here." for n in range(300)))
    assert make(tmp_path / "out", "ruler", *arguments, f"essay={tmp_path}/essay.txt").samples == 2


def test_a_folder_with_other_things_is_left_alone(ray_session, tmp_path, questions):
    with pytest.raises(ConfigError, match="not from this job; choose another output"):
        make(tmp_path, "hotpotqa", f"path={questions}")
    assert list(contents(tmp_path)) == ["questions.json"]


def test_too_few_paragraphs_are_said_before_any_sample_is_made(ray_session, tmp_path, questions):
    with pytest.raises(DataError, match="90 paragraphs .* too few for documents=91"):
        make(tmp_path / "out", "ruler_hqa", f"path={questions}", "documents=[5,91]")
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_ruler_questions_come_from_their_file(ray_session, tmp_path, random_model):
    questions = questions_file(tmp_path / "questions.json", bad=(3,))
    arguments = ["tasks=[qa_2]", "tokens=[300]", f"tokenizer={random_model}", f"hotpotqa={questions}", "count=5"]
    for _ in range(2):
        prepared = make(tmp_path / "out", "ruler", *arguments)
        assert (prepared.samples, prepared.quarantined) == (5, 1)
    rows = lines(tmp_path / "out" / "qa_2-300-00000.jsonl")
    assert len(rows) == 5 and all(row["metadata"]["set"] == "qa_2" and row["task"] == "qa" for row in rows)
    assert [row["id"] for row in lines(tmp_path / "out" / "quarantine" / "qa_2-questions.jsonl")] == [
        "questions.json:4"
    ]
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["quarantined"] == 1


# The command itself, on the tests' Ray.


@pytest.fixture
def command(ray_session, monkeypatch, capsys):
    """Runs jobs.prepare; returns exit status, output and errors."""
    monkeypatch.setattr(ray_session, "init", lambda **options: None)
    monkeypatch.setattr(ray_session, "shutdown", lambda: None)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)

    def run(*arguments: str) -> tuple[int, str, str]:
        return prepare.main(list(arguments)), *capsys.readouterr()

    return run


def test_the_command_makes_samples_and_says_so(command, tmp_path, questions):
    status, output, _ = command("hotpotqa", f"path={questions}", "documents=9", f"output={tmp_path}/out", "workers=2")
    assert status == 0
    assert output.splitlines()[-2:] == [
        f"· {QUESTIONS} samples, files: 1; 0 quarantined",
        f"· completed; samples in {tmp_path}/out",
    ]


def test_the_command_fails_on_bad_data_and_refuses_a_folder_of_other_samples(command, tmp_path, questions):
    status, _, errors = command("hotpotqa", f"path={questions}", "documents=91", f"output={tmp_path}/out")
    assert status == 1 and errors.startswith(str(tmp_path)) and "too few for documents=91" in errors
    status, _, _ = command("hotpotqa", f"path={questions}", "documents=9", f"output={tmp_path}/out")
    assert status == 0
    status, _, errors = command("hotpotqa", f"path={questions}", "documents=8", f"output={tmp_path}/out")
    assert status == 2 and "documents was 9, is now 8" in errors


def test_an_interrupt_has_its_own_status_and_says_how_to_go_on(command, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "prepare_samples", interrupted)
    status, output, _ = command("synthetic", f"output={tmp_path}/out")
    assert status == 130 and "the same command resumes" in output
