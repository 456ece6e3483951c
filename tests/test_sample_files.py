"""Files in the sample schema as numbered samples: every row is found, by itself, and shuffles are permutations."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.problems import BadRow, DataError, Problem, RowRules
from pipeline.sample_files import SampleFiles


def row(i: int, **changes) -> dict:
    return {"id": f"q{i}", "question": f"What is {i}?", "answers": [str(i)], "document": f"It is {i}. é"} | changes


def jsonl(path: Path, rows: list, end: str = "\n") -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
    path.write_bytes((end.join(lines)).encode())
    return path


def parquet(path: Path, rows: list[dict], group: int) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def ids(source: SampleFiles, order=None) -> list[str]:
    return [source.sample(i).id for i in (range(len(source)) if order is None else order)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n  \n"])
@pytest.mark.parametrize("read_bytes", [7, 64, 1 << 24])
def test_every_line_is_found_whatever_ends_it_and_however_it_is_read(tmp_path, monkeypatch, end, read_bytes):
    monkeypatch.setattr("pipeline.sample_files.READ_BYTES", read_bytes)
    for last in ("", end):
        path = jsonl(tmp_path / f"a{len(last)}.jsonl", [*map(row, range(5))], end)
        path.write_bytes(path.read_bytes() + last.encode())
        source = SampleFiles.open(str(path))
        assert [source.sample(i) for i in range(len(source))] == [
            Problem(f"q{i}", f"What is {i}?", (str(i),), f"It is {i}. é") for i in range(5)
        ]


def test_a_row_without_an_id_is_named_by_its_file_and_line(tmp_path):
    path = jsonl(tmp_path / "mine.jsonl", [row(0), "", {k: v for k, v in row(1).items() if k != "id"}])
    assert ids(SampleFiles.open(str(path))) == ["q0", "mine.jsonl:3"]


def test_parquet_and_json_lines_hold_the_same_samples(tmp_path):
    rows = [row(i, metadata={"hops": i}) for i in range(10)]
    lines = SampleFiles.open(str(jsonl(tmp_path / "a.jsonl", rows)))
    table = SampleFiles.open(str(parquet(tmp_path / "a.parquet", rows, group=3)))
    assert [lines.sample(i) for i in range(10)] == [table.sample(i) for i in range(10)]


def test_metadata_of_any_shape_goes_into_parquet_as_json_and_null_is_left_out(tmp_path):
    rows = [row(0, metadata=json.dumps({"a": [1, "b"]}), task=None), row(1, metadata=None, task="values")]
    source = SampleFiles.open(str(parquet(tmp_path / "a.parquet", rows, group=9)))
    assert (source.sample(0).metadata, source.sample(0).task) == ({"a": [1, "b"]}, "qa")
    assert (source.sample(1).metadata, source.sample(1).task) == ({}, "values")


def test_a_folder_is_all_its_sample_files_in_the_order_of_their_names(tmp_path):
    jsonl(tmp_path / "b.jsonl", [row(2), row(3)])
    jsonl(tmp_path / "a.jsonl", [row(0), row(1)])
    parquet(tmp_path / "c.parquet", [row(4)], group=1)
    (tmp_path / "notes.txt").write_text("not samples")
    assert ids(SampleFiles.open(str(tmp_path))) == [f"q{i}" for i in range(5)]


def test_passages_are_looked_for_beside_the_sample_file(tmp_path):
    reference = {"document": None, "passages": [3, 1], "passage_file": "passages.arrow"}
    for path in (
        jsonl(tmp_path / "a.jsonl", [row(0, **reference)]),
        parquet(tmp_path / "b.parquet", [row(0, **reference)], group=1),
    ):
        problem = SampleFiles.open(str(path)).sample(0)
        assert (problem.passages, problem.passage_file) == ((3, 1), f"{tmp_path}/passages.arrow")
    whole = row(1, **(reference | {"passage_file": "s3://bucket/passages.arrow"}))
    path = str(jsonl(tmp_path / "c.jsonl", [whole]))
    with pytest.raises(BadRow, match="outside the folder of the sample file.*data.passage_folders"):
        SampleFiles.open(path).sample(0)
    allowed = RowRules(passage_folders=("s3://bucket",))
    assert SampleFiles.open(path, allowed).sample(0).passage_file == whole["passage_file"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"passages": [1], "passage_file": "p"}, "'document' and 'passages' exclude each other"),
        ({"document": None, "passages": []}, "one or more row numbers"),
        ({"document": None, "passages": [-1], "passage_file": "p"}, "one or more row numbers"),
        ({"document": None, "passages": [True], "passage_file": "p"}, "one or more row numbers"),
        ({"document": None, "passages": [1]}, "'passage_file' must be text"),
        ({"metadata": "no object"}, "not JSON"),
        ({"metadata": "[1]"}, "'metadata' must be an object"),
    ],
)
def test_a_bad_row_says_what_is_wrong_and_gives_itself_to_be_written_aside(tmp_path, change, reason):
    source = SampleFiles.open(str(jsonl(tmp_path / "a.jsonl", [row(0), row(1, **change)])))
    with pytest.raises(BadRow, match=reason):
        source.sample(1)
    assert source.row(1) == ("a.jsonl:2", row(1, **change))


def test_a_line_that_is_no_json_and_bytes_that_are_no_text_are_bad_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{no\n\xff\xfe\n" + json.dumps(row(0)).encode())
    source = SampleFiles.open(str(path))
    for i in (0, 1):
        with pytest.raises(BadRow, match="not JSON"):
            source.sample(i)
    assert source.row(0) == ("a.jsonl:1", "{no")
    assert source.sample(2).id == "q0"


def test_what_holds_no_samples_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SampleFiles.open(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no file that ends in"):
        SampleFiles.open(str(tmp_path))
    with pytest.raises(DataError, match="holds no rows"):
        SampleFiles.open(str(jsonl(tmp_path / "empty.jsonl", ["", " "])))
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="broken.parquet"):
        SampleFiles.open(str(tmp_path / "broken.parquet"))


def test_an_order_is_a_permutation_of_its_own_in_every_pass_and_the_same_for_the_same_seed(tmp_path):
    source = SampleFiles.open(str(jsonl(tmp_path / "a.jsonl", [*map(row, range(500))])))
    orders = [source.order(seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert sorted(order.tolist()) == list(range(500))
        assert abs(np.corrcoef(order, np.arange(500))[0, 1]) < 0.15
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert (source.order(0, 0) == orders[0]).all()


def test_the_rows_of_a_parquet_row_group_stay_together(tmp_path):
    source = SampleFiles.open(str(parquet(tmp_path / "a.parquet", [*map(row, range(40))], group=10)))
    order = source.order(0, 0)
    groups = order.reshape(4, 10) // 10
    assert (groups == groups[:, :1]).all() and sorted(groups[:, 0].tolist()) == [0, 1, 2, 3]
    assert groups[:, 0].tolist() != [0, 1, 2, 3] and (order[:10] % 10).tolist() != list(range(10))
