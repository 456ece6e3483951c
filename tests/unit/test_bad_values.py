"""A bad value is an error before anything starts, whatever it is.

One line of the table is one bad value.
"""

import importlib
import json
import re
from dataclasses import fields, is_dataclass

import pyarrow.fs
import pytest

from jobs.figures.recipe import FiguresConfig
from jobs.learn import LearnConfig
from pipeline.config import load_config
from pipeline.credentials import has_credentials, without_credentials
from pipeline.data.recipes import RECIPES
from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluationConfig
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.run.config import TrainingConfig, load_training_config
from tests.support.malformed_files import PASSWORD, SECRET

pytestmark = pytest.mark.usefixtures("soon")

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
    "demonstrations in a chat": ("fine_tune data.prompt_template=memagent", "data.prompt_template=.?memagent"),
    "figures of no seed": ("figures seeds=[]", "seeds is empty"),
    "figures that are none": ("figures only=[one]", "only=.*one.* must be some of length, ablation"),
    "figures of one seed": ("figures seeds=[0]", "layout need two seeds; leave it out: only=.length,ablation,transfer"),
    "figures of a seed below 0": ("figures seeds=[-1]", "must lie between 0 and"),
    "submitted nan": ("submit preset=tiny data.max_bad_share=nan", "data.max_bad_share=nan is not a finite number"),
    "bench without end": ("bench.__main__ asynchrony steps=99999999999", "steps=99999999999 must lie between"),
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
    "learn": (LearnConfig, []),
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


def test_presets_that_include_each_other_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("preset: b\n")
    (tmp_path / "b.yaml").write_text("preset: a\n")
    monkeypatch.setattr("pipeline.config.CONFIGS", tmp_path)
    with pytest.raises(ConfigError, match="builds on itself: a → b → a"):
        load_training_config(["preset=a"])


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
