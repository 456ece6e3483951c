"""What RULER's tasks read: essays, and questions with the documents that are made of them."""

import json
from collections import Counter

import pytest

from pipeline.data.documents.hotpotqa import HotpotqaRecipe, build_passages
from pipeline.data.documents.hotpotqa_json import Paragraph
from pipeline.data.documents.ruler import RulerSources, load_essay, load_questions, ruler_problem
from pipeline.data.documents.ruler.answering import INTRODUCTION
from pipeline.data.quarantine import Quarantine
from pipeline.errors import DataError
from tests.support.ruler_sources import WORDS, count_bytes, count_pieces, count_words, hotpotqa, sources, squad, written


def documents_of(problem) -> list[str]:
    """The text of each document, in order, with the numbers checked."""
    parts = [part.split("\n", 1) for part in problem.document.split("\n\n")]
    assert [number for number, _ in parts] == [f"Document {i}:" for i in range(1, len(parts) + 1)]
    return [text for _, text in parts]


def load(tmp_path, task, content, **limits):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", **limits)
    return load_questions(task, written(tmp_path / "questions.json", content), quarantine), quarantine


def aside(quarantine) -> list[dict]:
    return [json.loads(line) for line in quarantine.path.read_text().splitlines()]


def test_a_squad_question_is_hidden_among_its_article_first(tmp_path):
    source = sources(tmp_path, "qa_1")
    known = [p["context"] for article in squad()["data"] for p in article["paragraphs"]]
    for index in range(30):
        problem = ruler_problem("qa_1", 0, index, 1500, count_pieces, source)
        texts = documents_of(problem)
        number = problem.metadata["needles"][0]["document"]
        assert problem.answers[0] in texts[number - 1] and problem.answers == (problem.answers[0],)
        assert [problem.answers[0] in text for text in texts].count(True) == 1
        assert problem.document.index(f"Document {number}:") == round(
            problem.metadata["needles"][0]["depth"] * len(problem.document)
        )
        assert texts[number - 1] in known and sum(text not in known for text in texts) <= 1  # the cut one
        article = problem.question.split()[-2]
        assert len(texts) > 8 and sum(text.startswith(f"Paragraph of {article} ") for text in texts) == 6
        assert problem.id == f"qa_1-1500-0-{index}-s{article}.{problem.question.split()[-1][:-1]}"


def test_a_hotpotqa_question_keeps_its_gold_paragraphs_whole(tmp_path):
    source = sources(tmp_path, "qa_2")
    for index in range(30):
        problem = ruler_problem("qa_2", 0, index, 800, count_pieces, source)
        texts = documents_of(problem)
        gold = [texts[n["document"] - 1] for n in problem.metadata["needles"]]
        row = hotpotqa()[int(problem.question.removeprefix(f"{INTRODUCTION} Q ").removesuffix("?"))]
        assert sorted(gold) == sorted(f"{t}\n{''.join(s)}" for t, s in (row["context"][3], row["context"][7]))
        titles = [text.split("\n")[0] for text in texts]
        assert (
            len(set(titles)) == len(titles) > 10 and sum(t.startswith(f"Title {row['_id'][1:]} ") for t in titles) == 10
        )


def test_gold_paragraphs_may_stand_anywhere(tmp_path):
    source = sources(tmp_path, "qa_1")
    depths = [
        ruler_problem("qa_1", 0, i, 1800, count_pieces, source).metadata["needles"][0]["depth"] for i in range(400)
    ]
    bins = Counter(int(depth * 5) for depth in depths)
    assert sum((bins[b] - 80) ** 2 / 80 for b in range(5)) < 25  # they begin in the last fifth less often
    assert min(bins[b] for b in range(5)) > 50


def test_all_questions_come_once_before_the_first_comes_again(tmp_path):
    source = sources(tmp_path, "qa_2")
    questions = [ruler_problem("qa_2", 0, i, 400, count_pieces, source).question for i in range(80)]
    assert len(set(questions[:40])) == 40 and questions[40:] == questions[:40]


def test_the_same_index_asks_the_same_question_at_every_length(tmp_path):
    for task in ("qa_1", "qa_2"):
        source = sources(tmp_path, task)
        problems = [ruler_problem(task, 0, 4, tokens, count_pieces, source) for tokens in (500, 900, 1800)]
        assert len({(p.question, p.answers) for p in problems}) == 1


def test_too_few_paragraphs_are_an_error_that_names_the_file(tmp_path):
    source = sources(tmp_path, "qa_1")
    with pytest.raises(DataError, match=r"all 239 units together have \d+ tokens.*qa_1.json: give a larger file"):
        ruler_problem("qa_1", 0, 0, 50_000, count_words, source)


def test_a_gold_paragraph_must_fit(tmp_path):
    with pytest.raises(DataError, match="qa_1 needs at least .* not 30"):
        ruler_problem("qa_1", 0, 0, 30, count_bytes, sources(tmp_path, "qa_1"))


def test_questions_of_the_other_task_are_an_error(tmp_path):
    with pytest.raises(DataError, match="must be read for qa_2, but .*qa_1.json was read for qa_1"):
        ruler_problem("qa_2", 0, 0, 500, count_words, sources(tmp_path, "qa_1"))


def test_a_paragraph_with_a_title_of_the_questions_own_is_not_added(tmp_path):
    rows = hotpotqa(3)
    rows[1]["context"][0] = ["Title 0 5", ["Another text of the same title."]]
    loaded, _ = load(tmp_path, "qa_2", rows)
    for index in range(12):
        problem = ruler_problem("qa_2", 1, index, 330, count_words, RulerSources(questions=loaded))
        titles = [text.split("\n")[0] for text in documents_of(problem)]
        assert len(set(titles)) == len(titles) or problem.question == f"{INTRODUCTION} Q 2?"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": 5}, "'question' must be text, not int"),
        ({"question": " "}, "'question' is empty"),
        ({"answers": None}, "'answers' must be a list"),
        ({"answers": []}, "'answers' must be a list of one or more"),
        ({"answers": ["gold"]}, "the row is a str"),
        ({"answers": [{"text": ""}]}, "'text' is empty"),
    ],
)
def test_a_bad_squad_question_is_quarantined(tmp_path, change, reason):
    content = squad(2, 3)
    row = content["data"][1]["paragraphs"][0]["qas"][0]
    row.update(change)
    loaded, quarantine = load(tmp_path, "qa_1", content, max_share=0.5)
    assert len(loaded.questions) == 5 and len(loaded.paragraphs) == 6
    assert [(entry["id"], entry["row"]) for entry in aside(quarantine)] == [
        ("questions.json:data[1].paragraphs[0].qas[0]", row)
    ]
    assert reason in aside(quarantine)[0]["reason"] and (quarantine.rows, quarantine.bad) == (6, 1)


def test_a_bad_squad_paragraph_is_quarantined(tmp_path):
    content = squad(2, 4)
    content["data"][0]["paragraphs"][0]["context"] = None
    content["data"][0]["paragraphs"][1]["qas"] = 5
    content["data"][1]["paragraphs"][2] = "text"
    loaded, quarantine = load(tmp_path, "qa_1", content, max_share=0.5)
    assert len(loaded.questions) == 5
    assert [entry["id"][-13:] for entry in aside(quarantine)] == ["paragraphs[0]", "paragraphs[1]", "paragraphs[2]"]
    assert all("'context' and the list 'qas'" in entry["reason"] for entry in aside(quarantine))


def test_unanswerable_questions_are_put_aside_and_do_not_count_as_bad(tmp_path):
    content = squad(5, 6)
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"].append({"id": "x", "question": "?", "answers": [], "is_impossible": True})
    loaded, quarantine = load(tmp_path, "qa_1", content)
    assert len(loaded.questions) == 30 == len(aside(quarantine))
    assert quarantine.bad == 0 and all("is_impossible" in entry["reason"] for entry in aside(quarantine))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": None}, "'answer' must be text"),
        ({"question": ""}, "'question' is empty"),
        ({"context": None}, "'context' must be a list"),
        ({"context": [["title"]]}, "every entry of 'context'"),
        ({"context": [["title", []]]}, "no paragraph of 'context'"),
        ({"supporting_facts": 4}, "'supporting_facts' must be a list"),
        ({"supporting_facts": [["Nowhere", 0]]}, "names Nowhere, which"),
    ],
)
def test_a_bad_hotpotqa_question_is_quarantined(tmp_path, change, reason):
    rows = hotpotqa(4)
    rows[2] |= change
    loaded, quarantine = load(tmp_path, "qa_2", [*rows, "text"], max_share=0.5)
    assert [question.id for question in loaded.questions] == ["h0", "h1", "h3"]
    entries = aside(quarantine)
    assert [entry["id"] for entry in entries] == ["questions.json:3", "questions.json:5"]
    assert reason in entries[0]["reason"] and entries[0]["row"] == rows[2]


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("qa_1", [], "not in SQuAD's format"),
        ("qa_1", {"data": 5}, "not in SQuAD's format"),
        ("qa_1", {"data": [{"context": "a"}]}, "not in SQuAD's format"),
        ("qa_1", {"data": []}, "no rows"),
        ("qa_2", {"data": []}, "does not begin with '\\['; expected a JSON list of questions"),
        ("qa_2", [], "no rows"),
        ("qa_2", [5] * 30, "30 of 30 rows are bad|20 of 20 rows are bad"),
        ("cwe", [], "'cwe' has no questions to read; qa_1 and qa_2 have"),
    ],
)
def test_a_file_of_another_format_is_an_error(tmp_path, task, content, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, task, content)


def test_a_file_that_is_no_json_is_an_error(tmp_path):
    (tmp_path / "bad.json").write_text('{"data": [')
    with pytest.raises(DataError, match="bad.json is not JSON .* qa_1 reads SQuAD's format"):
        load_questions("qa_1", tmp_path / "bad.json", Quarantine(tmp_path / "q"))
    for task in ("qa_1", "qa_2"):
        with pytest.raises(FileNotFoundError):
            load_questions(task, tmp_path / "none.json", Quarantine(tmp_path / "q"))


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 20_000 + "]" * 20_000, "[" * 900 + "]" * 900])
def test_numbers_and_depths_that_no_data_has_are_an_error(tmp_path, value):
    (tmp_path / "bad.json").write_text(f'{{"data": [{{"paragraphs": [{value}]}}]}}')
    with pytest.raises(DataError, match="bad.json (is not JSON|holds lists or objects nested deeper than 64)"):
        load_questions("qa_1", tmp_path / "bad.json", Quarantine(tmp_path / "q"))
    (tmp_path / "bad.json").write_text(f'[{{"question": {value}}}]')
    with pytest.raises(DataError, match="bad.json (is not JSON|holds lists or objects nested deeper than 64)"):
        load_questions("qa_2", tmp_path / "bad.json", Quarantine(tmp_path / "q"))


def test_questions_are_read_from_a_uri(tmp_path):
    for task, content in (("qa_1", squad(2, 3)), ("qa_2", hotpotqa(4))):
        path = written(tmp_path / f"{task}.json", content)
        here, there = (load_questions(task, p, Quarantine(tmp_path / "q")) for p in (path, f"file://{path}"))
        assert there.questions == here.questions and there.paragraphs == here.paragraphs
        assert there.path == f"file://{path}"


def test_paragraphs_are_the_same_for_ruler_as_for_hotpotqa(tmp_path):
    """Those without text are left out; of two with one title the first is gold."""
    row = hotpotqa(1)[0] | {"supporting_facts": [["B", 0], ["A", 0], ["B", 1]]}
    row["context"] = [["A", []], [" A ", ["First."]], ["A", ["Second."]], ["B", ["One.", " Two."]], ["C", [" "]]]
    path = written(tmp_path / "questions.json", [row])
    loaded, _ = load(tmp_path, "qa_2", [row])
    assert loaded.paragraphs == (Paragraph("A", "First."), Paragraph("A", "Second."), Paragraph("B", "One. Two."))
    assert (loaded.questions[0].gold, loaded.questions[0].near) == ((0, 2), (1,))
    build_passages(str(path), "", str(tmp_path / "output"), Quarantine(tmp_path / "q"))
    problem = HotpotqaRecipe(str(tmp_path / "output"), 3).sample(0)
    assert sorted(problem.passages) == [0, 1, 2] and problem.metadata["gold_titles"] == ["B", "A"]
    assert [problem.passages[n - 1] for n in problem.metadata["gold_documents"]] == [2, 0]


def test_without_supporting_facts_all_own_paragraphs_are_gold(tmp_path):
    row = hotpotqa(1, 8)[0]
    del row["supporting_facts"]
    loaded, _ = load(tmp_path, "qa_2", [row])
    assert loaded.questions[0].gold == tuple(range(8)) and loaded.questions[0].near == ()


TEXT = 'It rains.\nDoes it?  "It does!" Yes,\nsaid  he… 雨。雪。 The end'
SENTENCES = ("It rains.", "Does it?", '"It does!"', "Yes, said he… 雨。", "雪。", "The end")


def test_an_essay_is_split_into_sentences(tmp_path):
    (tmp_path / "b.txt").write_text("Second.")
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "notes.md").write_text("Not read.")
    assert load_essay(tmp_path / "a.txt") == SENTENCES
    assert load_essay(tmp_path) == (*SENTENCES, "Second.")
    assert load_essay(written(tmp_path / "one.json", {"text": TEXT})) == SENTENCES
    assert load_essay(written(tmp_path / "two.json", [{"text": TEXT}, {"text": "B."}])) == (*SENTENCES, "B.")
    (tmp_path / "lines.jsonl").write_text('{"text": "A. B."}\n\n{"text": "C."}\n')
    assert load_essay(str(tmp_path / "lines.jsonl")) == ("A.", "B.", "C.")


def test_an_essay_is_read_from_a_uri(tmp_path):
    (tmp_path / "b.txt").write_text("Second.")
    (tmp_path / "a.txt").write_text(TEXT)
    assert load_essay(f"file://{tmp_path}/a.txt") == SENTENCES
    assert load_essay(f"file://{tmp_path}") == (*SENTENCES, "Second.")
    written(tmp_path / "one.json", {"text": TEXT})
    assert load_essay(f"file://{tmp_path}/one.json") == SENTENCES
    with pytest.raises(DataError, match="there is no essay file://.*none.txt"):
        load_essay(f"file://{tmp_path}/none.txt")


def test_a_text_without_full_stops_is_broken_at_words(tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(WORDS * 50))
    sentences = load_essay(tmp_path / "a.txt")
    assert " ".join(sentences).split() == WORDS * 50 and max(map(len, sentences)) <= 400


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", " \n", "empty.txt holds no text"),
        ("bad.json", "{", "bad.json is not JSON"),
        ("bad.json", '{"essay": "a"}', "bad.json: 'text' must be text"),
        ("bad.json", '["a"]', "bad.json: the row is a str"),
        ("bad.json", "[]", "bad.json holds no text"),
        ("bad.jsonl", '{"text": "a"}\n{"text"', "bad.jsonl:2: not JSON"),
        ("bad.json", f'{{"text": {"9" * 5000}}}', "bad.json is not JSON"),
        ("bad.json", "[" * 100_000, "bad.json is not JSON"),
    ],
    ids=range(8),
)
def test_an_essay_that_cannot_be_read_is_an_error(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_essay(tmp_path / name)


def test_a_missing_essay_is_an_error(tmp_path):
    with pytest.raises(DataError, match="there is no essay .*none.txt; give a text file"):
        load_essay(tmp_path / "none.txt")
    with pytest.raises(DataError, match="holds no .txt file"):
        load_essay(tmp_path)
