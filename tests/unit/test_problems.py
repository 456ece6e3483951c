"""The problem file: what a row must be, and what happens to one that is not."""

import datetime
import json
from pathlib import Path

import pytest

from pipeline.data.quarantine import Quarantine
from pipeline.data.rows import decode_line, problem_from_row, write_problem_file
from pipeline.data.sample_files import SampleFiles, read_samples
from pipeline.errors import BadRow, DataError
from pipeline.problems import Problem

GOOD = {"id": "q1", "question": "Who?", "answers": ["Ann"], "document": "Ann did."}


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def quarantine(tmp_path):
    return Quarantine(tmp_path / "run" / "quarantine.jsonl", max_share=0.5)


def read(path: Path, quarantine: Quarantine) -> list[Problem]:
    return [problem for _, problem in read_samples(SampleFiles.open(str(path)), quarantine)]


def quarantined(quarantine: Quarantine) -> list[dict]:
    return [json.loads(line) for line in quarantine.path.read_text(encoding="utf-8").splitlines()]


def test_what_is_written_is_read_back(tmp_path, quarantine):
    problems = [
        Problem("a", "Who?", ("Ann", "Anna"), "Ann did.\n\n  And so on — ✓", "values", {"hops": 2}),
        Problem("b", "What?", ("no",), "<|im_end|> is text"),
    ]
    path = tmp_path / "problems.jsonl"
    assert write_problem_file(problems, path) == 2
    assert read(path, quarantine) == problems
    assert (quarantine.rows, quarantine.bad) == (2, 0)


def test_id_task_and_metadata_may_be_left_out(tmp_path, quarantine):
    row = {"question": "Who?", "answers": "Ann", "document": "Ann did."}
    path = write_lines(tmp_path / "p.jsonl", ["\n", row])
    assert read(path, quarantine) == [Problem("p.jsonl:2", "Who?", ("Ann",), "Ann did.", "qa", {})]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": None}, "'question' must be text, not NoneType"),
        ({"question": 7}, "'question' must be text, not int"),
        ({"question": "  "}, "'question' is empty"),
        ({"question": "half a pair: \ud83d"}, "'question' is not valid Unicode"),
        ({"document": ""}, "'document' is empty"),
        ({"document": ["a", "b"]}, "'document' must be text, not list"),
        ({"answers": None}, "'answers' must be a list"),
        ({"answers": []}, "'answers' must be a list"),
        ({"answers": ["Ann", " "]}, "'answers' must be a list"),
        ({"answers": [3]}, "'answers' must be a list"),
        ({"answers": {"a": "Ann"}}, "'answers' must be a list"),
        ({"answers": ["Ann", "\ud83d"]}, "'answers' holds text that is not valid Unicode"),
        ({"task": 1}, "'task' must be"),
        ({"task": ""}, "'task' must be"),
        ({"metadata": []}, "'metadata' must be an object"),
        ({"metadata": {"when": datetime.date(2026, 1, 1)}}, "'metadata' cannot be written as JSON"),
        ({"metadata": {"set": "half a pair: \ud83d"}}, "'metadata' holds text that is not valid Unicode"),
        ({"id": "half a pair: \ud83d"}, "'id' is not valid Unicode"),
    ],
)
def test_a_bad_field_is_named(change, reason):
    with pytest.raises(BadRow, match=reason):
        problem_from_row(GOOD | change, "row")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"id": ' + "9" * 5000 + "}"])
def test_a_line_that_python_cannot_read_is_a_bad_row(line):
    with pytest.raises(BadRow, match="not JSON"):
        decode_line(line)


@pytest.mark.parametrize("row", [[GOOD], "text", 3, None])
def test_a_row_is_an_object(row):
    with pytest.raises(BadRow, match="not an object"):
        problem_from_row(row, "row")


def test_bad_rows_are_set_aside_with_their_reasons(tmp_path, quarantine):
    rows = [GOOD, "{not json}\n", GOOD | {"id": "q2", "answers": []}, GOOD | {"id": "q3"}, GOOD | {"id": "q4"}]
    path = write_lines(tmp_path / "p.jsonl", rows)
    assert [p.id for p in read(path, quarantine)] == ["q1", "q3", "q4"]
    assert (quarantine.rows, quarantine.bad) == (5, 2)
    first, second = quarantined(quarantine)
    assert first["id"] == "p.jsonl:2" and first["reason"].startswith("not JSON") and first["row"] == "{not json}"
    assert second["id"] == "p.jsonl:3" and "'answers'" in second["reason"]


def test_text_that_is_not_unicode_is_set_aside_as_it_was_written(tmp_path, quarantine):
    path = write_lines(tmp_path / "p.jsonl", [GOOD, GOOD, GOOD | {"document": "\ud83d"}])
    assert len(read(path, quarantine)) == 2
    assert quarantined(quarantine)[0]["row"]["document"] == "\ud83d"


def test_a_decoded_row_that_is_not_unicode_can_be_set_aside(quarantine):
    quarantine.add("row", "no reason", {"question": "\ud83d ✓"})
    assert quarantined(quarantine) == [{"id": "row", "reason": "no reason", "row": {"question": "\ud83d ✓"}}]


def test_bytes_that_are_not_utf8_do_not_stop_the_reading(tmp_path, quarantine):
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps(GOOD).encode().replace(b"Ann did", b"Ann \xff did") + b"\n")
    assert [p.document for p in read(path, quarantine)] == ["Ann \N{REPLACEMENT CHARACTER} did."]


def test_too_many_bad_rows_stop_the_reading_early(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [GOOD] * 18 + [{}] * 100)
    quarantine = Quarantine(tmp_path / "q.jsonl", max_share=0.05)
    with pytest.raises(DataError, match=r"6 of 118 rows are bad, more than max_bad_share=0.05.*q.jsonl"):
        read(path, quarantine)
    assert len(quarantined(quarantine)) == 6 and quarantine.rows == 24


def test_the_share_that_is_allowed_is_allowed(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [GOOD] * 19 + [{}])
    assert len(read(path, Quarantine(tmp_path / "q.jsonl", max_share=0.05))) == 19


def test_a_small_file_is_judged_at_its_end(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [GOOD, {}, GOOD])
    with pytest.raises(DataError, match="1 of 3 rows are bad"):
        read(path, Quarantine(tmp_path / "q.jsonl", max_share=0.05))


def test_a_file_without_rows_is_an_error(tmp_path, quarantine):
    with pytest.raises(DataError, match="no rows"):
        read(write_lines(tmp_path / "p.jsonl", ["\n", "  \n"]), quarantine)


def test_a_missing_file_is_an_error(tmp_path, quarantine):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.jsonl", quarantine)


def test_a_bad_row_that_is_read_again_is_counted_once(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", max_share=1.0)
    for _ in range(3):
        quarantine.add("row 1", "no answer", {})
    assert quarantine.bad == 1 and len((tmp_path / "q.jsonl").read_text().splitlines()) == 1
