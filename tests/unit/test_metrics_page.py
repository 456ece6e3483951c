"""docs/metrics.md explains every number that the code writes, and no other."""

import re
from pathlib import Path

import pytest
import torch

from pipeline.evaluation.answer_scores import METRICS
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.summary import evaluation_summary
from pipeline.learning.objective import token_losses
from pipeline.run.metric_names import FINE_TUNING_KEYS, OBJECTIVE, SECTIONS, STEP, SUMMARIES, VALIDATION
from pipeline.run.validation import validation_row
from pipeline.sections import ObjectiveSection
from tests.support.result_rows import row as result

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
PARTS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
NAME = re.compile(r"`([^`]+)`")


def table(part: str) -> list[list[str]]:
    """The cells of the rows of a part's tables of metrics."""
    rows = [line[1:-1].split("|") for line in PARTS[part].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


def named(part: str) -> list[str]:
    return [name for row in table(part) for name in NAME.findall(row[0])]


def objective_names() -> list[str]:
    """What the built-in objective returns."""
    zeros = torch.zeros(2)
    _, metrics = token_losses(
        *(zeros, zeros, zeros, zeros),
        behaviour=zeros,
        proximal=None,
        reference=None,
        objective=ObjectiveSection(),
    )
    return list(metrics)


def validation_names() -> set[str]:
    answers = [result(id="q", length=144) | {"versions": [1, 1], "prompt_tokens_computed": 3}]
    row = validation_row(1, 1, "questions", answers, 1.0)
    return {*row, *row["cells"][0]}


def evaluation_names() -> set[str]:
    summary = evaluation_summary(EvaluationConfig(), "completed", [result()], failures={}, error=None)
    assert {"failures", "rows_quarantined"} < summary.keys()
    return {*summary["cells"][0], *METRICS, "failures", "rows_quarantined"}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_has_the_names_of_the_row(section):
    of_scorers = ["turn_reward", "turn_reward_<role>"] if section == "reward" else []
    assert sorted(named(section)) == sorted(SECTIONS[section] + of_scorers)


def test_the_other_sections_have_the_names_of_their_files():
    assert sorted(named(OBJECTIVE)) == sorted(objective_names())
    assert set(named(VALIDATION)) == validation_names()
    assert set(named("evaluation")) == evaluation_names()
    as_above = NAME.findall(PARTS["fine-tuning"].split("| metric")[0])
    shared = set(as_above) & {STEP, *(name for names in SECTIONS.values() for name in names)}
    assert {*named("fine-tuning"), *shared} == FINE_TUNING_KEYS


def test_the_page_has_no_other_section():
    assert set(PARTS) == {*SECTIONS, OBJECTIVE, VALIDATION, "evaluation", "fine-tuning", "In wandb"}


@pytest.mark.parametrize("part", [part for part in PARTS if part != "In wandb"])
def test_a_number_that_may_be_bad_says_what_to_do(part):
    """A row has name, unit, meaning, what is good and what to do. The last is there only beside what is good."""
    for row in table(part):
        assert len(row) == 5, row
        name, _, _, good, otherwise = row
        assert good or not otherwise, name


def test_the_best_values_of_wandbs_summary_are_of_metrics_that_the_page_has():
    assert {name.removeprefix("validation_") for name in SUMMARIES} <= {name for part in PARTS for name in named(part)}


def test_the_alerts_are_those_that_the_code_raises():
    actors = Path(__file__).parents[2] / "actors"
    code = "\n".join(path.read_text(encoding="utf-8") for path in actors.rglob("*.py"))
    raised = {
        topic.replace("{self._kind}", "generator") for topic in re.findall(r'(?<!class )\bAlert\(f?"([^"]+)"', code)
    }
    shown = PARTS["In wandb"].split("| --- | --- |\n")[1].split("\n\n")[0]
    assert {line.split(" | ")[0].strip("| ") for line in shown.splitlines()} == raised
    assert all(len(topic) < 64 for topic in raised)
