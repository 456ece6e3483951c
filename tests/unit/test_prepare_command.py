"""The command that makes samples, before it starts anything."""

from pathlib import Path

import pytest

from jobs import prepare
from pipeline.config import load_config
from pipeline.data.recipes import RECIPES, RulerSettings, SyntheticSettings
from pipeline.errors import DataError
from pipeline.summary import duration
from tests.support.ruler_sources import squad, written


def test_a_source_that_is_too_small_for_the_longest_documents_is_said_before_any_sample_is_made(tmp_path, random_model):
    given = {"tokenizer": str(random_model), "output": "o", "tasks": ["qa_1"]}
    settings = RulerSettings(**given, questions=str(written(tmp_path / "squad.json", squad())), tokens=[300, 10**6])
    with pytest.raises(DataError, match="fewer than the wanted 1000000; .* give a larger file, or ask for fewer"):
        settings.sets(str(tmp_path / "out"), rebuild=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "kinds: facts, hotpotqa, ruler_hqa, ruler, synthetic"),
        (["hotpot"], "kinds: facts, hotpotqa, "),
        (["hotpotqa"], "output, path"),
        (["hotpotqa", "output=o", "path=none.json"], "none.json: no such file (from "),
        (["hotpotqa", "output=o", "path=web://x/none.json"], "s3, gs, hf or file"),
        (["hotpotqa", "output=o", "path=p", "tokens=5"], "tokens needs a tokenizer"),
        (["hotpotqa", "output=o", "path=p", "documents=0"], "documents must be at least 1"),
        (["hotpotqa", "output=o", "path=p", "document=5"], "did you mean 'documents'?"),
        (["hotpotqa", "output=o", "path=p", "task=essay"], "task='essay'"),
        (["ruler_hqa", "output=o", "path=p", "documents=[5,5]"], "documents: 5 comes twice"),
        (["ruler_hqa", "output=o", "path=p", "documents=[]"], "documents is empty"),
        (["ruler", "output=o", "tokenizer=t", "tasks=[vt,niah]"], "there is no 'niah'"),
        (["ruler", "output=o", "tokenizer=t", "tasks=[qa_1]"], "the task qa_1 needs questions"),
        (["synthetic", "output=o", "chunks=[1]"], "chunks=1 must be at least 2"),
        (["synthetic", "output=o", "chunks=[2]", "tasks=[chains,values]"], "chunks=2 must be at least 3"),
        (["synthetic", "output=o", "tasks=[needle]"], "there is no 'needle'; there are: chains, needles, "),
        (["synthetic", "output=o", "tasks=[chains,chains]"], "tasks: chains comes twice"),
        (["synthetic", "output=o", "task=my_rewards:gate"], "task='my_rewards:gate' names code, which rows may not"),
        (["synthetic", "output=o", "chunks=[1]", "--dry-run"], "chunks=1 must be at least 2"),
        (
            ["filter", "output=o", "model.path=m", "evaluate.methods=[memory]", "--dry-run"],
            "a filter asks with closed_book only",
        ),
        (["synthetic", "output=o", "count=0", "rows_per_file=0"], "rows_per_file must be at least 1\ncount must be"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(arguments, message, capsys):
    assert prepare.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_prints_the_settings_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert prepare.main(["synthetic", "output=o", "chunks=[2]", "--dry-run"]) == 0
    assert "output: o\n" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_synthetic_rows_name_the_scorer_that_is_asked_for():
    given = {"output": "o", "count": 3, "chunks": [4], "tasks": ["chains", "values"]}

    def scorers(**more) -> list[str]:
        return [each.sample(0).task for each in SyntheticSettings(**given, **more).sets("o", rebuild=True)]

    assert scorers() == ["qa", "values"] and scorers(task="gate") == ["gate", "gate"]


def test_a_relative_output_of_a_job_is_under_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    relative, absolute, uri = (
        load_config([f"output={output}"], RECIPES["synthetic"]) for output in ("o", "/data/o", "s3://bucket/o")
    )
    assert prepare.output_folder(relative, in_job=False) == f"{tmp_path}/o"
    assert prepare.output_folder(relative, in_job=True) == f"{Path.home()}/palimpsest/o"
    assert [prepare.output_folder(each, in_job=True) for each in (absolute, uri)] == ["/data/o", "s3://bucket/o"]


def test_the_time_left_is_told_in_fitting_units():
    assert [duration(s) for s in (8, 89, 91, 1800, 7200)] == ["8 s", "89 s", "2 min", "30 min", "2.0 h"]
