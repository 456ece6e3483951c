"""The plan's arithmetic against measured runs on CPUs (tests/support/measured_runs.json): the rates come from some of
their steps, and the predicted time is that of others."""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import pytest

from pipeline.learning.device_memory import BYTES, Architecture
from pipeline.run.calibration import MEASURED, core_rates
from pipeline.run.cluster_config import load_plan_config
from pipeline.run.cluster_plan import cluster_plan
from pipeline.run.workload import Workload

RUNS = json.loads((Path(__file__).parents[1] / "support" / "measured_runs.json").read_text(encoding="utf-8"))
CALIBRATING = 2  # steps of a run whose rates are taken


def rates_of(run: dict, rows: list[dict]):
    sizes, config = Architecture(**run["architecture"]), plan_config(run, rows)
    return core_rates(rows, BYTES[config.model.dtype] * sizes.parameters, run["cores"], "measured")


def plan_config(run: dict, rows: list[dict]):
    kept = mean(row["kept_fraction"] for row in rows)
    informative = 1 - sum(row["groups_of_equal_reward"] for row in rows) / sum(row["groups"] for row in rows)
    dynamic = "train.dynamic_sampling=true" in run["arguments"]
    return load_plan_config(
        [
            "preset=tiny",
            *run["arguments"],
            f"cluster.cores={run['cores']}",
            f"cluster.informative_share={kept if dynamic else informative}",
        ]
    )


def predicted(run: dict, rates, rows: list[dict]) -> float:
    """Seconds of a step like those of `rows`, of which only the lengths and the share of groups kept are used."""
    return cluster_plan(
        plan_config(run, rows), Architecture(**run["architecture"]), Workload(**run["workload"]), rates
    ).seconds


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_a_step_is_predicted_from_the_rates_of_earlier_steps(run):
    rates = rates_of(run, run["rows"][:CALIBRATING])
    later = run["rows"][CALIBRATING:]
    assert predicted(run, rates, later) == pytest.approx(mean(row["seconds"] for row in later), rel=0.2)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_the_rates_in_the_calibration_are_those_of_the_first_steps(run):
    key = (run["architecture"]["parameters"], next(a for a in run["arguments"] if "dtype" in a).partition("=")[2])
    if run.get("calibrates", True):
        found, kept = asdict(rates_of(run, run["rows"][:CALIBRATING])), asdict(MEASURED[key])
        assert {n: v for n, v in found.items() if n != "source"} == pytest.approx(
            {n: v for n, v in kept.items() if n != "source"}, rel=0.01
        )
    else:  # another shape of a model that another run calibrates
        assert predicted(run, MEASURED[key], run["rows"]) == pytest.approx(
            mean(row["seconds"] for row in run["rows"]), rel=0.2
        )
