"""A wrong configuration of an evaluation or a filter is said before anything starts."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.evaluation_data import evaluation_arguments, write_questions
from tests.support.faults import ROOT


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_questions(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(data, tmp_path_factory) -> list[str]:
    return evaluation_arguments(data, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("evaluate.methods=[memry]", "the method 'memry' is none of memory, direct"),
        ("evaluate.methods=[]", "evaluate.methods is empty"),
        ("evaluate.methods=[memory,memory]", "names one twice"),
        ("evaluate.top_p=0", "evaluate.top_p=0.0 must be above 0"),
        ("evaluate.samples=0", "evaluate.samples=0 must be greater than 0"),
        ("train.steps=3", "unknown key 'train.steps'"),
        ("data.path=README.md", "the name of a sample file ends in .jsonl or .parquet"),
        ("data.path=/no/such/folder", "data.path=/no/such/folder: no such file or folder"),
        ("data.path=''", "set data.path: data.source=file reads samples, which jobs.prepare makes"),
        ("data.source=files", "data.source='files' must be one of file, synthetic"),
        ("data.source=synthetic", "is not read with data.source=synthetic; set data.source=file"),
        ("agent.window=257", "256 positions"),
    ],
)
def test_a_wrong_configuration_says_so_before_anything_starts(arguments, wrong, message, capsys):
    from jobs.evaluate import main

    assert main([*arguments, wrong]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["evaluate.methods=[memory]"], "a filter asks with closed_book only"),
        (["run.name=x"], "a filter writes all its files to output"),
        (["output=s3://bucket/x"], "a filter writes to a local folder"),
    ],
)
def test_a_wrong_filter_says_so(data, tmp_path, wrong, message, capsys):
    from jobs.prepare import main

    good = ["filter", "preset=eval_tiny", "data.source=file", f"data.path={data}", f"output={tmp_path}"]
    assert main([*good, *wrong]) == 2
    assert message in capsys.readouterr().err


def test_settings_that_are_not_those_of_the_training_are_named(arguments, tmp_path, capsys):
    from jobs.evaluate import main

    model = tmp_path / "run" / "checkpoints" / "3" / "hf"
    shutil.copytree(ROOT / "configs" / "models" / "tiny", model)
    assert main([*arguments, f"model.path={model}", "--dry-run"]) == 0
    assert "trained with" not in capsys.readouterr().out
    trained = {"prompt_template": "tiny", "chunk_tokens": 30, "memory_tokens": 7, "window": 100}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps({"agent": trained}))
    assert main([*arguments, f"model.path={model}", "--dry-run"]) == 0
    said = "· the model was trained with agent.chunk_tokens=30 agent.memory_tokens=7; this evaluation has other"
    assert said in capsys.readouterr().out
