"""HotpotQA's files to samples: what stands in a document, and where."""

import itertools
import json
import pickle
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.data.documents.hotpotqa import HotpotqaRecipe, build_passages, is_built, last_that_fits
from pipeline.data.documents.passages import document_text, open_passages
from pipeline.data.quarantine import Quarantine
from pipeline.errors import BadRow, DataError
from pipeline.problems import Problem
from pipeline.text import encode_text

OWN = 4  # paragraphs that each question of these tests brings
FOLDERS = itertools.count()


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


def build(path: Path, distractors, folder: Path) -> Quarantine:
    quarantine = Quarantine(path.parent / "bad passages.jsonl")
    build_passages(str(path), str(distractors), str(folder), quarantine)
    return quarantine


def recipe(path: Path, distractors="", documents=12, **fields) -> HotpotqaRecipe:
    """A recipe over these files, in a folder of its own: what a process has open is not looked for again."""
    folder = path.parent / f"passages-{next(FOLDERS)}"
    build(path, distractors, folder)
    return HotpotqaRecipe(str(folder), documents, **fields)


def samples(path: Path, distractors="", documents=12, **fields) -> list[Problem]:
    source = recipe(path, distractors, documents, **fields)
    return [whole(source, source.sample(index)) for index in range(len(source))]


def whole(source: HotpotqaRecipe, problem: Problem) -> Problem:
    """The sample as it is read from its folder's file."""
    assert problem.passage_file == "passages.arrow"
    return replace(problem, passage_file=f"{source.folder}/{problem.passage_file}")


def documents_of(problem: Problem) -> list[tuple[str, str]]:
    """(title, text) of each document, in order, with the numbers checked."""
    parts = [part.split("\n") for part in re.split(r"\n\n(?=Document \d+:)", document_text(problem))]
    assert [part[0] for part in parts] == [f"Document {i}:" for i in range(1, len(parts) + 1)]
    return [(title, text) for _, title, text in parts]


def titles_of(problem: Problem) -> list[str]:
    return [title for title, _ in documents_of(problem)]


@pytest.fixture
def distractors(tmp_path):
    return distractors_file(tmp_path, [f"Other {n}" for n in range(50)])


def test_a_question_is_hidden_among_its_own_and_other_paragraphs(tmp_path, distractors):
    problem = samples(questions_file(tmp_path, [question(1)]), distractors)[0]
    assert (problem.id, problem.question, problem.answers, problem.task) == ("q1", "What is 1?", ("answer 1",), "qa")
    documents = documents_of(problem)
    assert len(documents) == len(dict(documents)) == 12
    own = [(f"Q1 paragraph {n}", f"Q1 paragraph {n} begins. It goes on.") for n in range(OWN)]
    assert set(own) <= set(documents)
    assert all(text == f"About {title}." for title, text in documents if (title, text) not in own)


def test_metadata_says_what_it_is_and_where_the_gold_paragraphs_are(tmp_path, distractors):
    source = recipe(questions_file(tmp_path, [question(1)]), distractors, set_name="ruler_hqa", task="values")
    problem = whole(source, source.sample(0))
    gold = problem.metadata.pop("gold_documents")
    assert problem.metadata == {
        "gold_titles": ["Q1 paragraph 2", "Q1 paragraph 0"],
        "set": "ruler_hqa",
        "length": 12,
        "documents": 12,
        "type": "bridge",
        "level": "hard",
    }
    titles = titles_of(problem)
    assert [titles[n - 1] for n in gold] == problem.metadata["gold_titles"]
    assert problem.task == "values"


def test_the_gold_paragraphs_stand_anywhere_with_equal_chance(tmp_path):
    distractors = distractors_file(tmp_path, [f"Other {n}" for n in range(100)])
    problems = samples(questions_file(tmp_path, [question(i) for i in range(2000)]), distractors, 20)
    for gold in range(2):
        places = Counter(problem.metadata["gold_documents"][gold] for problem in problems)
        chi_square = sum((places[place] - 100) ** 2 / 100 for place in range(1, 21))
        assert chi_square < 43.8  # 19 degrees of freedom: 99.9% of uniform draws stay below
    pairs = Counter(tuple(problem.metadata["gold_documents"]) for problem in problems)
    assert len(pairs) > 350  # of 380, 5.3 questions for each
    titles = Counter(title for problem in problems for title in titles_of(problem) if title.startswith("Other"))
    expected = 2000 * (20 - OWN) / 100
    assert sum((titles[f"Other {n}"] - expected) ** 2 / expected for n in range(100)) < 148.2  # 99 degrees, 99.9%


def test_every_question_draws_its_own_others(tmp_path, distractors):
    a, b = samples(questions_file(tmp_path, [question(1), question(2)]), distractors)
    assert {t for t in titles_of(a) if t.startswith("Other")} != {t for t in titles_of(b) if t.startswith("Other")}


def test_the_same_seed_gives_the_same_documents_whatever_stands_around_them(tmp_path, distractors):
    rows = [question(i) for i in range(5)]
    first = {p.id: documents_of(p) for p in samples(questions_file(tmp_path, rows), distractors)}
    again = {p.id: documents_of(p) for p in samples(questions_file(tmp_path, rows[::-1][:3]), distractors)}
    assert all(again[i] == first[i] for i in again) and len(again) == 3


def test_a_sample_does_not_depend_on_those_made_before_nor_on_the_process(tmp_path, distractors):
    source = recipe(questions_file(tmp_path, [question(i) for i in range(5)]), distractors)
    in_order = [source.sample(i) for i in range(5)]
    assert [pickle.loads(pickle.dumps(source)).sample(i) for i in reversed(range(5))] == in_order[::-1]


def test_another_seed_gives_other_documents(tmp_path, distractors):
    source = recipe(questions_file(tmp_path, [question(1)]), distractors)
    a, b = source.sample(0), replace(source, seed=1).sample(0)
    assert set(a.passages) != set(b.passages)


def test_a_shorter_documents_paragraphs_are_among_those_of_a_longer_one(tmp_path, distractors):
    source = recipe(questions_file(tmp_path, [question(i) for i in range(20)]), distractors)
    for index in range(20):
        lengths = [replace(source, documents=n).sample(index) for n in (OWN, 12, 13, 30, 54)]
        for shorter, longer in itertools.pairwise(lengths):
            assert set(shorter.passages) < set(longer.passages)
        shared = [row for row in lengths[2].passages if row in lengths[1].passages]
        assert shared != list(lengths[1].passages)  # another order, not the same with one more in it


def test_a_paragraph_with_a_title_of_the_questions_own_is_not_added(tmp_path):
    others = [f"Other {n}" for n in range(8)]
    distractors = distractors_file(tmp_path, [f"Q1 paragraph {n}" for n in range(OWN)] + others)
    source = recipe(questions_file(tmp_path, [question(1)]), distractors)
    for seed in range(20):
        documents = documents_of(whole(source, replace(source, seed=seed).sample(0)))
        assert {title for title, text in documents if text.startswith("About")} == set(others)
        assert sum(title.startswith("Q1") for title, _ in documents) == OWN


def test_a_title_that_comes_several_times_is_drawn_once(tmp_path):
    distractors = distractors_file(tmp_path, [f"Other {n % 8}" for n in range(80)])
    source = recipe(questions_file(tmp_path, [question(1)]), distractors)
    for seed in range(20):
        titles = titles_of(whole(source, replace(source, seed=seed).sample(0)))
        assert len(set(titles)) == 12
    with pytest.raises(DataError, match="12 paragraphs with different titles"):
        replace(source, documents=13).sample(0)


def test_without_a_file_the_others_come_from_the_other_questions(tmp_path):
    rows = [question(i) for i in range(3)]
    for row in rows:
        row["context"].append(["Shared", [f"In {row['_id']}."]])
        row["context"].append([f"{row['_id']} is empty", []])
    problems = samples(questions_file(tmp_path, rows), "", 3 * OWN + 1)
    everything = {f"Q{i} paragraph {n}" for i in range(3) for n in range(OWN)} | {"Shared"}
    for problem in problems:
        documents = dict(documents_of(problem))
        assert set(documents) == everything  # and no paragraph without text
        assert documents["Shared"] == f"In {problem.id}."


def test_as_many_documents_as_own_paragraphs_need_no_others(tmp_path):
    problem = samples(questions_file(tmp_path, [question(1)]), "", OWN)[0]
    assert set(titles_of(problem)) == {f"Q1 paragraph {n}" for n in range(OWN)}


def test_the_paragraphs_of_a_bad_row_still_serve_as_others(tmp_path):
    source = recipe(questions_file(tmp_path, [question(0, answer=None), question(1), question(2)]), "", 3 * OWN)
    with pytest.raises(BadRow):
        source.sample(0)
    assert sum(title.startswith("Q0") for title in titles_of(whole(source, source.sample(1)))) == OWN


def test_too_few_paragraphs_are_an_error_that_says_how_many_there_are(tmp_path, distractors):
    path = questions_file(tmp_path, [question(1)])
    source = recipe(path, distractors, OWN + 50)
    assert len(source.sample(0).passages) == OWN + 50
    with pytest.raises(DataError, match=r"passages.arrow: .* 54 paragraphs .* too few for documents=55"):
        replace(source, documents=OWN + 51).sample(0)
    with pytest.raises(DataError, match="4 paragraphs .* too few for documents=5"):
        recipe(path, "", OWN + 1).sample(0)


def test_a_token_budget_is_filled_as_far_as_it_goes(tmp_path, random_model):
    """Never above; and the next paragraph drawn would have gone above it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(random_model)
    distractors = distractors_file(tmp_path, [f"Other {n} {'and so on ' * (n % 7)}" for n in range(80)])
    source = recipe(questions_file(tmp_path, [question(i) for i in range(8)]), distractors)
    longest = replace(source, documents=OWN + 80)
    for index, tokens in itertools.product(range(8), (200, 333, 800)):
        budget = replace(source, documents=0, tokens=tokens, tokenizer=str(random_model))
        problem = budget.sample(index)
        text = document_text(whole(source, problem))
        assert len(encode_text(tokenizer, text)) <= tokens
        assert (problem.metadata["length"], problem.metadata["documents"]) == (tokens, len(problem.passages))
        one_more = replace(source, documents=len(problem.passages) + 1).sample(index)
        assert set(problem.passages) < set(one_more.passages) < set(longest.sample(index).passages)
        # A token is a word here, so that the order of the paragraphs makes no difference to their number.
        assert len(encode_text(tokenizer, document_text(whole(source, one_more)))) > tokens


def test_token_budgets_that_cannot_be_met(tmp_path, distractors, random_model):
    source = recipe(questions_file(tmp_path, [question(1)]), distractors, 0, tokens=20, tokenizer=str(random_model))
    with pytest.raises(BadRow, match="own 4 paragraphs are longer than tokens=20"):
        source.sample(0)
    assert source.row(0)[1]["context"][0] == ["Q1 paragraph 0", ["Q1 paragraph 0 begins. It goes on."]]
    with pytest.raises(DataError, match="54 paragraphs .* too few for tokens=100000"):
        replace(source, tokens=100_000).sample(0)


@pytest.mark.parametrize("answer", [0, 1, 7, 100])
@pytest.mark.parametrize("guess", [0, 1, 6, 7, 8, 90, 5000])
def test_the_last_number_that_fits_is_found_from_any_guess(answer, guess):
    tried = []
    assert last_that_fits(lambda n: tried.append(n) or n <= answer, guess) == answer
    assert len(tried) < 2 * 14 and min(tried) >= 0
    assert last_that_fits(lambda n: False, guess) == -1


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
        ({"context": [["a", []], ["b", [" "]]], "supporting_facts": []}, "no paragraph of 'context' holds text"),
        ({"supporting_facts": {"title": ["a"]}}, "'supporting_facts' must be a list"),
        ({"supporting_facts": [["Q1 paragraph 0", 0], ["Nowhere", 0]]}, "names Nowhere, which"),
        ({"supporting_facts": [["Blank", 0]], "context": [["Blank", []], ["b", ["c"]]]}, "names Blank, which"),
    ],
)
def test_a_bad_row_is_kept_with_its_reason(tmp_path, distractors, changes, reason):
    rows = [question(0), question(1, **changes), question(2)]
    source = recipe(questions_file(tmp_path, rows), distractors)
    with pytest.raises(BadRow) as raised:
        source.sample(1)
    assert reason in str(raised.value)
    assert source.row(1) == ("questions.json:2", rows[1])
    assert [source.sample(index).id for index in (0, 2)] == ["q0", "q2"]


def test_a_question_with_more_paragraphs_than_the_document_is_bad(tmp_path, distractors):
    context = [[f"t{n}", ["x"]] for n in range(13)]
    path = questions_file(tmp_path, [question(1, context=context, supporting_facts=[])])
    source = recipe(path, distractors)
    with pytest.raises(BadRow, match="brings 13 paragraphs, more than documents=12"):
        source.sample(0)
    assert source.row(0) == ("q1", {"_id": "q1", "question": "What is 1?", "context": context})
    assert len(replace(source, documents=13).sample(0).passages) == 13


def test_rows_that_are_no_objects_are_bad(tmp_path, distractors):
    rows = [question(0), "text", 1.5, None]
    source = recipe(questions_file(tmp_path, rows), distractors)
    for index in (1, 2, 3):
        with pytest.raises(BadRow, match="not an object"):
            source.sample(index)
        assert source.row(index) == (f"questions.json:{index + 1}", rows[index])


def test_a_question_without_an_id_is_called_by_its_place(tmp_path, distractors):
    row = question(1)
    del row["_id"]
    assert samples(questions_file(tmp_path, [row]), distractors)[0].id == "questions.json:1"


def test_an_empty_list_is_an_error(tmp_path, distractors):
    with pytest.raises(DataError, match="questions.json holds no questions"):
        recipe(questions_file(tmp_path, []), distractors)


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
        (b"[" + b"9" * 5000 + b"]", "is not JSON"),
        (b'[{"_id": "a"}, ' + b"[" * 20_000 + b"]" * 20_000 + b"]", "holds lists or objects nested deeper than 64"),
    ],
    ids=range(9),
)
def test_a_questions_file_of_another_format_is_an_error_and_leaves_nothing(tmp_path, distractors, content, message):
    path = tmp_path / "questions.json"
    path.write_bytes(content)
    for others in (distractors, ""):
        with pytest.raises(DataError, match=f"questions.json {message}.*expected a JSON list of questions"):
            build(path, others, tmp_path / "output")
    assert not is_built(str(tmp_path / "output")) and not list((tmp_path / "output").iterdir())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "not JSON"),
        ('["a", "b"]', "not an object with the texts"),
        ('{"title": "a", "text": ""}', "a distractor needs a title and a text"),
        ('{"title": "\\ud800", "text": "a"}', "not valid Unicode"),
    ],
)
def test_a_bad_distractor_is_put_aside_with_its_place_and_reason(tmp_path, distractors, line, reason):
    path = questions_file(tmp_path, [question(1)])
    first, *others = distractors.read_text().splitlines()
    distractors.write_text("\n".join([first, "", line, *others]))
    quarantine = build(path, distractors, tmp_path / "output")
    passages = open_passages(f"{tmp_path}/output/passages.arrow")
    assert [passages.title(row) for row in range(50)] == [f"Other {n}" for n in range(50)]
    entry = json.loads(quarantine.path.read_text())
    assert (entry["id"], entry["row"]) == (f"{distractors}:3", line) and reason in entry["reason"]
    assert (quarantine.rows, quarantine.bad) == (51, 1)


def test_too_many_bad_distractors_are_an_error_and_leave_nothing(tmp_path, distractors):
    path = questions_file(tmp_path, [question(1)])
    distractors.write_text(distractors.read_text() + "{}\n" * 3)
    with pytest.raises(DataError, match=r"distractors.jsonl: 3 of 53 rows are bad, more than max_bad_share=0.05"):
        build(path, distractors, tmp_path / "output")
    assert not list((tmp_path / "output").iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("d.parquet", "d.parquet is not a parquet file"),
        ("d.arrow", "d.arrow is not an Arrow IPC file"),
        ("d.txt", "d.txt: a passage file ends in"),
        ("d.jsonl", "d.jsonl: the data holds no rows"),
    ],
)
def test_a_distractors_file_of_another_format_is_an_error(tmp_path, name, message):
    (tmp_path / name).write_text("\n")
    with pytest.raises(DataError, match=f"{tmp_path}/{message}"):
        recipe(questions_file(tmp_path, [question(1)]), tmp_path / name)


def test_a_folder_that_is_built_again_is_read_again(tmp_path, distractors):
    folder = tmp_path / "output"
    source = HotpotqaRecipe(str(folder), 12)
    for count in (1, 3):
        build(questions_file(tmp_path, [question(i) for i in range(count)]), distractors, folder)
        assert len(source) == count and source.sample(count - 1).id == f"q{count - 1}"


def test_missing_files_are_errors(tmp_path, distractors):
    with pytest.raises(FileNotFoundError, match="none.json"):
        recipe(tmp_path / "none.json", distractors)
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
        recipe(questions_file(tmp_path, [question(1)]), tmp_path / "none.jsonl")


def test_the_passages_are_the_distractors_then_each_questions_own(tmp_path, distractors):
    source = recipe(questions_file(tmp_path, [question(1), question(2)]), distractors)
    passages = open_passages(f"{source.folder}/passages.arrow")
    titles = [passages.title(row) for row in range(len(passages))]
    own = [f"Q{i} paragraph {n}" for i in (1, 2) for n in range(OWN)]
    assert titles == [f"Other {n}" for n in range(50)] + own


@pytest.mark.parametrize("name", ["questions.arrow", "passages.arrow"])
def test_prepared_files_of_other_columns_are_refused(tmp_path, name):
    build(questions_file(tmp_path, [question(1)]), "", tmp_path)
    made = pa.table({"title": ["a"], "text": ["b"], "question": [1]})
    with pa.ipc.new_file(tmp_path / name, made.schema) as writer:
        writer.write_table(made)
    with pytest.raises(DataError, match=f"{name} was not written by jobs.prepare; remove"):
        len(HotpotqaRecipe(str(tmp_path), documents=2))
