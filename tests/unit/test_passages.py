"""Passage files in their three formats, and the text of a document by reference."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.arrow_files import checked_batches
from pipeline.data.documents.passages import PassageFile, document_text, passage, read_passages, table_writer
from pipeline.errors import BadRow, DataError
from pipeline.files import atomic_output, exists, file_state, list_files, open_input, write_bytes, write_text
from pipeline.problems import Problem

PASSAGES = [("Moon", "It is round."), ("", "No title."), ("Mars", "Two\n\nparagraphs, Ünïcode.")]


def write_passages(path, passages=PASSAGES) -> str:
    match path.suffix:
        case ".arrow":
            with table_writer(path) as writer:
                assert [writer.add(*passage) for passage in passages] == list(range(len(passages)))
        case ".parquet":
            titles, texts = zip(*passages, strict=True)
            pq.write_table(pa.table({"number": range(len(texts)), "text": texts, "title": titles}), path)
        case ".jsonl":
            lines = (json.dumps({"title": title, "text": text}) + "\n" for title, text in passages)
            path.write_text("\n".join(lines))
    return str(path)


def problem(path: str, rows: list[int]) -> Problem:
    return Problem("p", "?", ("a",), passages=tuple(rows), passage_file=path)


@pytest.fixture(params=[".arrow", ".parquet", ".jsonl"])
def path(request, tmp_path) -> str:
    return write_passages(tmp_path / f"passages{request.param}")


def test_passages_are_read_by_row(path):
    passages = PassageFile(path)
    assert [(passages.title(row), passages.text(row)) for row in range(len(passages))] == PASSAGES
    assert [passage(row) for _, row in read_passages(path)] == PASSAGES


def test_the_text_of_a_document_by_reference(path):
    text = document_text(problem(path, [2, 1, 0]))
    assert text == (
        "Document 1:\nMars\nTwo\n\nparagraphs, Ünïcode.\n\nDocument 2:\nNo title.\n\nDocument 3:\nMoon\nIt is round."
    )


def test_the_text_of_a_document_by_value():
    assert document_text(Problem("p", "?", ("a",), "text")) == "text"


@pytest.mark.parametrize("row", [3, -1, 10**12])
def test_a_row_that_is_not_there_makes_a_malformed_sample(path, row):
    with pytest.raises(BadRow, match=f"'passages' names row {row}, but .* holds 3 rows"):
        document_text(problem(path, [0, row]))


@pytest.mark.parametrize("suffix", [".arrow", ".parquet", ".jsonl"])
def test_a_missing_file_is_named(tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match=f"none{suffix}: no such file"):
        document_text(problem(str(tmp_path / f"none{suffix}"), [0]))


@pytest.mark.parametrize("suffix", [".arrow", ".parquet", ".jsonl", ".txt"])
def test_a_malformed_file_is_an_error_that_names_it(tmp_path, suffix):
    file = tmp_path / f"passages{suffix}"
    file.write_text("not what it should be")
    with pytest.raises(DataError, match=f"passages{suffix}"):
        PassageFile(file)


@pytest.mark.parametrize("columns", [{"title": ["a"]}, {"title": ["a"], "text": [1]}, {"title": ["a"], "text": [None]}])
def test_other_columns_are_an_error(tmp_path, columns):
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "passages.parquet")
    with table_writer(tmp_path / "passages.arrow", table.schema) as writer:
        writer.add(*(values[0] for values in columns.values()))
    for name in ("passages.parquet", "passages.arrow"):
        with pytest.raises(DataError, match=f"{name}.*'text'"):
            PassageFile(tmp_path / name)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"title": "a"}', '{"title": 1, "text": "b"}', '{"title": "\\ud800", "text": "b"}']
)
def test_a_malformed_line_is_named(tmp_path, line):
    (tmp_path / "passages.jsonl").write_text(f'{{"title": "a", "text": "b"}}\n\n{line}\n')
    with pytest.raises(DataError, match=r"passages.jsonl:3: .*expected a line like"):
        PassageFile(tmp_path / "passages.jsonl")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b'["a", "b"]', "not an object with the texts"),
        (b'"{}"', "not an object with the texts"),
        (b'{"title": "a"}', "not an object with the texts"),
        (b'{"title": "\\ud800", "text": "b"}', "not valid Unicode"),
        (b'{"title": "a", "text": "\xff"}', "not valid Unicode"),
        (b'{"title": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
    ids=range(8),
)
def test_a_malformed_line_is_read_with_its_place_and_found_bad(tmp_path, line, reason):
    file = tmp_path / "passages.jsonl"
    file.write_bytes(b'{"title": "a", "text": "b"}\n\n' + line + b"\n")
    (_, good), (place, bad) = read_passages(file)
    assert passage(good) == ("a", "b") and place == f"{file}:3"
    with pytest.raises(BadRow, match=reason):
        passage(bad)


def test_malformed_rows_of_a_table_are_read_with_their_place_and_found_bad(tmp_path):
    no_unicode = pa.array([b"a", b"b", b"\xff"]).view(pa.string())
    table = pa.table({"title": no_unicode, "text": ["x", None, "z"]})
    pq.write_table(table, tmp_path / "passages.parquet")
    with pa.ipc.new_file(tmp_path / "passages.arrow", table.schema) as writer:
        writer.write_table(table)
    for path in (tmp_path / "passages.parquet", tmp_path / "passages.arrow"):
        rows = dict(read_passages(path))
        assert passage(rows[f"{path}: row 1"]) == ("a", "x")
        with pytest.raises(BadRow, match="not an object with the texts"):
            passage(rows[f"{path}: row 2"])
        with pytest.raises(BadRow, match="not valid Unicode"):
            passage(rows[f"{path}: row 3"])
        with pytest.raises(DataError, match=r"row 2 \(from 0\) is malformed: .*UTF8"):
            PassageFile(path)


def test_no_passages_are_a_file_too(tmp_path):
    assert len(PassageFile(write_passages(tmp_path / "passages.arrow", []))) == 0
    (tmp_path / "passages.jsonl").write_text("")
    assert len(PassageFile(tmp_path / "passages.jsonl")) == 0


def test_a_file_of_many_batches(tmp_path):
    count = 10_000
    path = write_passages(tmp_path / "passages.arrow", [(f"t{n}", f"text {n}") for n in range(count)])
    passages = PassageFile(path)
    assert passages.table.column("text").num_chunks > 1
    assert all(passages.title(n) == f"t{n}" for n in range(0, count, 7))


def test_an_arrow_file_is_mapped_and_not_copied(tmp_path):
    path = write_passages(tmp_path / "passages.arrow", [("t", "x" * 20_000)] * 5000)
    script = (
        "import pyarrow as pa, sys; from pipeline.data.documents.passages import PassageFile; "
        "file = PassageFile(sys.argv[1]); assert len(file.text(4999)) == 20_000; print(pa.total_allocated_bytes())"
    )
    allocated = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True).stdout
    assert os.path.getsize(path) > 100_000_000 and int(allocated) < 1_000_000


def test_a_file_is_checked_once_in_a_process_and_again_when_it_is_another_one(tmp_path, monkeypatch):
    checked = []

    def check(batches, path):
        checked.append(path)
        return checked_batches(batches, path)

    monkeypatch.setattr("pipeline.data.documents.passages.checked_batches", check)
    path = write_passages(tmp_path / "passages.arrow")
    for _ in range(3):
        PassageFile(path)
    assert checked == [path]
    write_passages(tmp_path / "passages.arrow", [("t", "another")])
    assert PassageFile(path).text(0) == "another" and checked == [path, path]


@pytest.mark.parametrize("rows", [[0], [1], [0, 1, 2], [2] * 7])
def test_the_size_of_a_document_is_known_before_it_is_put_together(path, rows):
    passages = PassageFile(path)
    size = len(passages.document(rows))
    without_numbers = size - sum(len(f"{number}") - 1 for number in range(1, len(rows) + 1))
    known = passages._characters(rows)
    assert without_numbers - len(rows) <= known <= without_numbers + 2 * len(rows)
    assert passages._bytes(rows) >= known
    passages.document(rows, known)
    with pytest.raises(BadRow, match=f"a document of {known} characters, over agent.document_characters={known - 1}"):
        passages.document(rows, known - 1)


def test_an_unfinished_file_is_not_there(tmp_path):
    with pytest.raises(RuntimeError), table_writer(tmp_path / "passages.arrow") as writer:
        writer.add("a", "b")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_uri_is_read_and_written_like_a_path(tmp_path):
    uri = f"file://{tmp_path}/folder/passages.arrow"
    with table_writer(uri) as writer:
        writer.add("a", "b")
    assert PassageFile(uri).title(0) == PassageFile(tmp_path / "folder/passages.arrow").title(0) == "a"
    assert list_files(f"file://{tmp_path}/folder", [".arrow"]) == [uri]


def test_files_are_read_whole_by_lines_and_from_anywhere(tmp_path):
    write_text(tmp_path / "new folder" / "a.txt", "one\ntwö\n")
    with open_input(tmp_path / "new folder" / "a.txt") as file:
        assert list(file) == [b"one\n", "twö\n".encode()]
        file.seek(4)
        assert file.readline().decode() == "twö\n"


def test_a_failed_writing_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"before")
    with pytest.raises(RuntimeError), atomic_output(path) as partial:
        partial.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    state = file_state(path)
    write_bytes(path, b"after")
    assert path.read_bytes() == b"after" and file_state(path) != state


def test_a_folder_is_listed_by_suffix_and_name(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.jsonl.partial", "d.txt"):
        write_text(tmp_path / name, "")
    write_text(tmp_path / "folder.jsonl" / "e.jsonl", "")
    assert [path.rpartition("/")[2] for path in list_files(tmp_path, [".jsonl", ".parquet"])] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        list_files(tmp_path / "none", [""])


def test_what_is_not_there_and_what_cannot_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not exists("none.txt") and exists(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"none.txt: no such file \\(from {tmp_path}\\)"):
        open_input("none.txt")
    with pytest.raises(DataError, match="web://host/a.txt: .* s3, gs, hf or file"):
        open_input("web://host/a.txt")


def test_a_parquet_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"title": ["a"] * 10_000, "text": ["b" * 1000] * 10_000, "more": [0] * 10_000}), path)
    assert len(PassageFile(path)) == 10_000 and PassageFile(path).table.column_names == ["title", "text"]
    monkeypatch.setattr("pipeline.data.documents.passages.UNPACKED_BYTES", 1_000_000)
    with pytest.raises(DataError, match="p.parquet unpacks to more than 1000000 bytes, 100 times its size"):
        PassageFile(path)
    with pytest.raises(DataError, match="p.parquet unpacks to more than"):
        list(read_passages(path))
