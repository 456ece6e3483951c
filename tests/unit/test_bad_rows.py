"""A bad row is quarantined with the reason, whatever it is. No row is a traceback, a dead process, or code that runs.

One line of the table is one bad row.
"""

import json
import re
from pathlib import Path

import pytest

from jobs.support.inputs import whole_path
from pipeline.agents import load_agent
from pipeline.data.documents.passages import document_text, table_writer
from pipeline.data.quarantine import Quarantine
from pipeline.data.rows import row_rules
from pipeline.data.sample_files import SampleFiles
from pipeline.errors import BadRow
from pipeline.run.config import load_training_config
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.malformed_files import SECRET, lying_offsets

pytestmark = pytest.mark.usefixtures("soon")

HUGE = "x" * 200
GOOD = {"id": "good", "question": "Who?", "answers": ["Ann"], "document": "Ann did."}
LONG = {"document": None, "passages": [0], "passage_file": "passages.arrow"}  # a document by reference

ROWS = {
    # Code that a row names.
    "scorer that executes": ({"task": "os:execv"}, "'task' is 'os:execv'; a row may name qa, values, mine"),
    "scorer that deletes": ({"task": "shutil:rmtree"}, r"scorer.modules.mine=shutil:rmtree.*\"task\": \"mine\""),
    "scorer that is a built-in function": ({"task": "builtins:exec"}, "'task' is 'builtins:exec'"),
    "scorer of a module of ours": ({"task": "pipeline.rewards.scoring:values_found"}, "'task' is 'pipeline"),
    "scorer that is not there": ({"task": "quiz"}, "'task' is 'quiz'; a row may name qa, values, mine"),
    "scorer by its module": (
        {"task": "tests.support.bad_scorers:raises"},
        "'task' is 'tests.support.bad_scorers:raises'",
    ),
    "scorer with a name of thousands": ({"task": "a:" + "b" * 100_000}, "'task' is 'a:b+…'"),
    "scorer that is a list": ({"task": ["qa"]}, "'task' must be the name of a scorer"),
    "scorer with a terminal's escape": ({"task": "\x1b[2J:x"}, r"'task' is '\\x1b\[2J:x'"),
    # What is too large.
    "long document": ({"document": "d" * 2001}, "'document' has 2001 characters, over agent.document_characters=2000"),
    "document of many tokens": ({"document": "d" * 1001}, "document has 1001 tokens, over agent.document_tokens=1000"),
    "document of one passage often": (LONG | {"passages": [0] * 5000}, "a document of .* over agent.document_char"),
    "document of many passages": (LONG | {"passages": [0] * 150}, "document of 2100 characters or more, over agent.do"),
    "long question": ({"question": "q" * 201}, "'question' has 201 characters, over data.limits.question_characters"),
    "long id": ({"id": "i" * 51}, "'id' has 51 characters, over data.limits.id_characters=50"),
    "many answers": ({"answers": ["a"] * 6}, "'answers' has 6 texts, over data.limits.answers=5"),
    "long answer": ({"answers": ["a", "b" * 31]}, "one of 'answers' has 31 characters, over data.limits.answer_char"),
    "deep metadata": ({"metadata": {"a": [[[[1]]]]}}, "'metadata' has 5 levels, over data.limits.metadata_depth=4"),
    "large metadata": ({"metadata": {"a": HUGE}}, "'metadata' has 2.. characters, over data.limits.metadata_char"),
    "long line": (json.dumps(GOOD | {"more": "x" * 200_000}), "the line has .* bytes, over data.limits.row_bytes"),
    # Passage files elsewhere.
    "passage file by a whole path": (LONG | {"passage_file": "/etc/passwd"}, "/etc/passwd, outside the folder"),
    "passage file above": (LONG | {"passage_file": "../secret/p.arrow"}, "outside the folder of the sample file"),
    "passage file below and above": (LONG | {"passage_file": "a/../../p.arrow"}, "outside the folder of the sample"),
    "passage file above a linked folder": (
        LONG | {"passage_file": "linked/../outside.arrow"},
        "data/outside.arrow: no such file",
    ),
    "passage file above the folder, by a link": (LONG | {"passage_file": "linked/../../p.arrow"}, "outside the folder"),
    "passage file in a bucket": (LONG | {"passage_file": "s3://b/p.arrow"}, "outside the folder.*data.passage_folders"),
    "passage file by http": (LONG | {"passage_file": "http://h/p.arrow"}, "outside the folder of the sample file"),
    "passage file by a file URI": (LONG | {"passage_file": "file:///etc/p.arrow"}, "outside the folder of the sample"),
    "passage file by an escaped URI": (
        LONG | {"passage_file": "file://{folder}/%2e%2e/secret/p.arrow"},
        "that is .*/secret/p.arrow, outside the folder",
    ),
    "passage file with parameters": (
        LONG | {"passage_file": "s3://allowed/p.arrow?endpoint_override=evil.example"},
        "a path, or a URI without parameters",
    ),
    "passage file out of an allowed bucket": (
        LONG | {"passage_file": "s3://allowed/data/../../other/p.arrow"},
        "outside the folder",
    ),
    "passage file of many folders": (
        LONG | {"passage_file": 50_000 * "a/" + "p.arrow"},
        "'passage_file' has 100007 characters; a path has 4096 at most",
    ),
    "passage file of a long path": (LONG | {"passage_file": "/" + 2000 * "a/"}, "is /a/a.*….*a/, .* outside the fol"),
    "passage file of a long name": (LONG | {"passage_file": 300 * "a" + ".arrow"}, "'passage_file' cannot be used: "),
    "passage file of a closed folder": (LONG | {"passage_file": "closed.arrow"}, "cannot be used: .*closed"),
    "passage file with a zero byte": (LONG | {"passage_file": "p\0.arrow"}, "must be a path"),
    "passage file with a password": (
        LONG | {"passage_file": f"s3://me:{SECRET}@b/p.arrow"},
        "'passage_file' holds credentials; .*AWS_ACCESS_KEY_ID",
    ),
    "passage file with a signature": (
        LONG | {"passage_file": f"https://h/p.arrow?X-Amz-Signature={SECRET}"},
        "'passage_file' holds credentials",
    ),
    "passage file that is not there": (LONG | {"passage_file": "none.arrow"}, "none.arrow: no such file"),
    "passage file that is malformed": (LONG | {"passage_file": "lies.arrow"}, r"lies.arrow: row 1 \(from 0\)"),
    "passage file that is a folder": (LONG | {"passage_file": "folder.arrow"}, "folder.arrow: no such file"),
    "passage that is not there": (LONG | {"passages": [3]}, "'passages' names row 3"),
    "passage of a huge number": (LONG | {"passages": [10**30]}, "one or more row numbers"),
    "passage of a broken number": (LONG | {"passages": [1.5]}, "one or more row numbers"),
    # What is not a row.
    "no JSON": ("{no", "not JSON"),
    "thousands of brackets": ("[" * 3000, "not JSON"),
    "a number of thousands of digits": ('{"id": ' + "9" * 5000 + "}", "not JSON"),
    "a list": ("[]", "the row is a list, not an object"),
    "id that is an object": ({"id": {"a": 1}}, "'id' must be text, not dict"),
    "half a surrogate pair": ({"question": "\ud83d"}, "'question' is not valid Unicode"),
    "no question": ({"question": None}, "'question' must be text"),
    "no answers": ({"answers": []}, "'answers' must be a list"),
}  # fmt: skip

LIMITS = [
    "agent.document_characters=2000", "agent.document_tokens=1000", "data.limits.question_characters=200",
    "data.limits.id_characters=50", "data.limits.answers=5", "data.limits.answer_characters=30",
    "data.limits.metadata_depth=4", "data.limits.metadata_characters=200", "data.limits.row_bytes=200000",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a passage file, one outside of it with two links to it, and one whose offsets lie."""
    top = tmp_path_factory.mktemp("data")
    folder = top / "data"
    for path in (folder / "passages.arrow", top / "secret" / "p.arrow"):
        with table_writer(path) as writer:
            for _ in range(3):
                writer.add("title", "x" * 100)
    (folder / "link.arrow").symlink_to(top / "secret" / "p.arrow")
    (folder / "linked").symlink_to(top / "secret")
    (folder / "folder.arrow").mkdir()
    (folder / "closed.arrow").symlink_to("closed.arrow")  # to itself: an OSError, whoever asks
    (top / "outside.arrow").write_bytes((folder / "passages.arrow").read_bytes())
    lying_offsets(folder / "lies.arrow")
    return folder


@pytest.fixture(scope="module")
def agent_class():
    return load_agent("memory")


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_is_quarantined_with_the_reason(name, folder, tmp_path, agent_class):
    change, reason = ROWS[name]
    if isinstance(change, dict) and "passage_file" in change:
        change = change | {"passage_file": change["passage_file"].format(folder=folder)}
    (folder / "rows.jsonl").write_text(
        (change if isinstance(change, str) else json.dumps(GOOD | change)) + "\n" + json.dumps(GOOD) + "\n"
    )
    allowed = ["data.passage_folders=[s3://allowed/data]", "scorer.modules.mine=tests.support.bad_scorers:raises"]
    config = load_training_config(["preset=tiny", "agent.problem_tokens=200", *LIMITS, *allowed])
    config.agent.prompt_template = "memagent"
    source = SampleFiles.open(str(folder / "rows.jsonl"), row_rules(config))
    agent = agent_class(byte_tokenizer(), config.agent)
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=1)
    with pytest.raises(BadRow) as error:
        agent.tokenize(source.sample(0))
    row_id, row = source.row(0)
    quarantine.add(row_id, str(error.value), row)
    (written,) = map(json.loads, quarantine.path.read_text().splitlines())
    assert re.search(reason, written["reason"])
    assert SECRET not in quarantine.path.read_text() and len(written["reason"]) < 600
    assert agent.tokenize(source.sample(1)).document.tolist()


def test_a_link_lies_where_it_is_wherever_it_leads(folder, agent_class):
    """Its folder's owner made it; so is Hugging Face's cache."""
    blobs, snapshot = folder.parent / "blobs", folder.parent / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "a").write_text(json.dumps(GOOD | LONG) + "\n")
    (blobs / "b").write_bytes((folder / "passages.arrow").read_bytes())
    (snapshot / "train.jsonl").symlink_to("../../blobs/a")
    (snapshot / "passages.arrow").symlink_to("../../blobs/b")
    (folder.parent / "main").symlink_to("snapshots/1")
    for path in (snapshot, snapshot / "train.jsonl", folder.parent / "main", folder.parent / "main" / "train.jsonl"):
        for given in (str(path), whole_path(str(path))):
            assert document_text(SampleFiles.open(given).sample(0)).startswith("Document 1:")
    for name in ("link.arrow", "linked/p.arrow"):
        (folder / "rows.jsonl").write_text(json.dumps(GOOD | LONG | {"passage_file": name}) + "\n")
        assert document_text(SampleFiles.open(str(folder / "rows.jsonl")).sample(0)).startswith("Document 1:")


def test_what_the_configuration_allows_is_read(folder, agent_class):
    secret, task = folder.parent / "secret", "mine"
    allowed = [f"data.passage_folders=[{secret}]", f"scorer.modules.{task}=tests.support.bad_scorers:raises"]
    config = load_training_config(["preset=tiny", *allowed])
    for name in ("../secret/p.arrow", "link.arrow", "linked/p.arrow", f"{secret}/p.arrow", f"file://{secret}/p.arrow"):
        row = GOOD | LONG | {"passage_file": name, "task": task}
        (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
        problem = SampleFiles.open(str(folder / "rows.jsonl"), row_rules(config)).sample(0)
        assert problem.task == task and Path(problem.passage_file.removeprefix("file://")).samefile(secret / "p.arrow")


def test_what_prepare_puts_aside_holds_no_password():
    from pipeline.data.preparation import _aside
    from pipeline.data.samples import SampleRow

    row = {"id": "\ud83d", "passage_file": f"s3://AKIA:hü n{SECRET}@b", "question": f"see s3://A:ü{SECRET}@b"}
    line = _aside(SampleRow(0, "i", json.dumps(row), "bad"))
    assert SECRET not in line and "hü" not in line and json.loads(line)["row"]["id"] == "\ud83d"
    assert line.encode()
