"""results.jsonl read back, and its rows grouped."""

import json

import pytest

from pipeline.evaluation.intervals import Interval, stratified_mean, wilson
from pipeline.evaluation.results import average_cells, cells, length_label, open_results, read_results, row_key
from tests.support.result_rows import row, rows_of


def written(tmp_path, text: str | bytes):
    path = tmp_path / "results.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [row(), row(1.0, id="q1"), row(sample=1), row(length=None), row(method="direct", error="late")]
    rows[0]["answer"] = "a\u2028b\u0085c\n\x0bd"  # characters at which str.splitlines would divide a line
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    assert read_results(written(tmp_path, text)) == rows
    assert read_results(written(tmp_path, text[:-1])) == rows  # complete but for its end
    assert read_results(written(tmp_path, "")) == []


@pytest.mark.parametrize(
    ("changes", "sub_em"),
    [
        ({}, 1.0),
        ({"answer": "\\boxed{y}"}, 0.0),
        ({"cut": True}, 0.0),
        ({"answer": None, "error": "late"}, 0.0),
        ({"answer": "\\boxed{x}", "answers": ["x", "y"], "task": "values"}, 0.5),
    ],
)
def test_a_row_from_before_there_was_sub_em_gets_it_from_its_answer(tmp_path, changes, sub_em):
    old = row() | changes
    del old["sub_em"]
    assert read_results(written(tmp_path, json.dumps(old) + "\n")) == [old | {"sub_em": sub_em}]


def test_a_length_that_older_rows_have_as_text_is_a_number(tmp_path):
    old, new = row(length="50"), row(length=50, id="q1")
    path = written(tmp_path, f"{json.dumps(old)}\n{json.dumps(new)}\n")
    assert read_results(path) == [old | {"length": 50}, new]
    assert [cell.length for cell in cells(open_results(path)[1])] == [50]  # so an evaluation resumes
    with pytest.raises(ValueError, match="line 2 repeats line 1"):
        read_results(written(tmp_path, f"{json.dumps(old)}\n{json.dumps(old | {'length': 50.0})}\n"))


def test_a_last_line_torn_anywhere_is_left_out(tmp_path):
    whole, torn = json.dumps(row()) + "\n", json.dumps(row(id="é"), ensure_ascii=False).encode()
    for length in {*range(1, len(torn), 11), torn.index("é".encode()) + 1, len(torn) - 1}:
        assert read_results(written(tmp_path, whole.encode() + torn[:length])) == [row()]


@pytest.mark.parametrize("end", ["\n", "", "\n{torn", "\n{"])
def test_rows_are_added_where_the_last_whole_one_ends(tmp_path, end):
    path = written(tmp_path, json.dumps(row()) + end)
    file, rows = open_results(path)
    assert rows == [row()]
    assert file.add(json.dumps(row(id="q1"))) == ""
    assert read_results(path) == [row(), row(id="q1")]


def test_errors_are_taken_out_to_be_asked_again(tmp_path):
    lines = [row(), row(0.0, id="q1", error="late"), row(0.0, id="q2", cut=True)]
    path = written(tmp_path, "".join(json.dumps(line) + "\n" for line in lines))
    _, rows = open_results(path)
    assert rows == read_results(path) == [lines[0], lines[2]]


def test_a_new_file_has_no_rows(tmp_path):
    _, rows = open_results(tmp_path / "results.jsonl")
    assert rows == [] and read_results(tmp_path / "results.jsonl") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("", "line 2 is not JSON"),
        ("[1]", "line 2 is not a row of results but list"),
        ('{"set": "niah"}', "line 2 lacks length, id"),
        (json.dumps(row(id="q1") | {"score": None}), "line 2: score must be a finite number, not None"),
        (json.dumps(row(id="q1", f1=float("nan"))), "line 2: f1 must be a finite number, not nan"),
        (json.dumps(row(id="q1") | {"set": ["niah"]}), "line 2: set must be a text, not \\['niah'\\]"),
        (json.dumps(row()), "line 2 repeats line 1: set 'niah', length 8192, id 'q0', method 'memory', sample 0"),
    ],
)
def test_any_other_bad_line_is_an_error_that_says_which(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read_results(written(tmp_path, json.dumps(row()) + "\n" + line + "\n"))


def test_bytes_that_are_no_text_are_an_error_too(tmp_path):
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        read_results(written(tmp_path, b"\xff\n" + json.dumps(row()).encode()))


def test_the_key_of_a_row():
    assert row_key(row(length=None, sample=3)) == ("niah", None, "q0", "memory", 3)


def test_cells_are_sorted_by_set_and_length_with_methods_as_they_came():
    places = [("b", 16384, "memory"), ("b", 8192, "memory"), ("b", 8192, "direct"), ("a", None, "direct")]
    places += [("a", 131072, "memory"), ("a", 8192, "direct"), ("a", "long", "memory"), ("a", None, "memory")]
    found = cells([row(set=set, length=length, method=method) for set, length, method in places])
    assert [(cell.set, cell.length, cell.method) for cell in found] == [
        ("a", None, "memory"),
        ("a", None, "direct"),
        ("a", 8192, "direct"),
        ("a", 131072, "memory"),
        ("a", "long", "memory"),
        ("b", 8192, "memory"),
        ("b", 8192, "direct"),
        ("b", 16384, "memory"),
    ]


def test_the_question_not_the_sample_is_the_unit():
    rows = [row(1.0, id=f"q{q}", sample=s) for q in range(5) for s in range(8)]
    (cell,) = cells(rows)
    assert cell.interval == wilson(5, 5) and cell.questions == 5 and cell.rows == 40


def test_a_question_with_fewer_samples_weighs_the_same():
    (cell,) = cells([row(1.0), row(0.0, sample=1), row(0.0, sample=2), row(0.0, sample=3), row(1.0, id="q1")])
    assert cell.interval.mean == pytest.approx((0.25 + 1.0) / 2)


def test_errors_and_cut_answers_count_and_are_counted():
    rows = [row(), row(0.0, id="q1", error="late"), row(0.0, id="q2", cut=True), row(0.0, id="q3", error="x", cut=True)]
    (cell,) = cells(rows)
    assert cell.interval == wilson(1, 4)
    assert (cell.errors, cell.cut) == (2, 2)


def test_the_median_document_length_is_over_questions_that_know_theirs():
    tokens = {"q0": 100, "q1": 300, "q2": 1000, "q3": None}
    rows = [row(id=id, document_tokens=n, sample=s) for id, n in tokens.items() for s in range(3 if id == "q2" else 1)]
    assert cells(rows)[0].document_tokens == 300
    assert cells([row(document_tokens=None)])[0].document_tokens is None


def test_an_interval_of_ones_own_sees_the_rows_of_its_cell():
    rows = [row(1.0), row(0.0, id="q1"), row(0.0, id="q1", sample=1), row(method="direct")]
    own = cells(rows, "f1", lambda of_cell, metric: Interval(len(of_cell), 0.0, len(metric), 7))
    assert [cell.interval for cell in own] == [(3, 0.0, 2, 7), (1, 0.0, 2, 7)]
    assert [cell.questions for cell in own] == [2, 1]


def test_any_metric_can_be_asked_for():
    assert cells([row(1.0, f1=0.0)], "f1")[0].interval.mean == 0.0


def test_the_average_over_sets_is_the_mean_of_their_means():
    rows = rows_of([1, 1, 0, 1], set="a") + rows_of([0, 1], set="b") + rows_of([1], set="c", length=16384)
    (average,) = average_cells(rows)
    assert average.interval == stratified_mean([[1, 1, 0, 1], [0, 1]])
    assert average.interval.mean == pytest.approx((0.75 + 0.5) / 2)
    assert (average.set, average.length, average.sets) == ("average", 8192, ("a", "b"))
    assert (average.questions, average.rows) == (6, 6)


def test_sets_without_lengths_have_no_average():
    assert average_cells(rows_of([1], set="a", length=None) + rows_of([1], set="b", length=None)) == []


def test_averages_keep_the_order_of_methods_though_a_set_lacks_one():
    rows = [row(set=set, method=m) for set, m in [("z", "memory"), ("a", "direct"), ("b", "memory"), ("b", "direct")]]
    assert [cell.method for cell in average_cells(rows)] == ["memory", "direct"]


@pytest.mark.parametrize(
    ("length", "label"),
    [(None, "all"), (50, "50"), (7000, "7000"), (7168, "7K"), (8192, "8K"), (8192.0, "8K"), (131072, "128K")]
    + [(917504, "896K"), (1048576, "1M"), (1835008, "1.75M"), (3670016, "3.5M"), ("long", "long")],
)
def test_lengths_are_shown_in_binary_units(length, label):
    assert length_label(length) == label
