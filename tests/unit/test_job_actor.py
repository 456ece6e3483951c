"""What the actor of a job makes of its lease and of a folder that cannot be written. In this process, without Ray."""

import asyncio
import json
import threading

import pytest

from pipeline.lease import LEASE, take_lease
from pipeline.storage import LineFile
from tests.support.disks import full_disk


@pytest.fixture
def actor(tmp_path, monkeypatch):
    from actors import job_actor as module
    from pipeline import lease

    monkeypatch.setattr(module, "BEAT_S", 0.05)
    monkeypatch.setattr(lease, "SETTLE_S", 0.01)
    return module.JobActor(str(tmp_path), take_lease(tmp_path))


def beats(folder) -> int:
    return json.loads((folder / LEASE).read_bytes())["beats"]


def test_the_lease_is_kept_alive_until_it_is_released(actor, tmp_path):
    async def run():
        await actor.keep_lease()
        await asyncio.sleep(0.5)
        assert beats(tmp_path) >= 4
        await actor.release_lease()
        assert not (tmp_path / LEASE).exists()

    asyncio.run(run())
    assert list(actor._lines) == []


def test_a_run_whose_folder_was_taken_over_ends_and_writes_nothing(actor, tmp_path):
    from pipeline.errors import RunFailed

    async def run():
        await actor.keep_lease()
        (tmp_path / LEASE).unlink()
        take_lease(tmp_path)  # another run
        with pytest.raises(RunFailed, match="was taken over by run"):
            await actor.unless_failed(asyncio.sleep(10))
        await actor.leave_summary({"status": "failed"})
        await actor.release_lease()

    asyncio.run(run())
    assert actor.lease_lost and not (tmp_path / "summary.json").exists() and (tmp_path / LEASE).exists()


def test_a_run_that_is_started_again_when_its_folder_is_anothers_does_not_begin(actor, tmp_path):
    from pipeline.errors import RunFailed

    (tmp_path / LEASE).unlink()
    take_lease(tmp_path)
    with pytest.raises(RunFailed, match="was taken over by run"):
        asyncio.run(actor.keep_lease())


def test_a_heartbeat_that_cannot_be_written_is_said_once_and_ends_nothing(actor, tmp_path, monkeypatch):
    async def run():
        await actor.keep_lease()
        with monkeypatch.context() as broken:
            full_disk(broken)(0)
            await asyncio.sleep(0.4)
        before = beats(tmp_path)
        await asyncio.sleep(0.4)
        assert beats(tmp_path) > before and not actor._failed.done()
        await actor.release_lease()

    asyncio.run(run())
    (line,) = actor._lines
    assert "the lease of the run folder could not be written" in line and "No space left" in line


def test_a_heartbeat_that_hangs_leaves_the_event_loop_alone(actor, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(type(actor.lease), "keep", lambda self: go.wait(30))
    actor.storage.limit_s = 1

    async def run():
        keeping, beats = asyncio.ensure_future(actor.keep_lease()), 0
        while not keeping.done():
            await asyncio.sleep(0.01)
            beats += 1
        assert beats > 5
        go.set()
        actor._beating.cancel()

    asyncio.run(run())
    assert "did not answer within 1 s" in actor._lines[0]


def test_files_that_cannot_be_written_are_said_once_and_counted_at_the_end(actor, tmp_path, monkeypatch):
    file = LineFile(tmp_path / "results.jsonl", actor.storage)

    async def run():
        with monkeypatch.context() as full:
            full_disk(full)(0)
            for line in ("one", "two"):
                file.add(line)
                actor.say_of(file)
            actor.say_what_is_lost(await actor.finish_files(file))
            await actor.leave_summary({"status": "completed"})
        assert await actor.finish_files(file) == {}

    asyncio.run(run())
    assert [line.partition(":")[0] for line in actor._lines] == [
        "· results.jsonl could not be written; the next line tries again",
        "· results.jsonl lacks 2 that could not be written",
        "· summary.json could not be written",
        "· results.jsonl is written again",
    ]
    assert actor._lines[2].endswith('it is: {"status": "completed"}')
    assert file.path.read_text().split() == ["one", "two"]


def test_an_evaluation_whose_answers_are_not_all_on_disk_has_failed(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from actors.evaluator import Evaluator
    from pipeline.config import load_config
    from pipeline.evaluation.config import EvaluationConfig
    from pipeline.evaluation.results import open_results
    from tests.support.result_rows import row

    config = load_config(["preset=eval_tiny"], EvaluationConfig)
    cls = Evaluator.__ray_metadata__.modified_class
    evaluator = cls(config, str(tmp_path), take_lease(tmp_path))

    async def answer_on_a_full_disk() -> None:
        evaluator.results, _ = open_results(tmp_path / "results.jsonl", evaluator.storage)
        evaluator.progress, evaluator.rows = SimpleNamespace(total=2, answered=2), [row(), row(id="q1")]
        full_disk(monkeypatch)(0)
        for answered in evaluator.rows:
            evaluator.results.put(json.dumps(answered))

    evaluator._evaluate = answer_on_a_full_disk
    summary = asyncio.run(evaluator.run())
    assert summary["status"] == "failed" and summary["answers"] == 2
    assert "2 answers could not be written to results.jsonl" in summary["error"] and "No space" in summary["error"]
    assert summary["unwritten"] == {"results.jsonl": 2}
    said = [line.partition(":")[0] for line in evaluator._lines]
    assert (
        "· results.jsonl lacks 2 that could not be written" in said
        and "· not all tables and figures could be made" in said
    )


@pytest.fixture
def evaluator(tmp_path, monkeypatch):
    """One whose two answers are there, with a wandb that only takes what it is given."""
    from types import SimpleNamespace

    from actors.evaluator import Evaluator
    from pipeline.config import load_config
    from pipeline.evaluation.config import EvaluationConfig
    from tests.support.result_rows import row

    config = load_config(["preset=eval_tiny"], EvaluationConfig)
    evaluator = Evaluator.__ray_metadata__.modified_class(config, str(tmp_path), take_lease(tmp_path))

    async def evaluate() -> None:
        evaluator.progress, evaluator.rows = SimpleNamespace(total=2, answered=2), [row(), row(id="q1")]
        evaluator.wandb = SimpleNamespace(log=lambda row: None, finish=lambda summary: None, news=lambda: ["· news"])

    evaluator._evaluate = evaluate
    return evaluator


def test_tables_that_take_too_long_cost_neither_the_summary_nor_the_lease(evaluator, tmp_path, monkeypatch):
    from actors import evaluator as module

    go = threading.Event()
    monkeypatch.setattr(module, "write_tables", lambda *_: go.wait(30))
    evaluator.tables.limit_s = 0.1
    summary = asyncio.run(evaluator.run())
    go.set()
    assert summary["status"] == "completed" and json.loads((tmp_path / "summary.json").read_text()) == summary
    assert not (tmp_path / LEASE).exists()
    (said,) = [line for line in evaluator._lines if "tables" in line]
    assert "not all tables and figures could be made" in said and "within 0.1 s" in said


def test_what_wandb_has_to_tell_is_said_in_the_event_loop(evaluator):
    """Whoever waits for a line does so there."""
    said, say = [], evaluator.say
    evaluator.say = lambda line: (said.append((line, threading.current_thread())), say(line))
    asyncio.run(evaluator.run())
    assert ("· news", threading.main_thread()) in said and {thread for _, thread in said} == {threading.main_thread()}


def test_what_is_wrong_with_checkpoints_is_said_in_the_event_loop(tiny_config, tmp_path):
    from actors.learning.supervisor import LearnerSupervisor
    from pipeline.errors import RunFailed
    from tests.support.checkpoint_files import write

    said = []
    pool = LearnerSupervisor(tiny_config, tmp_path, "run", lambda line: said.append((line, threading.current_thread())))
    write(pool.keeper.checkpoints, 2)
    (tmp_path / "checkpoints" / "2" / "run.json").unlink()
    with pytest.raises(RunFailed, match="no checkpoint to resume from"):
        asyncio.run(pool.keeper.find())
    ((line, thread),) = said
    assert "checkpoints/2 cannot be used" in line and thread is threading.main_thread()
