"""HotpotQA's files to problems: what stands in a document, and where."""

import json
from collections import Counter
from pathlib import Path

import pytest

from pipeline.documents.hotpotqa import hotpotqa_problems
from pipeline.problems import DataError, Quarantine

OWN = 4  # paragraphs that each question of these tests brings


def question(i: int, **changes) -> dict:
    titles = [f"Q{i} paragraph {n}" for n in range(OWN)]
    row = {
        "_id": f"q{i}",
        "question": f"What is {i}?",
        "answer": f"answer {i}",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": [[titles[2], 0], [titles[0], 1], [titles[2], 1]],
        "context": [[title, [f"{title} begins.", " It goes on."]] for title in titles],
    }
    return row | changes


def questions_file(folder: Path, rows: list) -> Path:
    path = folder / "questions.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def distractors_file(folder: Path, titles: list[str]) -> Path:
    path = folder / "distractors.jsonl"
    path.write_text("".join(json.dumps({"title": t, "text": f"About {t}."}) + "\n" for t in titles), encoding="utf-8")
    return path


def read(path, distractors=None, documents=12, seed=0, quarantine=None) -> list:
    quarantine = quarantine or Quarantine(path.parent / "quarantine.jsonl")
    return list(hotpotqa_problems(path, distractors, documents, "qa", seed, quarantine))


def documents_of(problem) -> list[tuple[str, str]]:
    """(title, text) of each document, in order, with the numbers checked."""
    parts = [part.split("\n") for part in problem.document.split("\n\n")]
    assert [part[0] for part in parts] == [f"Document {i}:" for i in range(1, len(parts) + 1)]
    return [(title, text) for _, title, text in parts]


@pytest.fixture
def distractors(tmp_path):
    return distractors_file(tmp_path, [f"Other {n}" for n in range(50)])


def test_a_question_is_hidden_among_its_own_and_other_paragraphs(tmp_path, distractors):
    problem = read(questions_file(tmp_path, [question(1)]), distractors)[0]
    assert (problem.id, problem.question, problem.answers, problem.task) == ("q1", "What is 1?", ("answer 1",), "qa")
    documents = documents_of(problem)
    titles = [title for title, _ in documents]
    assert len(documents) == len(set(titles)) == 12
    own = [(f"Q1 paragraph {n}", f"Q1 paragraph {n} begins. It goes on.") for n in range(OWN)]
    assert set(own) <= set(documents)
    assert all(text == f"About {title}." for title, text in documents if (title, text) not in own)


def test_metadata_says_where_the_gold_paragraphs_are(tmp_path, distractors):
    problem = read(questions_file(tmp_path, [question(1)]), distractors)[0]
    titles = [title for title, _ in documents_of(problem)]
    assert problem.metadata["gold_titles"] == ["Q1 paragraph 2", "Q1 paragraph 0"]
    assert [titles[n - 1] for n in problem.metadata["gold_documents"]] == problem.metadata["gold_titles"]
    assert (problem.metadata["type"], problem.metadata["level"]) == ("bridge", "hard")


def test_the_gold_paragraphs_may_stand_anywhere(tmp_path, distractors):
    problems = read(questions_file(tmp_path, [question(i) for i in range(600)]), distractors)
    places = Counter(problem.metadata["gold_documents"][0] for problem in problems)
    assert set(places) == set(range(1, 13))
    assert max(places.values()) < 2 * 600 / 12  # 50 expected, standard deviation 7
    assert len({tuple(p.metadata["gold_documents"]) for p in problems}) > 100  # of 132 pairs


def test_every_question_draws_its_own_others(tmp_path, distractors):
    a, b = (
        {title for title, _ in documents_of(problem) if title.startswith("Other")}
        for problem in read(questions_file(tmp_path, [question(1), question(2)]), distractors)
    )
    assert a != b


def test_the_same_seed_gives_the_same_documents_whatever_stands_around_them(tmp_path, distractors):
    rows = [question(i) for i in range(5)]
    first = {p.id: p for p in read(questions_file(tmp_path, rows), distractors)}
    again = {p.id: p for p in read(questions_file(tmp_path, rows[::-1][:3]), distractors)}
    assert all(again[i] == first[i] for i in again) and len(again) == 3


def test_another_seed_gives_other_documents(tmp_path, distractors):
    path = questions_file(tmp_path, [question(1)])
    assert read(path, distractors, seed=0)[0].document != read(path, distractors, seed=1)[0].document


def test_a_paragraph_with_a_title_of_the_questions_own_is_not_added(tmp_path):
    others = [f"Other {n}" for n in range(8)]
    distractors = distractors_file(tmp_path, [f"Q1 paragraph {n}" for n in range(OWN)] + others)
    for seed in range(20):
        documents = documents_of(read(questions_file(tmp_path, [question(1)]), distractors, 12, seed)[0])
        assert {title for title, text in documents if text.startswith("About")} == set(others)
        assert sum(title.startswith("Q1") for title, _ in documents) == OWN


def test_without_a_file_the_others_come_from_the_other_questions(tmp_path):
    problems = read(questions_file(tmp_path, [question(i) for i in range(3)]), None, 3 * OWN)
    everything = {f"Q{i} paragraph {n}" for i in range(3) for n in range(OWN)}
    assert all({title for title, _ in documents_of(problem)} == everything for problem in problems)
    assert [p.metadata["gold_titles"][0] for p in problems] == [f"Q{i} paragraph 2" for i in range(3)]


def test_as_many_documents_as_own_paragraphs_need_no_others(tmp_path):
    problem = read(questions_file(tmp_path, [question(1)]), None, OWN)[0]
    assert {title for title, _ in documents_of(problem)} == {f"Q1 paragraph {n}" for n in range(OWN)}


def test_the_paragraphs_of_a_bad_row_still_serve_as_others(tmp_path):
    rows = [question(0, answer=None), *(question(i) for i in range(1, 3))]
    problems = read(questions_file(tmp_path, rows), None, 3 * OWN, quarantine=Quarantine(tmp_path / "q", max_share=0.5))
    assert [p.id for p in problems] == ["q1", "q2"]


def test_too_few_paragraphs_are_an_error_that_names_the_file(tmp_path, distractors):
    path = questions_file(tmp_path, [question(1)])
    assert len(documents_of(read(path, distractors, OWN + 50)[0])) == OWN + 50
    with pytest.raises(DataError, match=r"distractors.jsonl: 50 paragraphs .* too few for data.documents=55"):
        read(path, distractors, OWN + 51)
    with pytest.raises(DataError, match=r"questions.json: 4 paragraphs"):
        read(path, None, OWN + 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer": None}, "'answer' must be text, not NoneType"),
        ({"answer": " "}, "'answer' is empty"),
        ({"question": 5}, "'question' must be text, not int"),
        ({"context": None}, "'context' must be a list"),
        ({"context": []}, "'context' must be a list of one or more"),
        ({"context": {"title": ["a"], "sentences": [["b"]]}}, "'context' must be a list"),
        ({"context": [["title", "text"]]}, "every entry of 'context'"),
        ({"context": [["title", [1]]]}, "every entry of 'context'"),
        ({"context": [["title"]]}, "every entry of 'context'"),
        ({"context": [["", ["text"]]]}, "every entry of 'context'"),
        ({"supporting_facts": {"title": ["a"]}}, "'supporting_facts' must be a list"),
        ({"supporting_facts": [["Q1 paragraph 0", 0], ["Nowhere", 0]]}, "names Nowhere, which"),
        ({"supporting_facts": [["Blank", 0]], "context": [["Blank", []], ["b", ["c"]]]}, "names Blank, which"),
        ({"context": [[f"t{n}", ["x"]] for n in range(13)]}, "brings 13 paragraphs, more than data.documents=12"),
    ],
)
def test_a_bad_row_is_quarantined_with_its_reason(tmp_path, distractors, changes, reason):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=0.5)
    rows = [question(0), question(1, **changes), question(2)]
    problems = read(questions_file(tmp_path, rows), distractors, quarantine=quarantine)
    assert [p.id for p in problems] == ["q0", "q2"]
    aside = json.loads(quarantine.path.read_text())
    assert aside["id"] == "questions.json:2" and reason in aside["reason"] and aside["row"] == rows[1]
    assert (quarantine.rows, quarantine.bad) == (3, 1)


def test_rows_that_are_no_objects_are_quarantined(tmp_path, distractors):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=0.8)
    rows = [question(0), "text", 1.5, None]
    assert len(read(questions_file(tmp_path, rows), distractors, quarantine=quarantine)) == 1
    assert quarantine.bad == 3


def test_a_file_of_mostly_bad_rows_stops_the_reading(tmp_path, distractors):
    with pytest.raises(DataError, match="max_bad_share"):
        read(questions_file(tmp_path, [question(i, answer="") for i in range(30)]), distractors)


def test_an_empty_list_is_an_error(tmp_path, distractors):
    with pytest.raises(DataError, match="no rows"):
        read(questions_file(tmp_path, []), distractors)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin with '\\['"),
        (b'{"data": []}', "does not begin with '\\['"),
        (b'{"_id": "a"}\n{"_id": "b"}\n', "does not begin with '\\['"),
        (b"_id,question\n", "does not begin with '\\['"),
        (b'[{"_id": "a"', "is not JSON"),
        (b"[{]", "is not JSON"),
        (b'["\xff\xfe"]', "is not JSON"),
    ],
)
def test_a_questions_file_of_another_format_is_an_error(tmp_path, distractors, content, message):
    path = tmp_path / "questions.json"
    path.write_bytes(content)
    for others in (distractors, None):
        with pytest.raises(DataError, match=f"questions.json {message}.*expected a JSON list of questions"):
            read(path, others)


@pytest.mark.parametrize(
    "line", ["not json", '["a", "b"]', '{"title": "a"}', '{"title": "a", "text": ""}', '{"title": 1, "text": "b"}']
)
def test_a_distractors_file_of_another_format_is_an_error(tmp_path, distractors, line):
    path = questions_file(tmp_path, [question(1)])
    distractors.write_text(distractors.read_text() + "\n" + line + "\n")
    with pytest.raises(DataError, match=r"distractors.jsonl:52: .*expected a line like \{\"title\""):
        read(path, distractors)


def test_missing_files_are_errors(tmp_path, distractors):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.json", distractors)
    with pytest.raises(FileNotFoundError):
        read(questions_file(tmp_path, [question(1)]), tmp_path / "none.jsonl")
