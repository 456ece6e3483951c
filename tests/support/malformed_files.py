"""Files that are not as they should be: what makes them, for tests/unit/test_bad_files.py and test_bad_rows.py."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import yaml

from pipeline.agents.prompts import TEMPLATES
from pipeline.data.documents.passages import table_writer
from pipeline.evaluation.results import SCORES

SECRET = "hunter2"
LOADED = "loaded"  # the file that a pickle leaves when it is loaded


# Values. The job, its arguments, and what it says.

PASSWORD = f"s3://AKIA:{SECRET}@bucket/data"


# Files. What makes it, what reads it, and what is said.


def lying_offsets(path: Path) -> None:
    """A passage file in which the second text ends a terabyte away."""
    with table_writer(path) as writer:
        for title in "xyz":
            writer.add(title, 4 * title)
    patch(path, struct.pack("<4q", 0, 4, 8, 12), struct.pack("<4q", 0, 4, 1 << 40, 12))


def decreasing_offsets(path: Path) -> None:
    lying_offsets(path)
    patch(path, struct.pack("<4q", 0, 4, 1 << 40, 12), struct.pack("<4q", 0, 4, 2, 12))


def negative_offsets(path: Path) -> None:
    lying_offsets(path)
    patch(path, struct.pack("<4q", 0, 4, 1 << 40, 12), struct.pack("<4q", 0, -4, 8, 12))


def last_offset(path: Path) -> None:
    lying_offsets(path)
    patch(path, struct.pack("<4q", 0, 4, 1 << 40, 12), struct.pack("<4q", 0, 4, 8, 1 << 40))


def no_utf8(path: Path) -> None:
    table(path, title=["a", "b"], text=pa.array([b"good", b"\xff\xfe"]).view(pa.string()))


def cut_off(path: Path) -> None:
    table(path, title=["a"] * 100, text=["b"] * 100)
    path.write_bytes(path.read_bytes()[:-200])


def overwritten_samples(path: Path) -> None:
    overwritten(path, "question", "document")


def overwritten(path: Path, *names: str) -> None:
    texts = [f"{number} " * 50 for number in range(1000)]
    table(path, **dict.fromkeys(names or ("title", "text"), texts))
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)


class Trace:
    """Its pickle leaves a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickled(path: Path) -> None:
    """A sample file whose metadata are Ray's pickled objects: to look at one would run it."""
    kind = {"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": ""}
    fields = [pa.field(name, pa.string()) for name in ("id", "question", "document", "answers")]
    schema = pa.schema([*fields, pa.field("metadata", pa.large_binary(), metadata=kind)])
    values = [["a"], ["q"], ["d"], ["x"], [pickle.dumps(Trace(path.parent / LOADED))]]
    columns = [pa.array(column, f.type) for column, f in zip(values, schema, strict=True)]
    pq.write_table(pa.table(columns, schema), path)


def pickled_within(path: Path) -> None:
    inner = pa.field("a", pa.large_binary(), metadata={"ARROW:extension:name": "ray.data.arrow_pickled_object"})
    trace = pickle.dumps(Trace(path.parent / LOADED))
    column = pa.array([[{"a": trace}]], pa.list_(pa.struct([inner])))
    pq.write_table(pa.table({"metadata": column}), path)


def pickled_in_a_dictionary(path: Path) -> None:
    inner = pa.field("a", pa.large_binary(), metadata={"ARROW:extension:name": "ray.data.arrow_pickled_object"})
    value = pa.array([{"a": pickle.dumps(Trace(path.parent / LOADED))}], pa.struct([inner]))
    table(path, title=["a"], text=["b"], more=pa.DictionaryArray.from_arrays(pa.array([0]), value))


def bad_extension(path: Path) -> None:
    """A column whose type's own code raises what it likes while the file is opened."""
    kind = {"ARROW:extension:name": "palimpsest.bad", "ARROW:extension:metadata": "not what it wants"}
    schema = pa.schema([("title", pa.string()), ("text", pa.string()), pa.field("more", pa.int64(), metadata=kind)])
    made = pa.table([["a"], ["b"], [1]], schema=schema)
    if path.suffix == ".parquet":
        pq.write_table(made, path)
    else:
        with pa.ipc.new_file(path, schema) as writer:
            writer.write_table(made)


class BadExtension(pa.ExtensionType):
    def __init__(self):
        super().__init__(pa.int64(), "palimpsest.bad")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage, serialized):
        raise TypeError("bad metadata")


def compressed(codec: str) -> Callable[[Path], None]:
    """Ten million characters in a few KB."""

    def make(path: Path) -> None:
        made = pa.table({"title": ["a"], "text": ["b" * 10_000_000]})
        with pa.ipc.new_file(path, made.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
            writer.write_table(made)

    return make


def name_that_is_not_utf8(path: Path) -> None:
    table(path, title=["a"], text=["b"], question=["q"], xxxxyyyy=["c"])
    path.write_bytes(path.read_bytes().replace(b"xxxxyyyy", b"\xff\xfexxyyyy"))


def null_rows(path: Path) -> None:
    table(path, question=pa.nulls(1_000_000, pa.string()))


def samples_without_utf8(path: Path) -> None:
    table(path, question=pa.array([b"\xff\xfe"]).view(pa.string()), answers=["a"], document=["d"])


def two_of_a_name(path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["q"])] * 2, names=["question", "question"]), path)


def table(path: Path, **columns) -> None:
    made = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(made, path)
    else:
        with pa.ipc.new_file(path, made.schema) as writer:
            writer.write_table(made)


def patch(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


def text(content: str | bytes):
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def columns(**values):
    return lambda path: table(path, **values)


def template(**texts) -> Callable[[Path], None]:
    """The prompts of the tiny language, but for these; None: without this key."""
    whole = yaml.safe_load((TEMPLATES / "tiny.yaml").read_text()) | texts
    return text(yaml.safe_dump({key: value for key, value in whole.items() if value is not None}))


def answered(**values) -> Callable[[Path], None]:
    """A line of results.jsonl, but for these values."""
    row = dict.fromkeys(SCORES, 1.0) | {
        "set": "a", "length": 1, "id": "i", "method": "memory", "sample": 0, "task": "qa", "question": "Who?",
        "answers": ["Ann"], "answer": "Ann", "cut": False, "cut_memories": 0, "error": None, "document_tokens": 1,
        "conversations": 1, "prompt_tokens": 1, "response_tokens": 1, "seconds": 1.0, "memories": [],
        "memory_trace": None,
    }  # fmt: skip
    return text(json.dumps(row | values) + "\n")


def old(**values) -> Callable[[Path], None]:
    """The same of a run from before there was the metric sub_em."""

    def make(path: Path) -> None:
        answered(**values)(path)
        row = json.loads(path.read_text())
        del row["sub_em"]
        path.write_text(json.dumps(row) + "\n")

    return make
