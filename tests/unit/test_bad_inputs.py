"""What is wrong with an input is said, whatever it is: a bad row is quarantined with the reason, a bad value or file is
an error before anything starts. No input is a traceback, a dead process, or code that runs.

One line of a table is one bad input. No test here starts Ray.
"""

import contextlib
import importlib
import json
import os
import pickle
import re
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.figures.recipe import FiguresConfig
from jobs.support.driver import whole_path
from jobs.support.ray_token import ClusterError, check_listener, private_folder, require_token
from pipeline.agents import load_agent
from pipeline.agents.memory import MemoryAgent
from pipeline.agents.prompts import TEMPLATES, Prompts, load_template
from pipeline.config import load_config
from pipeline.credentials import has_credentials, without_credentials
from pipeline.data.documents.passages import PassageFile, document_text, read_passages, table_writer
from pipeline.data.quarantine import Quarantine
from pipeline.data.recipes import RECIPES
from pipeline.data.rows import row_rules
from pipeline.data.sample_files import SampleFiles
from pipeline.end_tokens import named_end_tokens
from pipeline.errors import BadRow, ConfigError, DataError
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.results import SCORES, read_results
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.lease import take_lease
from pipeline.run.config import TrainingConfig, load_training_config
from pipeline.weights.bucket_files import BucketError, read_bucket_file
from tests.support.byte_tokenizer import byte_tokenizer

LIMIT_S = 5.0
HUGE = "x" * 200
SECRET = "hunter2"
LOADED = "loaded"  # the file that a pickle leaves when it is loaded


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What takes seconds once."""
    import ray.job_submission  # noqa: F401
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: F401


@pytest.fixture(autouse=True)
def soon(imported):
    """Each says so in a few seconds (of this process: the machine may be busy)."""
    begin = time.process_time()
    yield
    assert time.process_time() - begin < LIMIT_S


# Rows. What is changed in a good one (a text: the whole line), and what the quarantine says.

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


# Values. The job, its arguments, and what it says.

PASSWORD = f"s3://AKIA:{SECRET}@bucket/data"
TRAIN = "train preset=tiny "

VALUES = {
    # Numbers.
    "share that is nan": (TRAIN + "data.max_bad_share=nan", "data.max_bad_share=nan is not a finite number"),
    "infinite learning rate": (TRAIN + "learner.learning_rate=inf", "learner.learning_rate=inf is not a finite"),
    "infinite discards": (TRAIN + "train.max_discarded=inf", "train.max_discarded=inf is not a finite number"),
    "endless document": (TRAIN + "data.synthetic_chunks=1e12", "data.synthetic_chunks=1e12: .*Integer"),
    "endless document, as a number": (TRAIN + "data.synthetic_chunks=1000000000000", "must lie between 0 and 1e.07"),
    "endless training": (TRAIN + "train.steps=1e20", "train.steps=1e20"),
    "endless training, as a number": (TRAIN + "train.steps=100000000000000000000", "must lie between 0 and 1e.09"),
    "negative seed": (TRAIN + "run.seed=-1", "run.seed=-1 must lie between 0 and"),
    "negative limit": (TRAIN + "data.limits.answers=-1", "data.limits.answers=-1 must lie between"),
    "negative staleness": (TRAIN + "train.max_staleness=-1", "train.max_staleness=-1 must lie between 0 and"),
    "negative decay": (TRAIN + "learner.weight_decay=-0.1", "learner.weight_decay=-0.1 must lie between 0 and"),
    "failed share above 1": (TRAIN + "train.max_failed_share=1.5", "train.max_failed_share=1.5 must lie between 0"),
    "negative bad share": (TRAIN + "data.max_bad_share=-0.1", "data.max_bad_share=-0.1 must lie between 0 and 1"),
    "huge seed": (TRAIN + "run.seed=99999999999", "run.seed=99999999999 must lie between 0 and"),
    "all at once": (TRAIN + "learner.weight_decay=nan scorer.timeout_s=-inf", "timeout_s=-inf(.|\n)*weight_decay=nan"),
    "negative top-p": ("evaluate preset=eval_tiny evaluate.top_p=-1", "evaluate.top_p=-1.0 must lie between 0 and 1"),
    "length that is nan": ("evaluate preset=eval_tiny data.synthetic_chunks=[nan]", "nan"),
    "one long length of two": ("evaluate preset=eval_tiny data.synthetic_chunks=[8,999999999]", "must lie between"),
    "many samples": ("prepare synthetic output=o count=999999999999", "count=999999999999 must lie between 0 and"),
    "share above 1": ("prepare synthetic output=o max_bad_share=7", "max_bad_share=7.0 must lie between 0 and 1"),
    "filter at nan": ("prepare filter preset=eval_tiny output=o data.max_bad_share=nan", "not a finite number"),
    "fine-tuning at inf": ("fine_tune learner.learning_rate=inf", "learner.learning_rate=inf is not a finite number"),
    "figures of no seed": ("figures seeds=[]", "seeds is empty"),
    "figures of a seed below 0": ("figures seeds=[-1]", "must lie between 0 and"),
    "submitted nan": ("submit preset=tiny data.max_bad_share=nan", "data.max_bad_share=nan is not a finite number"),
    "bench without end": ("bench.asynchrony steps=99999999999", "steps=99999999999 must lie between"),
    "endless training, of 400 digits": (TRAIN + "train.steps=" + 400 * "9", "a number of 1329 bits must lie between"),
    "seed of 5000 digits": (TRAIN + "run.seed=" + 5000 * "9", "run.seed=9+…: Exceeds the limit"),
    "seed of 5000 hexadecimal digits": (TRAIN + "run.seed=0x" + 5000 * "f", "run.seed=a number of 20000 bits must lie"),
    "seed that is no number": (TRAIN + "run.seed='!!int abc'", "run.seed=!!int abc: invalid literal"),
    "name that is no time": (TRAIN + "run.name='!!timestamp 2001-99-99'", "run.name=!!timestamp .*: month must be"),
    "thousands of brackets, closed": (
        "evaluate preset=eval_tiny data.sets=" + 2000 * "[" + 2000 * "]", r"data.sets=\[+…: maximum recursion",
    ),
    "byte that is not UTF-8": (TRAIN + "run.folder=a\udc80", r"arguments are UTF-8 text; got 'run.folder=a\\udc80'"),
    # Code.
    "method that is a function": (TRAIN + "train.method=os:system", "the method 'os:system' is no agent"),
    "method that is another class": (TRAIN + "train.method=pathlib:Path", "the method 'pathlib:Path' is no agent"),
    "method with a dot before": (TRAIN + "train.method=.x:y", "'.x:y' is not spelled module:name"),
    "method without a name": (TRAIN + 'train.method="x:"', "'x:' is not spelled module:name"),
    "method that YAML reads otherwise": (TRAIN + "train.method=x:", "unknown key 'train.method.x'"),
    "method in no module": (TRAIN + "train.method=no_such:Agent", "cannot be loaded: ModuleNotFoundError"),
    "method of a broken module": (TRAIN + "train.method=tests.no_module:A", "cannot be loaded: SyntaxError"),
    "method in an evaluation": ("evaluate preset=eval_tiny evaluate.methods=[os:system]", "'os:system' is no agent"),
    "scorer that is no function": (TRAIN + "scorer.modules.mine=math:pi", "scorer.modules.mine=math:pi is no function"),
    "scorer that is not there": (TRAIN + "scorer.modules.mine=math:none", "scorer.modules.mine: 'math:none' cannot be"),
    "scorer without a function": (TRAIN + "scorer.modules.mine=math", "'math' is not spelled module:name"),
    "scorer with a built-in name": (TRAIN + "scorer.modules.qa=math:sin", "the name of a built-in scorer"),
    "scorer in an evaluation": ("evaluate preset=eval_tiny scorer.modules.mine=no:no", "scorer.modules.mine: 'no:no'"),
    "scorer of a filter": ("prepare filter preset=eval_tiny output=o scorer.modules.mine=no:no", "'no:no' cannot be"),
    "task of prepared samples": ("prepare hotpotqa path=p output=o task=os:execv", "task='os:execv'; there are"),
    # Prompt templates, filters, the model's end, the dtype.
    "no such prompts": (TRAIN + "agent.prompt_template=memagnet", "memagnet"),
    "prompts of a folder": (TRAIN + "agent.prompt_template=/", "agent.prompt_template"),
    "prompts that are not there": (TRAIN + "agent.prompt_template=/no/such/mine.yaml", "/no/such/mine.yaml"),
    "prompts of an unknown store": (TRAIN + "agent.prompt_template=web://x/mine.yaml", "web://x/mine.yaml"),
    "filter by a set that is not there": (
        "prepare filter preset=eval_tiny output=o data.source=file data.path=q.json only=[no/such]", "no/such|q.json",
    ),
    "filter of questions that are not there": (
        "prepare filter preset=eval_tiny output=o data.source=file data.path=no/such.json", "no/such.json",
    ),
    "filter by another rule": ("prepare filter preset=eval_tiny output=o rule=f1", "rule='f1' must be one of"),
    "filtered set that is not there": ("prepare hotpotqa path=p.json output=o only=[no/such]", "no/such|p.json"),
    "another dtype": (TRAIN + "model.dtype=float16", "model.dtype='float16' must be one of auto, float32, bfloat16"),
    "data of a file URI with one slash too few": (TRAIN + "data.source=file data.path=file:x", "file:x: .*hf://datasets/"),
    "prompts of a file URI with one slash too few": (TRAIN + "agent.prompt_template=file:x/", "file:x/: .*local path"),
    "data of the whole Hub": (TRAIN + "data.source=file data.path=hf://", "data.path: hf://: .*hf://datasets/<owner>"),
    "data of no data set": (TRAIN + "data.source=file data.path=hf://datasets", "hf://datasets: .*hf://datasets/<owner>"),
    # Interpolation.
    "environment": (TRAIN + "run.folder=${oc.env:HOME}", r"in run.folder is not resolved; .* interpolation=yes"),
    "another key": (TRAIN + "run.folder=${model.path}", "in run.folder is not resolved"),
    "environment in a list": ('evaluate preset=eval_tiny data.sets=["a","${oc.env:HOME}"]', "in data.sets.1 is not"),
    "environment in a mapping": (TRAIN + "scorer.modules.mine=${oc.env:HOME}", "modules.mine is not resolved"),
    "no such variable": (TRAIN + "interpolation=yes run.folder=${oc.env:NO_SUCH}", "NO_SUCH"),
    "no such interpolation": (TRAIN + "interpolation=maybe", "interpolation=maybe must be yes or no"),
    "unended interpolation": (TRAIN + "run.folder=${", r"run.folder=\$\{: no viable alternative"),
    "environment after two backslashes": (TRAIN + r"run.folder=\\${oc.env:HOME}", "in run.folder is not resolved"),
    "environment after four backslashes": (TRAIN + r"run.folder=\\\\${oc.env:HOME}", "in run.folder is not resolved"),
    # Credentials.
    "password in the data": (TRAIN + f"data.path={PASSWORD}", "data.path holds credentials.*AWS_ACCESS_KEY_ID"),
    "password with slashes": (TRAIN + f"data.path=s3://AKIA:a/{SECRET}@bucket/x", "data.path holds credentials"),
    "token without a user": (TRAIN + f"data.path=https://{SECRET}@host/x", "data.path holds credentials"),
    "signed URI": (TRAIN + f"data.path=https://h/x?a=b&X-Amz-Signature={SECRET}", "data.path holds credentials"),
    "shared access": (TRAIN + f"data.path=https://h/x?sv=1&sig={SECRET}", "data.path holds credentials"),
    "token in a parameter": (TRAIN + f"data.path=https://h/x?token={SECRET}", "data.path holds credentials"),
    "key in a parameter": (TRAIN + f"data.path=gs://b/x?api_key={SECRET}", "data.path holds credentials"),
    "password of the checkpoints": (TRAIN + f"train.checkpoint_folder={PASSWORD}", "train.checkpoint_folder holds"),
    "password in an argument": (TRAIN + f"train.evaluation='preset=eval_tiny data.path={PASSWORD}'", "holds cred"),
    "password in a list": (TRAIN + f"data.passage_folders=[{PASSWORD}]", "data.passage_folders holds credentials"),
    "password under a wrong key": (TRAIN + f"data.pth={PASSWORD}", "unknown key 'data.pth'"),
    "password of a wrong type, with a blank": (TRAIN + f"'train.steps=s3://AKIA:a {SECRET}@b'", "train.steps=s3://[*]{3}@b"),
    "password that is all there is": (f"train 's3://AKIA:a {SECRET}@b'", r"got 's3://[*]{3}@b'"),
    "password of a wrong type": (TRAIN + f"train.steps={PASSWORD}", "train.steps=s3://[*]{3}@bucket"),
    "password for samples": (f"prepare synthetic output={PASSWORD}", "output holds credentials"),
    "password for an evaluation": (f"evaluate preset=eval_tiny data.path={PASSWORD}", "data.path holds credentials"),
    "password that is submitted": (f"submit preset=tiny data.path={PASSWORD}", "data.path holds credentials"),
    "password for figures": (f"figures folder={PASSWORD}", "folder holds credentials"),
    "URI to import": (f"support.import_gguf output=o gguf={PASSWORD}", "local paths"),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_a_bad_value_is_an_error_before_anything_starts(name, capsys, tmp_path, monkeypatch):
    command, message = VALUES[name]
    broken = tmp_path / "tests_no_module.py"
    broken.write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)
    job, *arguments = (part.replace("'", "") for part in re.findall(r"(?:[^\s']|'[^']*')+", command))
    arguments = [a.replace("tests.no_module", "tests_no_module") for a in arguments]
    if job in ("train", "evaluate", "fine_tune"):
        arguments.append("--dry-run")
    status, said = run(job, arguments, capsys)
    assert status == 2 and re.search(message, said), said
    assert SECRET not in said


def run(job: str, arguments: list[str], capsys) -> tuple[int, str]:
    """Run a job in this process; return its exit status and all that it printed."""
    try:
        status = importlib.import_module(f"jobs.{job}").main(arguments)
    except SystemExit as end:
        status = 2
        print(end)
    printed = capsys.readouterr()
    return status, printed.out + printed.err


CREDENTIALS = [
    *(
        f"s3://AKIA:a{mark}{SECRET}@bucket/x"
        for mark in ('"', "'", " ", "<", ">", "\\", "@", "/", "?", "#", "ü", "%40")
    ),
    f"s3://b/x?endpoint_override=http://me:{SECRET}@h",
    f"s3://b/x?endpoint_override=http%3A%2F%2Fme%3A{SECRET}%40h",
    f"s3://b/x?endpoint_override=http%253A%252F%252F{SECRET}%2540h",
    *(f"{scheme}://{SECRET}@b/x" for scheme in ("hf", "gs", "ftp", "s3", "https", "HF")),
    *(f"https://h/x?a=b&{name}={SECRET}" for name in ("pwd", "pass", "code", "sas", "sig", "token", "key", "api-key")),
    *(
        f"https://h/x?{name}={SECRET}"
        for name in ("X-Amz-Security-Token", "AWSAccessKeyId", "accessToken", "client_secret")
    ),
]


@pytest.mark.parametrize("uri", CREDENTIALS)
def test_a_value_with_credentials_is_refused_and_they_are_struck_out_of_text(uri):
    assert has_credentials(uri)
    quoted = (f'data.path: "{json.dumps(uri)[1:-1]}"', f"no such file: {uri!r}, really", json.dumps({"a": {"b": uri}}))
    for text in (without_credentials(uri, whole=True), *map(without_credentials, quoted)):
        assert SECRET not in text and "***" in text
    assert json.loads(without_credentials(quoted[-1]))["a"]["b"] == without_credentials(uri, whole=True)
    if " " not in uri:
        assert SECRET not in without_credentials(f"{uri}: no such file")


def test_what_is_no_credential_is_a_path():
    for path in (
        "s3://bucket/a?region=eu-west-1",
        "abfs://container@account.dfs.core.windows.net/x",
        "hf://datasets/org/name@main/x.jsonl",
        "hf://org/name@main/x.jsonl",
        "http://host:8080/a@b/x",
        "http://[::1]:8080/a@b/x",
        "https://h/x?sort_key=name",
        "https://h/x?monkey=b&country_code=de",
        "gs://anonymous@bucket/x",
        "hdfs://user@host/x",
        "models/key=1:2@x",
    ):
        assert load_training_config(["preset=tiny", f"data.path={path}"]).data.path == path
        assert without_credentials(f"see {path}, there") == f"see {path}, there"


def test_what_is_asked_for_is_resolved(monkeypatch):
    monkeypatch.setenv("MINE", "there")
    config = load_training_config(
        ["preset=tiny", "interpolation=yes", "run.folder=${oc.env:MINE}", "run.name=${model.dtype}"]
    )
    assert config.run.folder == "there" and config.run.name == config.model.dtype
    monkeypatch.setenv("MINE", PASSWORD)
    with pytest.raises(ConfigError, match="run.folder holds credentials"):
        load_training_config(["preset=tiny", "interpolation=yes", "run.folder=${oc.env:MINE}"])
    monkeypatch.setenv("MINE", "a\udc80")  # a byte that is not UTF-8
    with pytest.raises(ConfigError, match="run.folder is not valid Unicode"):
        load_training_config(["preset=tiny", "interpolation=yes", "run.folder=${oc.env:MINE}"])


SCHEMAS = {
    "train": (TrainingConfig, ["preset=tiny"]),
    "evaluate": (EvaluationConfig, ["preset=eval_tiny"]),
    "fine_tune": (FineTuningConfig, ["preset=fine_tune_tiny"]),
    "figures": (FiguresConfig, []),
    **{kind: (schema, ["output=o", "path=p", "tokenizer=t"]) for kind, schema in RECIPES.items()},
}


def numeric_keys(schema: type, kinds: tuple, prefix: str = ""):
    for field in fields(schema):
        if is_dataclass(field.type):
            yield from numeric_keys(field.type, kinds, f"{prefix}{field.name}.")
        elif field.type in kinds:
            yield prefix + field.name, field.type


@pytest.mark.parametrize(
    ("kinds", "value"),
    [((float,), v) for v in ("nan", "inf", "-inf", "1e30", "-1e30")]
    + [((int, list[int]), v) for v in (f"{10**30}", f"-{10**30}")],
)
@pytest.mark.parametrize("job", SCHEMAS)
def test_every_number_of_every_configuration_is_refused_when_it_is_absurd(job, kinds, value):
    schema, given = SCHEMAS[job]
    names = {field.name for field in fields(schema)}
    given = [a for a in given if a.startswith("preset=") or a.partition("=")[0] in names]
    keys = dict(numeric_keys(schema, kinds))
    absurd = [f"{key}=[{value}]" if kind == list[int] else f"{key}={value}" for key, kind in keys.items()]
    if absurd:
        with pytest.raises(ConfigError) as error:
            load_config([*given, *absurd], schema)
        assert {line.partition("=")[0] for line in str(error.value).splitlines()} == set(keys)


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


@pytest.fixture(scope="module", autouse=True)
def registered():
    pa.register_extension_type(BadExtension())
    yield
    pa.unregister_extension_type("palimpsest.bad")


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


def passages(path: Path) -> None:
    PassageFile(path)


def distractors(path: Path) -> None:
    for _ in read_passages(path):
        pass


def samples(path: Path) -> None:
    source = SampleFiles.open(str(path))
    for index in range(len(source)):
        source.sample(index)


def model(path: Path) -> None:
    """The file is one of a model's."""
    folder = path.parent / "model"
    folder.mkdir()
    for file in (Path(__file__).parents[2] / "configs/models/tiny").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / path.name).unlink()
    (folder / path.name).write_bytes(path.read_bytes())
    from jobs.train import main

    assert main(["preset=tiny", f"model.path={folder}", "--dry-run"]) == 2


def preset(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.config.CONFIGS", path.parent)
        load_training_config([f"preset={path.stem}", "model.path=m"])


def preset_on_it(path: Path) -> None:
    """Another preset builds on the file."""
    (path.parent / "on_it.yaml").write_text(f"preset: {path.stem}\n")
    preset(path.parent / "on_it.yaml")


def gguf(path: Path) -> None:
    from jobs.support.import_gguf import CannotImport, import_gguf

    pytest.importorskip("gguf")
    with pytest.raises(CannotImport) as error:
        import_gguf(path, path.parent / "out")
    raise DataError(str(error.value))


def evaluation(path: Path) -> None:
    """The file is the config.yaml of an evaluation that is to go on."""
    from jobs.support.evaluation import check_folder

    folder = path.parent / "run"
    folder.mkdir()
    (folder / "config.yaml").write_bytes(path.read_bytes())
    (folder / "results.jsonl").write_text("{}\n")
    check_folder(load_config(["preset=eval_tiny"], EvaluationConfig), folder)


def training(path: Path) -> None:
    """The file is the config.yaml of a training run that is to go on."""
    from jobs.train import check_dtype

    check_dtype(load_training_config(["preset=tiny", "resume=auto"]), path.parent)


def prompts(path: Path) -> None:
    Prompts(byte_tokenizer(), load_template(str(path)), MemoryAgent.slots)


def results(path: Path) -> None:
    """What an evaluation wrote."""
    try:
        read_results(path)
    except ValueError as error:
        raise DataError(str(error)) from None


def comparison(path: Path) -> None:
    """The file is that of two evaluations."""
    from jobs.evaluate import main

    assert main(["--compare", str(path.parent), str(path.parent)]) == 2


def end(path: Path) -> None:
    """The file is the generation_config.json of a model."""
    try:
        named_end_tokens(str(path.parent))
    except ValueError as error:
        raise DataError(str(error)) from None


def bucket(path: Path) -> None:
    """The file holds 128 bytes of weights."""
    try:
        read_bucket_file(str(path), 128)
    except BucketError as error:
        raise DataError(str(error)) from None


def lease(path: Path) -> None:
    """The file is the lease of a run folder. It is taken over, which is said."""
    take_lease(path.parent, print, stale_s=0.2)
    print("taken over", file=sys.stderr)


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


def test_presets_that_include_each_other_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("preset: b\n")
    (tmp_path / "b.yaml").write_text("preset: a\n")
    monkeypatch.setattr("pipeline.config.CONFIGS", tmp_path)
    with pytest.raises(ConfigError, match="builds on itself: a → b → a"):
        load_training_config(["preset=a"])


# Ray's token.


@pytest.fixture
def token(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray" / "auth_token"))
    return tmp_path / "ray" / "auth_token"


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_token_is_made_for_its_user_alone(token):
    before = os.umask(0)
    try:
        require_token()
    finally:
        os.umask(before)
    assert mode_of(token) == 0o600 and mode_of(token.parent) == 0o700 and len(token.read_text()) == 64
    made = token.read_text()
    require_token()
    assert token.read_text() == made and list(token.parent.iterdir()) == [token]


def test_a_token_that_others_can_read_is_closed_to_them(token, capsys):
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    require_token()
    assert mode_of(token) == 0o600 and token.read_text() == "secret"
    said = capsys.readouterr().out
    assert f"other users could read the Ray token {token}; their access is now removed" in said and "secret" not in said


def test_an_empty_token_is_none(token):
    token.parent.mkdir()
    token.touch(0o644)
    require_token()
    assert mode_of(token) == 0o600 and len(token.read_text()) == 64


def test_another_users_token_is_refused(token, monkeypatch):
    require_token()
    monkeypatch.setattr("os.getuid", lambda: token.stat().st_uid + 1)
    with pytest.raises(ClusterError, match="belongs to the user"):
        require_token()


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "http://127.0.0.1:{port}", "http://localhost:{port}/x"])
@pytest.mark.parametrize("at", ["127.0.0.1", ""])
def test_the_token_is_sent_to_listeners_of_the_same_user_only(address, at, monkeypatch):
    import socket

    with socket.create_server((at, 0)) as server:
        address = address.format(port=server.getsockname()[1])
        check_listener(address)
        uid = os.getuid()
        monkeypatch.setattr("os.getuid", lambda: uid + 1)
        with pytest.raises(ClusterError, match=f"the listener at {address} is the user .* is not sent your Ray token"):
            check_listener(address)
    with pytest.raises(ClusterError, match=f"nothing listens at {address}"):
        check_listener(address)


def test_of_ipv6_the_listener_is_known_too(monkeypatch):
    import socket

    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6")
    with server:
        address = f"http://[::1]:{server.getsockname()[1]}"
        check_listener(address)
        uid = os.getuid()
        monkeypatch.setattr("os.getuid", lambda: uid + 1)
        with pytest.raises(ClusterError, match="is not sent your Ray token"):
            check_listener(address)


def test_another_users_listener_may_be_allowed(monkeypatch):
    import socket

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address, uid = f"127.0.0.1:{server.getsockname()[1]}", os.getuid()
        monkeypatch.setattr("os.getuid", lambda: uid + 1)
        with pytest.raises(ClusterError, match="set PALIMPSEST_CLUSTER_USER="):
            check_listener(address)
        monkeypatch.setenv("PALIMPSEST_CLUSTER_USER", "no such user")
        with pytest.raises(ClusterError, match="no such user on this machine"):
            check_listener(address)
        monkeypatch.setenv("PALIMPSEST_CLUSTER_USER", str(uid))
        check_listener(address)
        monkeypatch.delenv("PALIMPSEST_CLUSTER_USER")
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # nothing is sent
        check_listener(address)


@pytest.mark.parametrize("address", ["127.0.0.1:999999", "127.0.0.1:abc", "http://[::1", "é..:5"])
def test_what_is_no_address_of_a_cluster(address, monkeypatch):
    import jobs.support.local_head
    from jobs.support.driver import cluster_to_join

    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    for find in (cluster_to_join, jobs.support.local_head.find_cluster):
        with pytest.raises(ClusterError, match="is not an address such as head:6379"):
            find()


def test_a_token_that_is_a_folder_is_refused(token):
    token.mkdir(parents=True)
    with pytest.raises(ClusterError, match="is a folder; name a file in RAY_AUTH_TOKEN_PATH"):
        require_token()


def test_no_room_for_temporary_files(short_folder, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/no/such")
    with pytest.raises(ClusterError, match="no folder for temporary files: .*; set RAY_TMPDIR to"):
        private_folder()
    monkeypatch.setenv("RAY_TMPDIR", f"{short_folder}/{'x' * 40}")
    with pytest.raises(ClusterError, match="over 107 bytes; set TMPDIR .* to a shorter one"):
        private_folder()


def test_of_another_machine_nothing_is_known():
    check_listener("http://198.51.100.1:8265")


def test_another_users_dashboard_is_not_asked(monkeypatch, capsys):
    import socket

    import jobs.support.local_head

    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jobs.support.local_head, "JobSubmissionClient", lambda *_: pytest.fail("it was asked"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, uid = server.getsockname()[1], os.getuid()
        monkeypatch.setattr("os.getuid", lambda: uid + 1)
        assert jobs.support.local_head.find_cluster(port) is None
        assert "is not sent your Ray token" in capsys.readouterr().out
        monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{port}")
        with pytest.raises(ClusterError, match="is not sent your Ray token"):
            jobs.support.local_head.find_cluster()


@pytest.mark.parametrize(
    ("named", "file", "joined"),
    [
        ("", None, ""),
        ("", "127.0.0.1:{free}", ""),  # left by a cluster that is gone
        ("", "127.0.0.1:{taken}", "127.0.0.1:{taken}"),
        ("auto", "127.0.0.1:{taken}", "127.0.0.1:{taken}"),
        ("auto", None, "RAY_ADDRESS=auto, but no cluster of yours runs"),
        ("local", "127.0.0.1:{taken}", ""),
        ("127.0.0.1:{taken}", None, "127.0.0.1:{taken}"),
        ("127.0.0.1:{free}", None, "nothing listens at"),
        ("198.51.100.1:6379", None, "198.51.100.1:6379"),
    ],
)
def test_the_cluster_to_join(named, file, joined, tmp_path, monkeypatch):
    import socket

    from jobs.support.driver import cluster_to_join

    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # and does not listen
        ports = {"taken": server.getsockname()[1], "free": other.getsockname()[1]}
        if file:
            (tmp_path / "current").write_text(file.format(**ports))
        monkeypatch.setattr("ray._private.utils.get_ray_address_file", lambda _: str(tmp_path / "current"))
        monkeypatch.setenv("RAY_ADDRESS", named.format(**ports))
        try:
            assert cluster_to_join() == joined.format(**ports)
        except ClusterError as error:
            assert joined in str(error) and joined
        if file == "127.0.0.1:{taken}" and named != "local":  # written by another user
            (tmp_path / "current").chmod(0o644)
            uid = os.getuid()
            monkeypatch.setattr("os.getuid", lambda: uid + 1)
            with pytest.raises(ClusterError) if named else contextlib.nullcontext():
                assert cluster_to_join() == ""


def test_temporary_files_are_in_a_folder_of_ones_own(short_folder, monkeypatch):
    tmp_path = short_folder
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = private_folder()
    assert folder.parent == tmp_path and mode_of(folder) == 0o700
    folder.chmod(0o777)
    assert private_folder() == folder and mode_of(folder) == 0o700
    uid = os.getuid()
    folder.rename(tmp_path / f"plm-{uid + 1}")
    monkeypatch.setattr("os.getuid", lambda: uid + 1)
    with pytest.raises(ClusterError, match="is not a folder of yours"):
        private_folder()
    (tmp_path / f"plm-{uid}").symlink_to(tmp_path)
    monkeypatch.setattr("os.getuid", lambda: uid)
    with pytest.raises(ClusterError, match="is not a folder of yours"):
        private_folder()


def test_a_store_that_cannot_be_reached_is_said(monkeypatch, capsys):
    class Unreachable(pyarrow.fs.FileSystemHandler):
        """Raises what the Hub's client does, which is no OSError."""

        get_type_name = normalize_path = create_dir = delete_dir = delete_dir_contents = delete_file = move = None
        delete_root_dir_contents = copy_file = open_input_stream = open_input_file = open_output_stream = None
        open_append_stream = get_file_info_selector = None

        def get_file_info(self, paths):
            raise Exception("Name or service not known")

    system = pyarrow.fs.PyFileSystem(Unreachable())
    monkeypatch.setattr("pipeline.files._locate", lambda path: (system, str(path)))
    status, said = run("evaluate", ["preset=eval_tiny", "data.source=file", "data.path=hf://d/o/n.jsonl"], capsys)
    assert status == 2 and "hf://d/o/n.jsonl cannot be reached (Exception: Name or service not known)" in said


@pytest.mark.parametrize("content", ["[]", "5", "{", 3000 * "["])
def test_a_summary_that_is_none_does_not_count(content, tmp_path, capsys):
    from jobs.submit import report
    from jobs.support.driver import leave_interrupted

    (tmp_path / "summary.json").write_text(content)
    assert report(tmp_path) is None
    leave_interrupted(tmp_path, {"status": "x", "steps": 0})
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "interrupted"
    assert report(tmp_path) == "interrupted"


def test_what_prepare_puts_aside_holds_no_password():
    from pipeline.data.preparation import _aside
    from pipeline.data.samples import SampleRow

    row = {"id": "\ud83d", "passage_file": f"s3://AKIA:hü n{SECRET}@b", "question": f"see s3://A:ü{SECRET}@b"}
    line = _aside(SampleRow(0, "i", json.dumps(row), "bad"))
    assert SECRET not in line and "hü" not in line and json.loads(line)["row"]["id"] == "\ud83d"
    assert line.encode()
