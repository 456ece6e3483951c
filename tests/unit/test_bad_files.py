"""A bad file is an error that names it, whatever is in it. No file is a traceback, a dead process, or code that runs.

One line of the table is one bad file: what makes it, what reads it, and what is said.
"""

import json
import pickle
import re

import pyarrow as pa
import pyarrow.fs
import pytest

from pipeline.errors import BadRow, ConfigError, DataError
from tests.support.malformed_files import (
    LOADED,
    PASSWORD,
    SECRET,
    BadExtension,
    Trace,
    answered,
    bad_extension,
    columns,
    compressed,
    cut_off,
    decreasing_offsets,
    last_offset,
    lying_offsets,
    name_that_is_not_utf8,
    negative_offsets,
    no_utf8,
    null_rows,
    old,
    overwritten,
    overwritten_samples,
    pickled,
    pickled_in_a_dictionary,
    pickled_within,
    samples_without_utf8,
    template,
    text,
    two_of_a_name,
)
from tests.support.readers import (
    bucket,
    comparison,
    distractors,
    end,
    evaluation,
    fine_tuning,
    gguf,
    lease,
    model,
    passages,
    preset,
    preset_on_it,
    prompts,
    results,
    samples,
    training,
)

pytestmark = pytest.mark.usefixtures("soon")


@pytest.fixture(scope="module", autouse=True)
def registered():
    pa.register_extension_type(BadExtension())
    yield
    pa.unregister_extension_type("palimpsest.bad")


ROW_1 = r"row 1 \(from 0\)"

FILES = {
    "passages whose offsets lie": ("p.arrow", lying_offsets, passages, rf"p.arrow: {ROW_1} is malformed: .*Offset"),
    "passages whose offsets go back": ("p.arrow", decreasing_offsets, passages, rf"p.arrow: {ROW_1} is malformed"),
    "passages of negative offsets": ("p.arrow", negative_offsets, passages, r"p.arrow: row 0 \(from 0\) is malformed"),
    "passages that are not UTF-8": ("p.arrow", no_utf8, passages, rf"p.arrow: {ROW_1} is malformed: .*UTF8"),
    "passages that are not UTF-8, parquet": ("p.parquet", no_utf8, passages, rf"p.parquet: {ROW_1} .*UTF8"),
    "passages that are not UTF-8, lines": (
        "p.jsonl", text(b'{"title": "a", "text": "b"}\n{"title": "a", "text": "\xff"}\n'), passages,
        "p.jsonl:2: .*not valid Unicode",
    ),
    "passages without a value": (
        "p.arrow", columns(title=["a", "b"], text=["c", None]), passages, f"p.arrow: {ROW_1} has no 'text'",
    ),
    "passages without a value, parquet": (
        "p.parquet", columns(title=["a", None], text=["c", "d"]), passages, f"p.parquet: {ROW_1} has no 'title'",
    ),
    "passages of numbers": ("p.arrow", columns(title=["a"], text=[1]), passages, "p.arrow: 'text' is int64"),
    "passages of bytes": ("p.arrow", columns(title=["a"], text=[b"a"]), passages, "p.arrow: 'text' is binary"),
    "passages without titles": ("p.parquet", columns(text=["a"]), passages, "p.parquet: 'title' is not there"),
    "passages that are cut off": ("p.arrow", cut_off, passages, "p.arrow is not an Arrow IPC file"),
    "passages that are cut off, parquet": ("p.parquet", cut_off, passages, "p.parquet is not a parquet file"),
    "passages that are overwritten, parquet": ("p.parquet", overwritten, passages, "p.parquet is a broken parquet"),
    "passages that are compressed": ("p.arrow", compressed("zstd"), passages, "p.arrow is compressed"),
    "passages that are compressed, lz4": ("p.arrow", compressed("lz4"), distractors, "p.arrow is compressed"),
    "passages with a bad type": ("p.arrow", bad_extension, passages, "p.arrow is not .*: bad metadata"),
    "passages with a bad type, parquet": ("p.parquet", bad_extension, passages, "p.parquet is not .*: bad metadata"),
    "passages with pickles in a dictionary": (
        "p.arrow", pickled_in_a_dictionary, passages, "'a' has the extension type ray.data",
    ),
    "passages with a name that is not UTF-8": (
        "p.arrow", name_that_is_not_utf8, passages, "p.arrow: the name of a column is not UTF-8",
    ),
    "passages with a name that is not UTF-8, parquet": (
        "p.parquet", name_that_is_not_utf8, passages, "p.parquet(: the name of a column is not UTF-8| is not)",
    ),
    "distractors whose offsets lie": ("p.arrow", lying_offsets, distractors, rf"p.arrow: {ROW_1} is malformed"),
    "distractors whose last offset lies": ("p.arrow", last_offset, distractors, r"p.arrow: row . .* is malformed"),
    "passages whose last offset lies": ("p.arrow", last_offset, passages, r"p.arrow: row . .* is malformed"),
    "distractors whose offsets go back": ("p.arrow", decreasing_offsets, distractors, rf"p.arrow: {ROW_1} is malf"),
    "passages that are nothing": ("p.arrow", text(""), passages, "p.arrow is not an Arrow IPC file"),
    "passages of another kind": ("p.txt", text("a"), passages, "p.txt: a passage file ends in"),
    "a line of passages that is no object": ("p.jsonl", text("[]\n"), passages, "p.jsonl:1: .*expected a line like"),
    "samples that are pickles": ("s.parquet", pickled, samples, "'metadata' has the extension type ray.data.arrow_pi"),
    "samples with pickles in a list": ("s.parquet", pickled_within, samples, "'a' has the extension type ray.data"),
    "samples that are no parquet": ("s.parquet", text("no"), samples, "s.parquet"),
    "samples that are overwritten": ("s.parquet", overwritten_samples, samples, "s.parquet: row group 0 cannot be"),
    "samples that are not UTF-8, parquet": ("s.parquet", samples_without_utf8, samples, "text that is not UTF-8"),
    "samples with a name that is not UTF-8": (
        "s.parquet", name_that_is_not_utf8, samples, "s.parquet(: the name of a column is not UTF-8| is not)",
    ),
    "samples with a bad type": ("s.parquet", bad_extension, samples, "s.parquet is not .*: bad metadata"),
    "samples of nothing, many": ("s.parquet", null_rows, samples, "s.parquet: 1000000 rows in .* cannot be samples"),
    "samples with two questions": ("s.parquet", two_of_a_name, samples, "s.parquet: there are two columns 'question'"),
    "samples that are none": ("s.jsonl", text("\n\n"), samples, "holds no rows"),
    "samples of another kind": ("s.csv", text("a,b"), samples, "ends in .jsonl or .parquet"),
    "model that is a list": ("config.json", text("[1, 2]"), model, "model.path=.*config.json is a list, not an object"),
    "model that is no JSON": ("config.json", text("{no"), model, "model.path="),
    "model of a list of positions": (
        "config.json", text('{"model_type": "llama", "max_position_embeddings": [1]}'), model, "max_position_embed",
    ),
    "preset that includes itself": ("a.yaml", text("preset: a\n"), preset, "configs/a.yaml builds on itself: a → a"),
    "preset that is a list": ("a.yaml", text("- 1\n- 2\n"), preset, "configs/a.yaml is a list"),
    "preset that is no YAML": ("a.yaml", text("a: [\n"), preset, "configs/a.yaml cannot be read"),
    "preset that is one word": ("a.yaml", text("word\n"), preset, "configs/a.yaml: unknown key 'word'"),
    "preset that is bytes": ("a.yaml", text(b"\xff\xfe\x00a"), preset, "configs/a.yaml cannot be read: 'utf-8' codec"),
    "preset that names a list": ("a.yaml", text("preset: [a, b]\n"), preset, "preset must be the name of one preset"),
    "preset that names none": ("a.yaml", text("preset: nowhere\n"), preset, "no preset 'nowhere'"),
    "preset with an object of Python": (
        "a.yaml", text("a: !!python/object/apply:os.mkdir [ran]\n"), preset, "a.yaml cannot be read: could not",
    ),
    "preset that reads the environment": (
        "a.yaml", text("run:\n  folder: ${oc.env:HOME}\n"), preset, "a.yaml: .*run.folder is not resolved",
    ),
    "preset that reads the environment after a backslash": (
        "a.yaml", text(r"run: {folder: '\\${oc.env:HOME}'}"), preset, "a.yaml: .*run.folder is not resolved",
    ),
    "preset on one that reads the environment": (
        "b.yaml", text("run:\n  folder: ${oc.env:HOME}\n"), preset_on_it, "b.yaml: .*run.folder is not resolved",
    ),
    "preset with a password": (
        "a.yaml", text(f"data:\n  path: {PASSWORD}\n"), preset, "data.path holds credentials",
    ),
    "preset with nan": ("a.yaml", text("data:\n  max_bad_share: .nan\n"), preset, "max_bad_share=nan is not a finite"),
    "GGUF file that is none": ("m.gguf", text("no"), gguf, "is not a GGUF file"),
    "GGUF file of a head alone": ("m.gguf", text(b"GGUF" + bytes(20)), gguf, "m.gguf cannot be read as a model"),
    "prompts that are nothing": ("p.yaml", text(""), prompts, "p.yaml"),
    "prompts that are a list": ("p.yaml", text("- a\n"), prompts, "p.yaml"),
    "prompts that are no YAML": ("p.yaml", text("memory: [\n"), prompts, "p.yaml"),
    "prompts that are bytes": ("p.yaml", text(b"\xff\xfe"), prompts, "p.yaml"),
    "prompts of thousands of brackets": ("p.yaml", text(5000 * "["), prompts, "p.yaml"),
    "prompts with an object of Python": (
        "p.yaml", text("memory: !!python/object/apply:os.mkdir [ran]\n"), prompts, "p.yaml is not YAML: could not",
    ),
    "prompts of no date": ("p.yaml", text("memory: 2001-99-99\n"), prompts, "p.yaml is not YAML: month must be in"),
    "prompts of no number": ("p.yaml", text("memory: !!int abc\n"), prompts, "p.yaml is not YAML: invalid literal"),
    "prompts of 5000 digits": ("p.yaml", text("memory: " + 5000 * "9"), prompts, "p.yaml is not YAML: Exceeds"),
    "prompts of aliases": (
        "p.yaml",
        text("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: &d [*c,*c]\ne: &e [*d,*d]\nmemory: [*e,*e,*e,*e,*e]\n"),
        prompts, r"p.yaml: memory must be text, not \[.{99}$",
    ),
    "prompts without an answer": ("p.yaml", template(answer=None), prompts, "p.yaml(.|\n)*answer"),
    "prompts with a misspelled key": ("p.yaml", template(memory=None, memry="{problem}"), prompts, "p.yaml: .*memry"),
    "prompts with a key that is a number": ("p.yaml", template(**{"2": "x"}), prompts, "key '2' is no"),
    "prompts of an older release": ("p.yaml", template(memory=None, update="{problem}"), prompts, "p.yaml: .*rename"),
    "prompts without a slot": ("p.yaml", template(memory="{problem} {memory}"), prompts, "p.yaml(.|\n)*chunk"),
    "prompts with an unknown slot": ("p.yaml", template(answer="{prompt} {memory}"), prompts, "p.yaml(.|\n)*prompt"),
    "prompts that are lists": ("p.yaml", template(answer=["a"]), prompts, "p.yaml(.|\n)*answer"),
    "prompts of no text": ("p.yaml", template(empty_memory=False), prompts, "p.yaml(.|\n)*empty_memory"),
    "prompts for a chat, perhaps": ("p.yaml", template(chat="perhaps"), prompts, "p.yaml(.|\n)*chat"),
    "end beyond the vocabulary": (
        "generation_config.json", text('{"eos_token_id": 99999999999}'), model, "eos_token_id has 99999999999, and",
    ),
    "end that is a name": ("generation_config.json", text('{"eos_token_id": "<eos>"}'), end, "generation_config.json"),
    "end below 0": ("generation_config.json", text('{"eos_token_id": -1}'), end, "generation_config.json"),
    "end of nothing": ("generation_config.json", text('{"eos_token_id": [null]}'), end, "generation_config.json"),
    "end that is no JSON": ("generation_config.json", text("{"), end, "generation_config.json is not JSON"),
    "answers that are no JSON": ("results.jsonl", text("{\n"), results, "results.jsonl, line 1 is not JSON"),
    "answers of an endless length": (
        "results.jsonl", answered(length=float("inf")), results, "results.jsonl, line 1",
    ),
    "answers of a set of null": ("results.jsonl", answered(set=None), results, "results.jsonl, line 1"),
    "answers of a huge score": (
        "results.jsonl", answered(score=10**400), results, "line 1: score must be a finite number, not 10+[.]{3}0+$",
    ),
    "answers of a score that is no number": ("results.jsonl", answered(f1="x"), results, "line 1: f1 must be a finite"),
    "answers of nan": ("results.jsonl", answered(f1=float("nan")), results, "line 1: f1 must be a finite number"),
    "answers of thousands of brackets": ("results.jsonl", text(3000 * "[" + "\n"), results, "line 1 is not JSON"),
    "answers of a set with half a surrogate pair": (
        "results.jsonl", answered(set="\ud800"), results, "line 1: set is not valid Unicode",
    ),
    "answers of a length with half a surrogate pair": (
        "results.jsonl", answered(length="\ud800"), results, "line 1: length is not valid Unicode",
    ),
    "answers of a method that is null": ("results.jsonl", answered(method=None), results, "line 1: method must be"),
    "answers of a task that is a list": ("results.jsonl", answered(task=[]), results, "line 1: task must be a text"),
    "answers that are a number": ("results.jsonl", answered(answers=5), results, "line 1: answers must be a list"),
    "answers that are lists": ("results.jsonl", answered(answers=[[]]), results, "line 1: answers must be a list"),
    "answers of tokens in words": (
        "results.jsonl", answered(document_tokens="x"), results, "line 1: document_tokens must be a number or null",
    ),
    "answers of a memory in words": (
        "results.jsonl", answered(memory_trace="x"), results, "line 1: memory_trace must be an object or null",
    ),
    "answers of a memory that counts nothing": (
        "results.jsonl", answered(memory_trace={"kept": 5}), results, "line 1: memory_trace must have pairs of numbers",
    ),
    "answers of another memory": (
        "results.jsonl", answered(memory_trace={"x": [1, 2]}), results,
        r"line 1: memory_trace has unknown names: \['x'\]",
    ),
    "an old answer that is a number": ("results.jsonl", old(answer=5), results, "line 1: answer must be a text"),
    "an old answer to nulls": ("results.jsonl", old(answers=None), results, "line 1: answers must be a list"),
    "answers to compare": ("results.jsonl", answered(score=10**400), comparison, "line 1: score must be"),
    "old answers to compare": ("results.jsonl", old(answer=5), comparison, "line 1: answer must be a text"),
    "answers without scores": ("results.jsonl", text('{"id": "a"}\n'), results, "results.jsonl, line 1"),
    "weights that are missing": ("w", lambda path: None, bucket, "cannot be read: No such file"),
    "weights that are nothing": ("w", text(""), bucket, "has 0 bytes, and its weights have 128"),
    "weights that are cut off": ("w", text(bytes(127)), bucket, "has 127 bytes, and its weights have 128"),
    "weights that are too long": ("w", text(bytes(129)), bucket, "has 129 bytes, and its weights have 128"),
    "lease that is nothing": ("lease.json", text(""), lease, "taken over"),
    "lease that is torn": ("lease.json", text('{"run": "a", "hos'), lease, "taken over"),
    "lease that is a list": ("lease.json", text("[]"), lease, "taken over"),
    "evaluation of a list": ("config.yaml", text("- 1\n"), evaluation, "config.yaml is a list"),
    "evaluation of no YAML": ("config.yaml", text("a: [\n"), evaluation, "config.yaml cannot be read"),
    "training of a list": ("config.yaml", text("[1, 2]\n"), training, "config.yaml is a list"),
    "training of no YAML": ("config.yaml", text("a: [\n"), training, "config.yaml cannot be read"),
    "training of a zero byte": ("config.yaml", text("\0"), training, "config.yaml cannot be read"),
    "training of bytes": ("config.yaml", text(b"\xff\xfe\x00a"), training, "config.yaml"),
    "training of thousands of brackets": ("config.yaml", text(5000 * "["), training, "config.yaml cannot be read"),
    "training of one word": ("config.yaml", text("word\n"), training, "config.yaml"),
    "training of nothing": ("config.yaml", text(""), training, "config.yaml names no model.dtype"),
    "training of fine-tuning": (
        "config.yaml",
        text("model: {dtype: float32}\nfine_tuning: {}\n"),
        training,
        "no section train: another job ran there",
    ),
    "fine-tuning of a list": (
        "config.yaml",
        text("model: {dtype: float32}\nfine_tuning: [1]\n"),
        fine_tuning,
        "other values than model.trust_remote_code=False",
    ),
    "training of no model": ("config.yaml", text("model: 3\n"), training, "config.yaml names no model.dtype"),
    "training of an object of Python": (
        "config.yaml", text("a: !!python/object/apply:os.system [ls]\n"), training, "config.yaml cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_an_error_that_names_it(name, tmp_path, capsys, monkeypatch):
    file, make, read, message = FILES[name]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / file)
    try:
        read(tmp_path / file)
        said = capsys.readouterr().err
    except (ConfigError, DataError, BadRow) as error:
        said = str(error)
    assert re.search(message, said), said
    assert SECRET not in said
    assert not (tmp_path / LOADED).exists() and not (tmp_path / "ran").exists()  # what Python's objects would make


def test_a_pickle_leaves_a_trace(tmp_path):
    pickle.loads(pickle.dumps(Trace(tmp_path / LOADED)))
    assert (tmp_path / LOADED).exists()


@pytest.mark.parametrize("content", ["[]", "5", "{", 3000 * "["])
def test_a_summary_that_is_none_does_not_count(content, tmp_path, capsys):
    from jobs.submit import report
    from jobs.support.run_folder import leave_interrupted

    (tmp_path / "summary.json").write_text(content)
    assert report(tmp_path) is None
    leave_interrupted(tmp_path, {"status": "x", "steps": 0})
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "interrupted"
    assert report(tmp_path) == "interrupted"
