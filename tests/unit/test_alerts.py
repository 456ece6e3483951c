"""Conditions of which a run sends alerts: each is a progress line too, and its owner says both at once."""

import asyncio
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import RayActorError

from actors import accounts as accounts_module
from actors.accounts import Accounts
from actors.coordinator import Coordinator
from actors.evaluator import Evaluator
from actors.groups import Groups
from actors.job_actor import JobActor
from actors.lifecycle import pool as pool_module
from actors.step_reports import StepReports
from actors.tracking import Tracking
from pipeline.alerts import Alert
from pipeline.data.problem_queue import ProblemQueue
from pipeline.data.quarantine import Quarantine
from pipeline.errors import RunFailed
from pipeline.lease import take_lease
from pipeline.run.ledger import Ledger
from tests.support.simulation import Handle, Problems
from tests.support.updates import rank, update


def topics(said: list[str]) -> list[str]:
    return [line.topic for line in said if isinstance(line, Alert)]


def test_an_alert_is_the_same_in_another_process():
    there = pickle.loads(pickle.dumps(Alert("title", "· a line")))
    assert (type(there), there, there.topic) == (Alert, "· a line", "title")


def test_an_alert_is_a_progress_line_and_is_sent(tmp_path):
    sent = []
    job = JobActor(str(tmp_path), take_lease(tmp_path))
    job.alert = sent.append
    job.say("· a line")
    job.say(Alert("title", "· another"))
    assert list(job._lines) == ["· a line", "· another"] and topics(sent) == ["title"]
    assert [type(line) for line in job._lines] == [str, str]  # drivers get them, whatever their version


def test_a_training_run_sends_alerts_through_its_tracker_unless_that_hangs():
    sent = []
    actor = SimpleNamespace(alert=SimpleNamespace(remote=lambda *alert: sent.append(alert)))
    tracking = Tracking(actor, print)
    alert = Coordinator.__ray_metadata__.modified_class.alert
    alert(SimpleNamespace(tracker=None), Alert("title", "· before the tracker was started"))
    alert(SimpleNamespace(tracker=tracking), Alert("title", "· a line"))
    assert sent == [("title", "· a line")]
    with asyncio.Runner() as runner:
        tracking._late = runner.get_loop().create_future()
        alert(SimpleNamespace(tracker=tracking), Alert("title", "· while it hangs"))
    assert len(sent) == 1


def test_an_evaluation_sends_alerts_to_its_wandb_run():
    sent = []
    alert = Evaluator.__ray_metadata__.modified_class.alert
    alert(SimpleNamespace(wandb=None), Alert("title", "· before wandb was started"))
    run = SimpleNamespace(alert=lambda *alert: sent.append(alert))
    alert(SimpleNamespace(wandb=run), Alert("title", "· a line"))
    assert sent == [("title", "· a line")]


ROW = {"step": 3, "preemptions": 0, "conversations": 1000, "logprob_mismatch_mean": 0.0}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, []),
        ({"logprob_mismatch_mean": 2e-4}, ["log-probs do not match"]),
        ({"logprob_mismatch_mean": None}, []),
        ({"preemptions": 51}, ["KV cache full"]),
    ],
)
def test_what_a_step_warns_of(tiny_config, values, expected, monkeypatch):
    async def log(row):
        pass

    monkeypatch.setattr("actors.step_reports.step_line", lambda row, steps: "a step")
    said: list[str] = []
    reports = StepReports(tiny_config, said.append)
    asyncio.run(reports.report(SimpleNamespace(log=log), ROW | values, None))
    assert topics(said) == expected and len(said) == 1 + len(expected)


def test_a_skipped_update(tiny_config):
    said: list[str] = []
    step = SimpleNamespace(groups=[(SimpleNamespace(group_id="g"), None)])
    reports = StepReports(tiny_config, said.append)
    reports.check_updates(1, step, [update(rank(), groups=[0])])
    assert said == []
    reports.check_updates(2, step, [update(rank(grad_norm=None), groups=[0])])
    assert topics(said) == ["update skipped"]


def test_a_run_that_stalls(tiny_config, monkeypatch):
    monkeypatch.setattr(accounts_module, "SILENCE_S", 0.02)
    said: list[str] = []
    pool = SimpleNamespace(alive=1, size=1)
    parts = Ledger(1, 1, 10, 0), None, pool, pool, pool, None

    async def watch():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Accounts(tiny_config, said.append, *parts).watch(), 0.2)

    asyncio.run(watch())
    assert set(topics(said)) == {"no step"} and "0 groups running" in said[0]


class Dying(pool_module.Pool):
    """Its only actor dies as soon as it is made."""

    def make(self, number: int):
        return "actor"

    async def serve(self, name: str, actor) -> str:
        raise RayActorError()


@pytest.mark.parametrize("least", [0, 1])
def test_an_actor_that_keeps_dying(monkeypatch, least):
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(pool_module, "LONGEST_BACK_OFF_S", 0)
    said: list[str] = []
    pool = Dying("generator", 1, least, said.append)
    if least:
        with pytest.raises(RunFailed, match="died 6 times"):  # the run itself ends, which wandb shows
            asyncio.run(pool.run())
    else:
        asyncio.run(pool.run())
    again = ["a generator keeps dying"] * (pool_module.DEATHS_IN_A_ROW - 1)  # not at the first death
    assert topics(said) == again + ["a generator was given up"] * (not least)


def test_a_group_that_fails(tiny_config, tmp_path):
    said: list[str] = []
    config = replace(tiny_config, train=replace(tiny_config.train, groups_per_step=2))
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 1.0)
    journal = Handle(SimpleNamespace(drop=lambda ids: None))
    groups = Groups(config, said.append, journal, quarantine, {"g": 0})
    groups.problems = ProblemQueue(Problems(5), 0, quarantine)
    group_id, _ = asyncio.run(groups.admit())
    groups.fail(group_id, ValueError("the scorer raised"))
    assert topics(said) == ["group failed"] and "the scorer raised" in said[0]
