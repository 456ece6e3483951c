"""--help and -h of every job, and the values that the comments of keys name."""

import importlib

import pytest

from jobs import docs, prepare
from jobs.figures.recipe import FIGURES, SAMPLINGS, FiguresConfig
from jobs.support.keys import sections_of
from pipeline.agents import METHODS
from pipeline.data.documents.ruler import RULER_TASKS
from pipeline.data.documents.synthetic import SYNTHETIC_TASKS
from pipeline.data.recipes import RulerSettings, SyntheticSettings
from pipeline.dtype import MISMATCH_WARNING
from pipeline.evaluation.config import EvaluationConfig
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.fine_tuning.demonstrations import CURRICULA, TEMPLATES
from pipeline.run.config import TrainingConfig

NAMES = (
    *("train", "plan", "submit", "evaluate", "fine_tune", "prepare", "figures", "learn", "ask", "serve"),
    *("view", "docs"),
    "bench.__main__",
    "gpu_check.__main__",
)
JOBS = [f"jobs.{name}" for name in NAMES]


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("module", [*JOBS, "tests.chaos.__main__"])
def test_help_is_the_jobs_own_description(module, flag, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "PAGE", tmp_path / "page.md")
    job = importlib.import_module(module)
    described = importlib.import_module("jobs.figures.job") if module == "jobs.figures" else job
    assert job.main([flag]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(described.__doc__.strip()) and printed.err == ""
    assert not list(tmp_path.iterdir())


def test_the_page_of_keys_is_written_without_arguments_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(docs, "PAGE", tmp_path / "page.md")
    assert docs.main(["preset=tiny"]) == 2 and "no arguments" in capsys.readouterr().err
    assert not docs.PAGE.exists()
    assert docs.main([]) == 0 and docs.PAGE.read_text(encoding="utf-8") == docs.page()


def test_prepare_names_each_kind_with_what_it_makes(capsys):
    assert prepare.main(["-h"]) == 0
    kinds = capsys.readouterr().out.partition("Kinds:\n")[2].splitlines()
    assert [line.split()[0] for line in kinds] == list(prepare.KINDS)
    assert all(len(line.split()) > 4 for line in kinds)


def comment(schema: type, name: str) -> str:
    (found,) = (
        key.comment for s in sections_of(schema) for key in s.keys if f"{s.name}.{key.name}".lstrip(".") == name
    )
    return found


@pytest.mark.parametrize(
    ("schema", "name", "shown"),
    [
        (RulerSettings, "tasks", f"some of {', '.join(RULER_TASKS)}"),
        (SyntheticSettings, "tasks", f"some of {', '.join(SYNTHETIC_TASKS)}"),
        (EvaluationConfig, "data.synthetic_tasks", f"synthetic: some of {', '.join(SYNTHETIC_TASKS)}"),
        (EvaluationConfig, "evaluate.methods", f"{', '.join(METHODS)}, module:class"),
        (
            FineTuningConfig,
            "data.curriculum",
            f"demonstrations: {', '.join(CURRICULA)}".replace(", direct", " or direct"),
        ),
        (FineTuningConfig, "data.prompt_template", f"demonstrations: {' or '.join(TEMPLATES)}"),
        (FiguresConfig, "only", f"figures to make: some of {', '.join(FIGURES)}"),
    ],
)
def test_a_comment_names_all_values(schema, name, shown):
    assert comment(schema, name) == shown


def test_a_comment_names_the_numbers_that_are_used():
    said = comment(FiguresConfig, "samplings")
    shown = {"sampled": "sampled (temperature 1)", "paper": "paper (0.7, top-p 0.95)", "greedy": "greedy"}
    assert said.endswith(f"some of {', '.join(shown[name] for name in SAMPLINGS)}")
    assert SAMPLINGS == {"sampled": (1.0, 1.0), "paper": (0.7, 0.95), "greedy": (0.0, 1.0)}
    said = comment(TrainingConfig, "train.mismatch_warning")
    assert said.endswith(f"0: {', '.join(f'{limit} in {dtype}' for dtype, limit in MISMATCH_WARNING.items())}")
