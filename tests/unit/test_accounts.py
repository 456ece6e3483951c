"""The accounts of a run against a life worked by hand: its clock, its rates, what was lost in this life and before."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from actors import accounts, tracker
from actors.accounts import Accounts
from actors.groups import Step
from pipeline.config import CONFIGS
from pipeline.learning.device_memory import Architecture
from pipeline.run.config import load_training_config
from pipeline.run.ledger import Ledger
from pipeline.run.metric_names import KEYS, is_taken
from pipeline.run.validation import validation_row
from tests.support.groups import random_group, record_of
from tests.support.result_rows import row as result
from tests.support.updates import rank, update

MODEL = Architecture(0, layers=2, hidden=32, intermediate=64, query=32, key_value=16, key_heads=2, vocabulary=100)


@pytest.fixture
def clock(monkeypatch):
    """Shows the seconds that a test says."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(accounts, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def run(clock) -> Accounts:
    pools = [
        SimpleNamespace(
            restarts=n,
            keeper=SimpleNamespace(failed=0),
            alive=2,
            size=2,
            waiting=1,
            waited_share=lambda: 0.25,
            device="NVIDIA H100 80GB HBM3",
            model=MODEL,
            weight_bytes_share=0.004,
        )
        for n in (1, 2, 3)
    ]
    config = load_training_config(["preset=tiny", "generator.count=2", "model.dtype=bfloat16"])
    validation = SimpleNamespace(tokens_computed=0)
    return Accounts(config, lambda line: None, Ledger(1, 1, 10, 0), SimpleNamespace(bad=7), *pools, validation)


def step(run: Accounts, clock, seconds: float, tokens: int, waited: float = 1.0, trained: float = 2.0) -> dict:
    clock.now += seconds
    run.done.tokens_generated += tokens
    run.ledger.step += 1
    record = record_of(random_group(np.random.default_rng(0), episodes=2), "g", [1.0, 0.0])
    done = Step([(record, "ref")], [4], ["problem"], [])
    ranks = rank(tokens=5, same_version_tokens=5)
    trained_on = update(ranks, groups=[0], tokens=5, staleness=[5], computed=50, pairs=700, predicted=5)
    return run.step_done(done, [trained_on], waited, trained)


def test_a_step_lasts_from_the_end_of_the_one_before(run, clock):
    clock.now += 50  # all were started
    run.training_begins()
    step(run, clock, 8.0, 100)
    run.pauses += [0.2, 0.5]
    row = step(run, clock, 4.0, 60, waited=1.0, trained=3.5)
    assert (row["seconds"], row["wait_seconds"], row["train_seconds"], row["publish_seconds"]) == (4.0, 1.0, 2.5, 0.5)
    assert row["tokens_per_second"] == 15 and row["tokens_generated_total"] == 160
    assert row["learners_waited"] == 0.25 and row["update_pause_max"] == 0.5 and run.pauses == []
    assert row["updates_total"] == 2 and row["effective_time_ratio"] == 1
    assert row["weight_bytes_share"] == 0.004
    assert row["positions"] == [4] and row["rows_quarantined"] == 7


def test_devices_are_as_fast_as_what_went_through_the_model_while_they_worked(run, clock):
    run.training_begins()
    group = random_group(np.random.default_rng(0), episodes=2)
    run.group_done(record_of(group, "g", [1.0, 0.0]))
    row = step(run, clock, 10.0, 0, waited=2.0, trained=7.0)
    lengths = [(len(group.prompt(c)), len(group.response(c))) for c in range(len(group.lengths))]
    through = [position for prompt, response in lengths for position in range(1, prompt + response)]
    flops = 2 * (2 * (2 * 32 + 2 * 16 + 3 * 64) * 32 * len(through) + 4 * 32 * sum(through))
    flops += 2 * 32 * 100 * sum(response for _, response in lengths)
    busy = 2 * 10 * (1 - 0.25)
    assert not group.cached_tokens.any()
    assert row["generator_tokens_per_device_second"] == pytest.approx(len(through) / busy)
    assert row["generator_tflops"] == pytest.approx(flops / busy / 1e12)
    assert row["generator_mfu"] == pytest.approx(flops / busy / 989e12)
    assert row["learner_tokens_per_device_second"] == 50 / (2 * 5)  # two ranks
    flops = 3 * (2 * (2 * (2 * 32 + 2 * 16 + 3 * 64) * 32 * 50 + 4 * 32 * 700) + 2 * 32 * 100 * 5)
    assert row["learner_mfu"] == pytest.approx(flops / (2 * 5) / 989e12)


def test_what_pools_waited_for_before_training_is_not_the_first_steps(run, clock):
    asked = []
    for pool in (run.generators, run.scorers):
        pool.waited_share = lambda: asked.append(clock.now) or 0.25
    clock.now += 50
    run.training_begins()
    assert asked == [150.0] * 2
    step(run, clock, 8.0, 100)
    assert asked == [150.0] * 2 + [158.0] * 4  # for the step's row, and when the next step begins


def test_validation_has_its_share_of_what_engines_compute_in_a_step(run, clock):
    run.training_begins()
    record = record_of(random_group(np.random.default_rng(0), episodes=2), "g", [1.0, 0.0])
    computed = record.prompt_tokens.total() - record.cached_tokens.total() + record.response_tokens
    computed -= len(record.lengths)  # of each response, the last token
    assert computed > 0 and step(run, clock, 1.0, 0)["validation_share"] == 0.0  # nothing was computed
    run.group_done(record)
    run.validation.tokens_computed += 3 * computed
    assert step(run, clock, 1.0, 0)["validation_share"] == 0.75
    run.group_done(record)
    assert step(run, clock, 1.0, 0)["validation_share"] == 0.0


def test_what_was_trained_in_vain_and_what_a_restart_took_is_not_effective(run, clock):
    run.training_begins()
    first = step(run, clock, 10.0, 10)
    step(run, clock, 10.0, 10)
    run.steps_lost += 1
    run.roll_back(first["step"])
    clock.now += 15  # until the learners are back
    run.done.tokens_generated += 500  # generators go on meanwhile
    run.step_begins()
    row = step(run, clock, 5.0, 20)
    assert row["effective_time_ratio"] == pytest.approx((10 + 5) / 40)
    assert row["tokens_per_second"] == 4 and row["steps_lost"] == 1 and row["updates_total"] == 2
    assert len(run.done) == 2


def test_a_life_that_goes_on_counts_from_what_was_there(run, clock):
    run.begin_after([step(run, clock, 1000.0, 1)] * 8)
    run.done.tokens_generated = 1000
    run.recovered_before.update(group_moves=3, learner_restarts=1)
    run.moves = 2
    run.training_begins()
    row = step(run, clock, 2.0, 8)
    assert row["updates_total"] == 10 and row["tokens_per_second"] == 4 and row["effective_time_ratio"] == 1
    assert row["group_moves"] == 5 and row["learner_restarts"] == 4 and row["generator_restarts"] == 1
    run.roll_back(0)  # further than this life began
    clock.now += 2
    run.step_begins()
    assert step(run, clock, 4.0, 0)["effective_time_ratio"] == pytest.approx(4 / 8)


def test_the_keys_that_no_metric_of_an_objective_may_have_are_those_of_the_row(run, clock):
    of_the_objective = {"kl", "clip_fraction", "ratio_mean", "importance_mean", "importance_max", "importance_capped"}
    assert step(run, clock, 1.0, 1).keys() - of_the_objective == KEYS
    assert is_taken("turn_reward") and is_taken("turn_reward_gate") and not is_taken("clip_fraction")


def test_the_dashboard_shows_what_a_run_exports(run, clock, tmp_path, monkeypatch):
    """With Ray's gauges, which need no Ray to be set."""
    monkeypatch.setattr(tracker, "was_started_again", lambda: False)
    config = load_training_config(["preset=tiny", "wandb.mode=disabled", "run.name=shown"])
    tracked = tracker.Tracker.__ray_metadata__.modified_class(config, str(tmp_path))
    run.pauses += [0.2]  # else no engine has loaded weights
    assert tracked.log(step(run, clock, 1.0, 1)) == []
    answers = [result(id="q", length=144) | {"versions": [1, 1], "prompt_tokens_computed": 3}]
    tracked.validated(validation_row(1, 1, "questions", answers, 1.0), [])
    exported = {f"ray_{gauge.info['name']}" for gauge in tracked._gauges.values()}
    shown = set(re.findall(r"\bray_\w+", (CONFIGS / "clusters" / "grafana.json").read_text()))
    assert len(shown) > 40 and shown - exported == set()
