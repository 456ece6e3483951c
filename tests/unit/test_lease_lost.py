"""A run whose folder was taken over writes nothing more, whatever it was doing. In this process, without Ray."""

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipeline.config import load_config
from pipeline.errors import RunFailed
from pipeline.evaluation.config import EvaluationConfig
from pipeline.lease import LEASE, Lease, LeaseLost, take_lease
from pipeline.storage import LineFile, StorageClosed
from tests.support.faults import rows_of
from tests.support.simulation import simulate


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("during", ["train", "saved"])
def test_training_ends_before_it_reports_or_saves(tiny_config, tmp_path, monkeypatch, during):
    train = replace(tiny_config.train, steps=10, groups_per_step=2, checkpoint_every=1)
    config = replace(tiny_config, train=train, wandb=replace(tiny_config.wandb, mode="disabled"))
    left = {}
    monkeypatch.setattr(
        "actors.tracker._draw", lambda *_: None
    )  # here it outlives the tracker, whose process is this one

    async def run() -> None:
        simulation = await simulate(config, tmp_path, monkeypatch)
        run, learners = simulation.coordinator, simulation.coordinator.learners
        call = getattr(learners, during)

        def gone(lease) -> None:
            raise LeaseLost("another run has the folder")

        async def lose_the_lease(*arguments):
            if run.step == 2:
                monkeypatch.setattr(Lease, "keep", gone)
                await run._heartbeat(run.storage)
                left.update(files_of(tmp_path))
                run.quarantine.add("a problem", "a reason", {})
            return await call(*arguments)

        setattr(learners, during, lose_the_lease)
        run.spawn(run.rollouts.run())
        for name in simulation.generators.names:
            simulation.generators.join(name)
        with pytest.raises(RunFailed, match="another run has the folder"):
            await asyncio.wait_for(run._train(), 30)
        run.cancel_all()
        assert await run.finish_files(run.quarantine_file) == {}
        await run.leave_summary({"status": "failed"})
        await run.release_lease()
        assert learners.saved_step == (2 if during == "train" else 1)
        assert run.tracker.tracker.actor is None
        assert not any("could not be written" in line for line in run._lines)

    asyncio.run(run())
    assert len(rows_of(tmp_path)) == 2 and files_of(tmp_path) == left


def test_learners_write_and_remove_nothing_more(tiny_config, tmp_path):
    from actors.learning.supervisor import LearnerSupervisor

    async def run() -> None:
        pool, killed = LearnerSupervisor(tiny_config, tmp_path, "run", print), []
        pool._gang, pool.works = SimpleNamespace(kill=lambda: killed.append(True)), True
        pool.abandon("another run has the folder")
        assert killed and not pool.works
        for call in (pool.keeper.checkpoints.begin, pool.keeper.checkpoints.clear):
            with pytest.raises(StorageClosed, match="another run has the folder"):
                await pool.keeper.storage.call_async(call, 2)
        with pytest.raises(RunFailed, match="another run has the folder"):
            await pool.start(version=0)

    asyncio.run(run())
    assert not any(tmp_path.iterdir())


def test_an_evaluation_leaves_the_answers_that_wait(tmp_path):
    """The other run asks these questions, too: a line of ours beside its own would be a duplicate."""
    from actors.evaluator import Evaluator

    evaluator = Evaluator.__ray_metadata__.modified_class(
        load_config(["preset=eval_tiny"], EvaluationConfig), str(tmp_path), take_lease(tmp_path)
    )

    async def run() -> dict:
        evaluator.results = LineFile(tmp_path / "results.jsonl", evaluator.storage)
        (tmp_path / LEASE).unlink()
        take_lease(tmp_path)  # another run
        evaluator.results._keep([json.dumps({"an": "answer"})])
        return await evaluator.run()

    summary = asyncio.run(run())
    assert summary["status"] == "failed" and "was taken over by run" in summary["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [LEASE, "run.id"]


def test_fine_tuning_ends_the_learners_and_the_tracker(tmp_path):
    from actors.fine_tuner import FineTuner
    from pipeline.fine_tuning.config import FineTuningConfig

    tuner = FineTuner.__ray_metadata__.modified_class(
        load_config(["preset=fine_tune_tiny"], FineTuningConfig),
        str(tmp_path),
        take_lease(tmp_path),
    )

    async def run() -> list[str]:
        ended = []
        tuner.gang = SimpleNamespace(kill=lambda: ended.append("learners"))
        tuner.tracker = SimpleNamespace(abandon=lambda: ended.append("tracker"))
        (tmp_path / LEASE).unlink()
        take_lease(tmp_path)
        with pytest.raises(RunFailed, match="was taken over by run"):
            await tuner.keep_lease()
        with pytest.raises(StorageClosed, match="was taken over by run"):
            await tuner.keeper.storage.call_async(tuner.keeper.checkpoints.begin, 2)
        return ended

    assert asyncio.run(run()) == ["learners", "tracker"]
