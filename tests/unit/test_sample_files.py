"""Files in the sample schema as numbered samples: every row is found, by itself, and shuffles are permutations."""

import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.documents.passages import passage_text
from pipeline.data.quarantine import Quarantine
from pipeline.data.rows import PASSAGE_CHARACTERS, RowRules
from pipeline.data.sample_files import SampleFiles
from pipeline.errors import BadRow, DataError
from pipeline.problems import Problem
from pipeline.sections import RowLimits
from tests.support.samples import jsonl, row


def parquet(path: Path, rows: list[dict], group: int) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def ids(source: SampleFiles, order=None) -> list[str]:
    return [source.sample(i).id for i in (range(len(source)) if order is None else order)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n  \n"])
@pytest.mark.parametrize("read_bytes", [7, 64, 1 << 24])
def test_every_line_is_found_whatever_ends_it_and_however_it_is_read(tmp_path, monkeypatch, end, read_bytes):
    monkeypatch.setattr("pipeline.data.sample_files.READ_BYTES", read_bytes)
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
    hidden = whole | {"passage_file": "s3://bucket/a/../p.arrow%3Fendpoint_override=evil.example"}
    path = str(jsonl(tmp_path / "d.jsonl", [hidden]))
    assert SampleFiles.open(path, allowed).sample(0).passage_file == hidden["passage_file"]  # no "?" comes out of it


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


def columns(path: Path, **values) -> SampleFiles:
    """Rows in parquet, one of them if a column has one value, but for these columns."""
    count = len(next(iter(values.values())))
    rest = {"id": [f"q{i}" for i in range(count)], "question": ["q"] * count, "answers": ["a"] * count}
    pq.write_table(pa.table(rest | {"document": ["d"] * count} | values), path)
    return SampleFiles.open(str(path))


FAR = pa.array([2**62], pa.timestamp("us")), pa.array([2**30], pa.date32()), pa.array([2**62], pa.duration("us"))
NOWHERE = pa.array([1], pa.timestamp("us", tz="No/Where"))
TWICE = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])


@pytest.mark.parametrize("column", [*FAR, NOWHERE, TWICE])
def test_a_value_that_python_cannot_hold_costs_its_row_and_only_where_it_is_read(tmp_path, column):
    assert columns(tmp_path / "a.parquet", created=column).sample(0).id == "q0"
    inside = column if column is TWICE else pa.StructArray.from_arrays([column], names=["when"])
    source = columns(tmp_path / "b.parquet", metadata=inside)
    with pytest.raises(BadRow, match="the row cannot be read: |'metadata' cannot be written as JSON"):
        source.sample(0)
    row_id, shown = source.row(0)
    assert row_id == "b.parquet:1" and json.dumps(shown)


def test_a_row_that_is_not_there_is_a_bad_row(tmp_path):
    path = parquet(tmp_path / "a.parquet", [*map(row, range(4))], group=2)
    source = SampleFiles.open(str(path))
    source.entries["within"][1] = 2  # as if its group had another row
    with pytest.raises(BadRow, match="its row group has 2 rows, fewer than the file says"):
        source.sample(1)
    assert source.row(1) == ("a.parquet:2", "") and source.sample(2).id == "q2"


def test_rows_are_found_in_a_group_that_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.sample_files.GROUP_ROWS", 3)
    monkeypatch.setattr("pipeline.data.sample_files.GROUP_BYTES", 5000)
    path = parquet(tmp_path / "a.parquet", [*map(row, range(10))], group=100)
    assert ids(SampleFiles.open(str(path))) == [f"q{i}" for i in range(10)]
    monkeypatch.setattr("pipeline.data.sample_files.GROUP_BYTES", 200)
    _forget()
    with pytest.raises(DataError, match="a.parquet: row group 0 has over 200 bytes; write smaller ones"):
        SampleFiles.open(str(path)).sample(0)


def _forget() -> None:
    from pipeline.data.sample_files import _row_group

    _row_group.cache_clear()


ZEROS = pa.ListArray.from_arrays(pa.array([0, 1_000_000]), pa.nulls(1_000_000))


@pytest.mark.parametrize(
    "values",
    [
        {"document": ["d" * 5_000_000]},
        {"document": pa.array(["d" * 5_000_000]).dictionary_encode()},
        {"passages": ZEROS.cast(pa.list_(pa.int8()))},
        {"metadata": pa.StructArray.from_arrays([ZEROS.cast(pa.list_(pa.int8()))], names=["a"])},
    ],
)
def test_a_large_parquet_row_is_not_unpacked(tmp_path, values):
    rules = RowRules(limits=RowLimits(row_bytes=4_000_000))
    columns(tmp_path / "a.parquet", **values)
    source = SampleFiles.open(str(tmp_path / "a.parquet"), rules)
    with pytest.raises(BadRow, match="the row takes .* bytes, over data.limits.row_bytes=4000000"):
        source.sample(0)
    assert source.row(0) == ("a.parquet:1", "")


def test_rows_that_share_a_long_text_count_each_for_itself(tmp_path):
    shared = pa.array(["d" * 100_000] * 100).dictionary_encode()
    columns(tmp_path / "a.parquet", document=shared)
    source = SampleFiles.open(str(tmp_path / "a.parquet"), RowRules(limits=RowLimits(row_bytes=200_000)))
    assert len(source.sample(99).document) == 100_000


def test_more_passages_than_a_document_can_have_are_a_bad_row(tmp_path):
    many = row(0, document=None, passages=[0] * 100, passage_file="p.arrow")
    path = str(jsonl(tmp_path / "a.jsonl", [many]))
    with pytest.raises(BadRow, match="document of 1400 characters or more, over agent.document_characters=1399"):
        SampleFiles.open(path, RowRules(document_characters=1399)).sample(0)
    assert len(SampleFiles.open(path, RowRules(document_characters=1400)).sample(0).passages) == 100
    assert len(passage_text(1, "", "\n\n")) == PASSAGE_CHARACTERS


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [row(0), row(1)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert ids(SampleFiles.open(str(path))) == ["q0", "q1"]


def test_the_quarantine_keeps_the_beginning_of_a_large_row_and_no_credentials(tmp_path):
    secret = f"s3://me:{'hunter2' * 3000}@bucket/"
    large = {
        "question": "x" * 20_000_000,
        "answers": ["a"] * 2_000_000,
        "document": "d " * 4_990 + secret,
        "metadata": {"a": [f"{'y' * 50} " * 100_000, secret]},
        "passages": {1, 2},
    }
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=1)
    begin = time.process_time()
    for number, bad in enumerate((large, "a " * 10_000_000 + secret, large["question"], {"id": "a"})):
        quarantine.add(str(number), "bad", bad)
    assert time.process_time() - begin < 2
    written = quarantine.path.read_text()
    assert len(written) < 200_000 and "hunter2" not in written
    assert json.loads(written.splitlines()[3])["row"] == {"id": "a"}
