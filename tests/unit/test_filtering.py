"""The filter: each question is asked once, without its document, and the same ones are kept at all lengths."""

import contextlib
import json
import tracemalloc
from pathlib import Path

import pytest

import jobs.support.filter
from jobs.prepare import main
from jobs.support.filter import filter_samples
from pipeline import lease
from pipeline.data.filtered_sets import kept_ids
from pipeline.data.quarantine import Quarantine
from pipeline.data.recipes import HotpotqaSettings, RulerHqaSettings
from pipeline.errors import BadRow, ConfigError, DataError
from pipeline.evaluation.filtering import PassageLinks, hotpotqa_problems, question_key, verdicts, write_asked
from pipeline.problems import Problem

LENGTHS = (10, 12, 20)


def question(i: int) -> dict:
    context = [[f"Q{i} {n}", [f"Paragraph {n} of {i}."]] for n in range(3)]
    facts = [[f"Q{i} 1", 0]]
    return {
        "_id": f"q{i}",
        "question": f"Question {i}?",
        "answer": f"a{i}",
        "supporting_facts": facts,
        "context": context,
    }


@pytest.fixture
def hotpotqa(tmp_path) -> str:
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps([question(i) for i in range(20)]))
    return str(path)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def answering(monkeypatch):
    """`answering(reply)` makes `reply(question, answers)` what every model says; returns what was asked, in order."""
    monkeypatch.setattr(jobs.support.filter, "start_ray", lambda: False)
    asked: list[str] = []

    def answered_by(reply):
        def evaluate(config):
            folder = Path(config.run.folder) / config.run.name
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "results.jsonl").open("w") as results:
                for row in lines(Path(config.data.path)):
                    asked.append(row["question"])
                    for sample in range(config.evaluate.samples):
                        results.write(json.dumps(result(row, reply(row["question"], row["answers"]), sample)) + "\n")
            return {"error": None, "status": "completed"}, folder

        monkeypatch.setattr(jobs.support.filter, "evaluate", evaluate)
        return asked

    return answered_by


def result(row: dict, answer: str | None, sample: int = 0, cut: bool = False) -> dict:
    """A row of results.jsonl of an answer that is right when it is the answer's box."""
    scores = dict.fromkeys(("exact_match", "containment", "f1", "recall"), 0.0)
    right = not cut and answer in [f"\\boxed{{{gold}}}" for gold in row["answers"]]
    if cut:
        scores["score_if_not_cut"] = float(any(f"\\boxed{{{gold}}}" in answer for gold in row["answers"]))
    key = {"set": "questions", "length": None, "id": row["id"], "method": "closed_book", "sample": sample}
    asked = {"task": row["task"], "question": row["question"], "answers": row["answers"], "answer": answer, "cut": cut}
    error = None if answer is not None else "too long"
    return {**key, **scores, **asked, "score": float(right), "error": error, "document_tokens": None}


def filtered(hotpotqa: str, output: str | Path, *arguments: str) -> int:
    return filter_samples(
        ["preset=eval_tiny", "data.source=file", f"data.path={hotpotqa}", f"output={output}", *arguments]
    )


def prepared(settings, folder: Path) -> dict[int, list[Problem]]:
    """The samples of each length."""
    return {
        each.length: [each.sample(i) for i in range(len(each))] for each in settings.sets(str(folder), rebuild=True)
    }


def boxed(*right: int):
    """A model that knows the answers to some questions."""
    names = {f"Question {i}?" for i in right}
    return lambda question, answers: f"\\boxed{{{answers[0] if question in names else '?'}}}"


def test_the_same_questions_are_kept_at_all_lengths(hotpotqa, tmp_path, answering):
    """Filter, then prepare: the path that docs/data.md gives."""
    asked = answering(boxed(0, 3, 4, 11))
    assert filtered(hotpotqa, tmp_path / "kept") == 0
    assert asked == [f"Question {i}?" for i in range(20)]  # once each, and no length has a part in it
    settings = RulerHqaSettings(path=hotpotqa, only=[str(tmp_path / "kept")], documents=list(LENGTHS))
    samples = prepared(settings, tmp_path / "out")
    kept = [f"q{i}" for i in range(20) if i not in (0, 3, 4, 11)]
    assert {length: [p.id for p in problems] for length, problems in samples.items()} == dict.fromkeys(LENGTHS, kept)
    training = HotpotqaSettings(path=hotpotqa, only=[str(tmp_path / "kept")], documents=12)
    assert [p.id for p in prepared(training, tmp_path / "training")[12]] == kept


def test_a_kept_question_has_the_document_that_it_has_without_a_filter(hotpotqa, tmp_path):
    """All paragraphs are there to be drawn, those of dropped questions too."""
    (tmp_path / "kept.jsonl").write_text('{"id": "q5"}\n{"id": "q17"}\n')
    only = RulerHqaSettings(path=hotpotqa, only=[str(tmp_path)], documents=list(LENGTHS))
    every = RulerHqaSettings(path=hotpotqa, documents=list(LENGTHS))
    some, others = prepared(only, tmp_path / "some"), prepared(every, tmp_path / "all")
    for length in LENGTHS:
        assert some[length] == [p for p in others[length] if p.id in ("q5", "q17")]


def test_the_first_questions_are_the_first_that_were_kept(hotpotqa, tmp_path):
    (tmp_path / "kept.jsonl").write_text("".join(f'{{"id": "q{i}"}}\n' for i in range(10, 20)))
    settings = RulerHqaSettings(path=hotpotqa, only=[f"{tmp_path}/kept.jsonl"], documents=[10], limit=3)
    assert [p.id for p in prepared(settings, tmp_path / "out")[10]] == ["q10", "q11", "q12"]


def test_a_file_uri_names_the_folder_of_the_output(hotpotqa, tmp_path, answering):
    answering(boxed(3))
    assert filtered(hotpotqa, f"file://{tmp_path}/kept") == 0
    assert kept_ids([f"{tmp_path}/kept"]) == {f"q{i}" for i in range(20)} - {"q3"}


def test_what_either_of_two_models_answers_is_dropped(hotpotqa, tmp_path, answering):
    """As the authors do it: the second model is asked what the first could not answer. Or both are asked all."""
    asked = answering(boxed(1, 2))
    assert filtered(hotpotqa, tmp_path / "base") == 0
    asked.clear()
    answering(boxed(2, 3))
    assert filtered(hotpotqa, tmp_path / "both", f"only=[{tmp_path}/base]") == 0
    assert len(asked) == 18 and "Question 1?" not in asked
    assert filtered(hotpotqa, tmp_path / "instruct") == 0
    neither = {f"q{i}" for i in range(20)} - {"q1", "q2", "q3"}
    assert kept_ids([f"{tmp_path}/both"]) == kept_ids([f"{tmp_path}/base", f"{tmp_path}/instruct"]) == neither


@pytest.mark.parametrize(
    ("reply", "by_score", "by_containment"),
    [
        ("\\boxed{a7}", True, True),
        ("It must be A7, I think.", False, True),
        ("\\boxed{7}", False, False),
        ("", False, False),
    ],
)
def test_the_rules_of_a_right_answer(tmp_path, reply, by_score, by_containment):
    row = {"id": "k", "question": "Question 7?", "answers": ["zebra", "a7"], "task": "qa"}
    (tmp_path / "results.jsonl").write_text(json.dumps(result(row, reply)) + "\n")
    for rule, right in (("score", by_score), ("containment", by_containment)):
        assert verdicts(tmp_path / "results.jsonl", rule).answered == ({"k"} if right else set())


def test_a_right_answer_that_was_cut_or_is_one_of_several_counts_and_an_error_does_not(tmp_path):
    rows = [{"id": k, "question": k, "answers": ["a"], "task": "qa"} for k in "xyz"]
    answers = [
        result(rows[0], "\\boxed{a} and", cut=True),
        result(rows[1], "\\boxed{b}"),
        result(rows[1], "\\boxed{a}", 1),
    ]
    answers += [result(rows[2], None), result(rows[2], "\\boxed{b}", 1)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    judged = verdicts(tmp_path / "results.jsonl", "score")
    assert judged.answered == {"x", "y"} and judged.errors == 1


def test_an_answer_whose_scorer_failed_is_an_error_and_its_question_is_kept(tmp_path, monkeypatch):
    """Nothing of a user's runs where the filter is decided: it could raise or hang there."""
    from tests.support import bad_scorers

    monkeypatch.setattr(bad_scorers, "raises", lambda answer, answers: pytest.fail("the scorer was called"))
    rows = [{"id": k, "question": k, "answers": ["a"], "task": "raises"} for k in "xy"]
    failed = [result(row, "\\boxed{a} and", cut=True) | {"score_if_not_cut": None} for row in rows]
    failed[0]["error"] = "the scorer of task 'raises': ZeroDivisionError"  # the other row is of an older evaluation
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in failed))
    judged = verdicts(tmp_path / "results.jsonl", "score")
    assert not judged.answered and judged.errors == 2


def test_another_rule_judges_the_same_answers(hotpotqa, tmp_path, answering):
    asked = answering(lambda question, answers: f"I say {answers[0]}")
    assert filtered(hotpotqa, tmp_path / "kept") == 0
    assert len(kept_ids([f"{tmp_path}/kept"])) == 20
    assert filtered(hotpotqa, tmp_path / "kept", "rule=containment") == 0
    assert (tmp_path / "kept/kept.jsonl").read_text() == "" and len(
        lines(tmp_path / "kept/dropped/dropped.jsonl")
    ) == 20
    report = json.loads((tmp_path / "kept/filter.json").read_text())
    assert (report["rule"], report["asked"], report["kept"], report["dropped"]) == ("containment", 20, 0, 20)
    assert asked[:20] == asked[20:]


def test_a_question_of_several_lengths_is_asked_once_and_judged_the_same_at_all(hotpotqa, tmp_path, answering):
    samples = prepared(RulerHqaSettings(path=hotpotqa, documents=list(LENGTHS)), tmp_path / "samples")
    rows = [
        {
            "id": p.id,
            "question": p.question,
            "answers": list(p.answers),
            "document": f"{length}",
            "metadata": p.metadata,
        }
        for length, problems in samples.items()
        for p in problems
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = answering(boxed(6, 7))
    assert filtered(str(tmp_path / "rows.jsonl"), tmp_path / "kept") == 0
    assert sorted(asked) == sorted(f"Question {i}?" for i in range(20))
    kept, dropped = (lines(tmp_path / "kept" / name) for name in ("kept.jsonl", "dropped/dropped.jsonl"))
    assert len(kept) == 54 and sorted(row["id"] for row in dropped) == sorted(3 * ["q6", "q7"])
    report = json.loads((tmp_path / "kept/filter.json").read_text())
    assert (report["asked"], report["kept"], report["dropped"]) == (20, 54, 6)


def test_what_tells_a_question_from_others():
    first = Problem("1", "Who?", ("a",), "one document")
    assert question_key(first) == question_key(Problem("2", "Who?", ("a",), "another"))
    others = [Problem("1", "Whom?", ("a",)), Problem("1", "Who?", ("b",)), Problem("1", "Who?", ("a",), task="values")]
    assert len({question_key(p) for p in [first, *others]}) == 4


def test_malformed_questions_are_put_aside_and_counted_once(tmp_path, answering):
    rows = [question(i) for i in range(30)]
    rows[4].pop("answer")
    (tmp_path / "hotpot.json").write_text(json.dumps(rows))
    answering(boxed())
    for _ in range(2):  # the same command again
        assert filtered(str(tmp_path / "hotpot.json"), tmp_path / "kept") == 0
        (bad,) = lines(tmp_path / "kept/quarantine/questions.jsonl")
        assert bad["reason"] == "'answer' must be text, not NoneType" and bad["id"] == "hotpot.json:5"
        assert json.loads((tmp_path / "kept/filter.json").read_text())["quarantined"] == 1
    settings = RulerHqaSettings(
        path=str(tmp_path / "hotpot.json"), only=[str(tmp_path / "kept")], documents=[10], limit=0
    )
    assert len(prepared(settings, tmp_path / "out")[10]) == 29  # the malformed one was not kept, so it is not bad again


@pytest.mark.parametrize("known", ["Question 1?", "Question 2?"])
def test_of_questions_of_one_id_the_first_alone_is_asked_kept_and_prepared(tmp_path, answering, known):
    hotpotqa = tmp_path / "hotpot.json"
    hotpotqa.write_text(json.dumps([question(1), question(2) | {"_id": "q1"}, *(question(i) for i in range(3, 9))]))
    asked = answering(lambda question, answers: f"\\boxed{{{answers[0] if question == known else '?'}}}")
    assert filtered(str(hotpotqa), tmp_path / "kept", "data.max_bad_share=0.5") == 0
    assert asked == [f"Question {i}?" for i in (1, 3, 4, 5, 6, 7, 8)]
    (bad,) = lines(tmp_path / "kept/quarantine/questions.jsonl")
    assert bad["reason"] == "the id 'q1' occurs twice" and bad["id"] == "hotpot.json:2"
    settings = RulerHqaSettings(path=str(hotpotqa), only=[str(tmp_path / "kept")], documents=[10])
    (problems,) = settings.sets(str(tmp_path / "out"), rebuild=True)
    made = []
    for i in range(len(problems)):
        with contextlib.suppress(BadRow):
            made.append(problems.sample(i).question)
    kept = [row["question"] for row in lines(tmp_path / "kept/kept.jsonl")]
    assert made == kept == [f"Question {i}?" for i in (1, 3, 4, 5, 6, 7, 8) if f"Question {i}?" != known]


def test_a_limit_does_not_hide_that_a_kept_question_is_not_there(hotpotqa, tmp_path, answering, capsys):
    asked = answering(boxed())
    (tmp_path / "before").mkdir()
    (tmp_path / "before/kept.jsonl").write_text('{"id": "q0"}\n{"id": "gone"}\n')
    assert filtered(hotpotqa, tmp_path / "kept", f"only=[{tmp_path}/before]", "data.limit=1") == 1
    assert not asked and "such as 'gone'" in capsys.readouterr().err


def test_too_many_malformed_questions_stop_the_filter(hotpotqa, tmp_path, answering, capsys):
    asked = answering(boxed())
    Path(hotpotqa).write_text(json.dumps([question(0), {}, {}]))
    assert filtered(hotpotqa, tmp_path / "kept") == 1 and not asked
    assert "2 of 3 rows are bad" in capsys.readouterr().err


def test_a_second_filter_into_the_same_folder_touches_nothing(hotpotqa, tmp_path, answering, monkeypatch):
    asked = answering(boxed())
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    first = jobs.support.filter.evaluate

    def second(config):
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.jsonl")}
        with pytest.raises(ConfigError, match="kept is in use by"):
            filtered(hotpotqa, tmp_path / "kept", "data.limit=4")
        assert before and before == {path: path.stat().st_mtime_ns for path in before}
        return first(config)

    monkeypatch.setattr(jobs.support.filter, "evaluate", second)
    assert filtered(hotpotqa, tmp_path / "kept") == 0 and len(asked) == 20
    assert not (tmp_path / "kept" / lease.LEASE).exists()


def test_a_limit_asks_the_first_questions_alone(hotpotqa, tmp_path, answering):
    asked = answering(boxed())
    assert filtered(hotpotqa, tmp_path / "kept", "data.limit=4") == 0
    assert len(asked) == 4 and kept_ids([f"{tmp_path}/kept"]) == {"q0", "q1", "q2", "q3"}


def test_a_filter_that_has_answers_is_not_given_other_questions(hotpotqa, tmp_path, answering, capsys):
    answering(boxed())
    assert filtered(hotpotqa, tmp_path / "kept") == 0
    assert filtered(hotpotqa, tmp_path / "kept", "data.limit=4") == 1
    assert f"{tmp_path}/kept holds answers to other questions; choose another output" in capsys.readouterr().err


def test_the_file_of_questions_stays_as_it_is_when_a_filter_is_taken_up(tmp_path):
    path, problems = tmp_path / "asked/questions.jsonl", [Problem("1", "Who?", ("a",)), Problem("2", "Whom?", ("a",))]
    assert write_asked(problems, path, begun=False) == 2
    before = path.stat().st_mtime_ns
    assert write_asked(problems, path, begun=True) == 2 and path.stat().st_mtime_ns == before
    with pytest.raises(DataError, match="holds answers to other questions"):
        write_asked(problems[:1], path, begun=True)
    assert write_asked(problems[:1], path, begun=False) == 1 and len(lines(path)) == 1
    with pytest.raises(DataError, match="there is no question to ask"):
        write_asked([], path, begun=False)
    assert [p.name for p in path.parent.iterdir()] == ["questions.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "q1"}\n{"id": "q99"}\n', "1 of the 2 questions that only= names are not in {hotpotqa}, such as 'q99'"),
        ('{"id": "q1"}\n{"question": "?"}\n', "kept.jsonl, line 2 has no id; a filtered set is what"),
        ('{"id": 1}\n', "kept.jsonl, line 1 has no id"),
        ("q1\n", "kept.jsonl, line 1: not JSON"),
        ("", "no question is in all of these filtered sets"),
    ],
)
def test_a_filtered_set_that_does_not_fit_is_an_error(hotpotqa, tmp_path, content, message):
    (tmp_path / "kept.jsonl").write_text(content)
    settings = RulerHqaSettings(path=hotpotqa, only=[str(tmp_path)], documents=[10])
    with pytest.raises(DataError) as error:
        settings.sets(str(tmp_path / "out"), rebuild=True)
    assert message.format(hotpotqa=hotpotqa) in str(error.value)
    with pytest.raises(DataError) as error:  # the filter says the same
        list(hotpotqa_problems(hotpotqa, kept_ids([str(tmp_path)]), 0, Quarantine(tmp_path / "q")))
    assert message.format(hotpotqa=hotpotqa) in str(error.value)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("ruler_hqa", ["path={hotpotqa}", "only=[no/such]"], "no/such/kept.jsonl: no such file (from "),
        ("hotpotqa", ["path={hotpotqa}", "only=no/such"], "only=no/such"),
        ("filter", ["data.path={hotpotqa}", "only=[no/such]"], "no/such/kept.jsonl: no such file (from "),
        ("filter", ["data.path=no/such.json"], "no/such.json: no such file (from "),
        ("filter", ["data.path=web://x/none.json"], "an s3, gs, hf or file URI"),
        ("filter", ["data.path={hotpotqa}", "rule=f1"], "rule='f1' must be one of score, containment"),
        (
            "filter",
            ["data.path={hotpotqa}", "data.lengths=[50]"],
            "the questions of HotpotQA's .json file have neither",
        ),
        (
            "filter",
            ["data.path=samples.jsonl", "only=[a]"],
            "only=['a'] selects among the questions of HotpotQA's .json file",
        ),
    ],
)
def test_a_wrong_command_says_what_is_wrong(hotpotqa, capsys, kind, arguments, message):
    if kind == "filter":
        arguments = ["preset=eval_tiny", "data.source=file", *arguments]
    assert main([kind, *(a.format(hotpotqa=hotpotqa) for a in arguments), "output=o"]) == 2
    assert message in capsys.readouterr().err


def test_memory_does_not_grow_with_the_questions(tmp_path):
    """10 KB of paragraphs each; what is held of a question is its key."""

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.json"
        with path.open("w") as file:
            for i in range(count):
                row = question(i) | {"context": [["Title", ["x" * 10_000]]], "supporting_facts": []}
                file.write(("[" if i == 0 else ",") + json.dumps(row))
            file.write("]")
        tracemalloc.start()
        problems = hotpotqa_problems(str(path), None, 0, Quarantine(tmp_path / "q"))
        assert write_asked(problems, tmp_path / f"{count}/questions.jsonl", begun=False) == count
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    few, many = peak(200), peak(1200)
    assert many - few < 1000 * 400  # bytes; their paragraphs are 10 MB


def test_a_passage_file_that_is_a_link_is_linked_under_its_own_name(tmp_path):
    """As in Hugging Face's cache, where the target's name has no suffix."""
    (tmp_path / "blob").write_text("a")
    (tmp_path / "passages.arrow").symlink_to("blob")
    folder = tmp_path / "kept"
    folder.mkdir()
    assert PassageLinks(folder).name(str(tmp_path / "passages.arrow")) == "passages.arrow"
    assert (folder / "passages.arrow").read_text() == "a" and not (folder / "passages.arrow").is_symlink()
