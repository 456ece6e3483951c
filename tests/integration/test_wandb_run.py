"""wandb breaks in every way that it can; the job sees a line about it, once, and is never held up."""

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.run.config import load_training_config

LIMIT_S = 0.3


class FakeWandb:
    """The module wandb. `faults` has what a call of a name does."""

    def __init__(self, **faults):
        self.faults, self.logged, self.ended = faults, [], []
        self.summary, self.defined, self.alerts = {}, {}, []
        self.AlertLevel = SimpleNamespace(WARN="WARN")
        hooks = SimpleNamespace(unregister_all_post_import_hooks=lambda: None)
        self.sdk = SimpleNamespace(lib=SimpleNamespace(import_hooks=hooks))
        self.url, self.disabled, self.dir = "https://wandb.test/run", False, "/none/files"

    def _call(self, name: str):
        if fault := self.faults.get(name):
            fault()

    def Settings(self, **_):
        return None

    def login(self, prompt):
        self._call("login")
        return True

    def init(self, **settings):
        self.id = settings["id"]
        self._call("init")
        return self

    def define_metric(self, name, **how):
        self.defined[name] = how

    def alert(self, *alert):
        self._call("alert")
        self.alerts.append(alert)

    def log(self, row):
        self._call("log")
        self.logged.append(row)

    def Table(self, **_):
        self._call("table")

    def finish(self, exit_code):
        self._call("finish")
        self.ended.append(exit_code)

    def teardown(self):
        self._call("teardown")


def raising(error: BaseException):
    def fault():
        raise error

    return fault


def hanging():
    threading.Event().wait(120)


@pytest.fixture
def run_with(monkeypatch, tmp_path):
    """Starts a run of wandb with these faults; returns it and the module."""
    from actors import wandb_run as module

    config = load_training_config(["preset=tiny", "run.name=faulty", "wandb.mode=auto"])
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def start(**faults):
        if hanging in faults.values():  # a slow machine makes no other fault of it
            monkeypatch.setattr(module, "HANGS_S", 0.1)
        fake = FakeWandb(**faults)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return module.WandbRun(config, tmp_path), fake

    return start


CASES = {
    "a key that the server refuses": ({"login": raising(PermissionError("401"))}, "PermissionError: 401", 0),
    "a server that is not there": ({"init": raising(TimeoutError("unreachable"))}, "TimeoutError: unreachable", 0),
    "a server that never answers": ({"init": hanging}, "not ready after 0.3 s", 0),
    "a core process that died": ({"log": raising(ConnectionResetError("Connection lost"))}, "Connection lost", 0),
    "a core process that hangs": ({"log": hanging}, "no answer for 0.1 s", 0),
    "a full disk": ({"table": raising(OSError(28, "No space left on device"))}, "No space left", 3),
    "an exit": ({"log": raising(SystemExit(3))}, "SystemExit: 3", 0),
    "an alert that is refused": ({"alert": raising(ValueError("no such level"))}, "ValueError: no such level", 0),
    "an end that fails": ({"finish": raising(BrokenPipeError("gone"))}, "BrokenPipeError: gone", 6),
    "an end that hangs": ({"finish": hanging}, "not finished after 0.3 s", 6),
    "a teardown that fails": ({"teardown": raising(RuntimeError("twice"))}, "RuntimeError: twice", 6),
}


@pytest.mark.parametrize(("faults", "said", "logged"), CASES.values(), ids=CASES)
def test_whatever_wandb_does_is_said_once_and_holds_nobody_up(run_with, faults, said, logged):
    run, wandb = run_with(**faults)
    begin, news = time.monotonic(), []
    limit_s = LIMIT_S if hanging in faults.values() else 100.0
    run.started(limit_s)
    news += run.news()
    run.alert("no step", "· no step for 61 s")
    for step in range(6):
        run.log(lambda wandb, step=step: {"table": wandb.Table()} if step == 3 else {"step": step})
        time.sleep(0.05)
        news += run.news()
    run.finish({"status": "completed"}, limit_s)
    news += run.news() + run.news()
    assert time.monotonic() - begin < 100  # what hangs does so for 120 s
    (line,) = news
    assert line.startswith("· wandb: ") and said in line and "the run continues without it" in line
    assert len(wandb.logged) == logged


def test_without_a_fault_nothing_is_said(run_with):
    run, wandb = run_with()
    place, run_id = run.started()
    run.log(lambda wandb: {"step": 1})
    run.finish({"status": "failed", "reward": 1})
    assert (place, run_id) == (wandb.url, wandb.id) and len(run_id) == 8
    assert wandb.logged == [{"step": 1}] and wandb.summary["reward"] == 1 and wandb.ended == [1]
    assert run.news() == []


def test_the_summary_has_the_best_of_what_has_a_best(run_with):
    run, wandb = run_with()
    run.started()
    assert wandb.defined["reward/reward"] == {"step_metric": "step", "summary": "last,max"}
    assert wandb.defined["*"] == {"step_metric": "step"} and "validation/validation_score" in wandb.defined
    run.finish({"status": "completed"})


def test_an_alert_of_a_topic_is_sent_once_in_a_while(run_with, monkeypatch):
    from actors import wandb_run as module

    monkeypatch.setattr(module, "ALERT_EVERY_S", 0.3)
    run, wandb = run_with()
    run.alert("no step", "· no step for 61 s")
    run.alert("no step", "· no step for 122 s")
    run.alert("update skipped", "· step 3: update 1 of 1 was skipped")
    time.sleep(0.3)
    run.alert("no step", "· no step for 183 s")
    run.finish({"status": "completed"})
    assert wandb.alerts == [
        ("no step", "no step for 61 s", "WARN", 0.3),
        ("update skipped", "step 3: update 1 of 1 was skipped", "WARN", 0.3),
        ("no step", "no step for 183 s", "WARN", 0.3),
    ]
    assert run.news() == []


def test_a_run_that_failed_is_ended_all_the_same(run_with):
    run, wandb = run_with(table=raising(ValueError("no table")))
    run.log(lambda wandb: wandb.Table())
    run.finish({"status": "completed"})
    assert wandb.ended == [0] and len(run.news()) == 1


def test_calls_are_left_out_when_too_many_wait(run_with, monkeypatch):
    from actors import wandb_run as module

    monkeypatch.setattr(module, "MOST_WAITING", 5)
    go = threading.Event()
    run, _ = run_with(init=go.wait)
    for _ in range(50):
        run.log(lambda wandb: {})
    assert run._calls.qsize() == 5 and "will lack some rows" in run.news()[0]
    go.set()


def test_a_config_that_disables_it_needs_no_server(tmp_path):
    from actors.wandb_run import WandbRun

    run = WandbRun(load_training_config(["preset=tiny", "run.name=off", "wandb.mode=disabled"]), tmp_path)
    assert run.started() == ("", "")
    run.log(lambda wandb: {"step": 1})
    run.finish({"status": "completed"})
    assert run.news() == []


def test_an_offline_run_keeps_rows_and_alerts_until_it_is_uploaded(tmp_path):
    """With the real wandb. What its file holds is what `wandb sync` sends."""
    from actors.wandb_run import WandbRun

    run = WandbRun(load_training_config(["preset=tiny", "run.name=kept", "wandb.mode=offline"]), tmp_path)
    place, run_id = run.started()
    run.log(lambda wandb: {"step": 1, "reward/reward": 0.5})
    run.alert("no step", "· no step for 61 s")
    run.finish({"status": "completed"})
    assert run.news() == []
    (kept,) = Path(place).glob(f"run-{run_id}.wandb")
    content = kept.read_bytes()
    assert all(text in content for text in (b"reward/reward", b"no step for 61 s"))
