"""The tracker as an actor, with a real wandb process."""

import asyncio
import os
import time

import psutil
import pytest

from pipeline.run.config import load_training_config
from tests.support.faults import LIMIT_S, rows_of, until


@pytest.fixture
def config(random_model):
    return load_training_config(
        ["preset=tiny", f"model.path={random_model}", "wandb.mode=disabled", "run.name=tracked"]
    )


def row(step: int) -> dict:
    return {"step": step, "reward": step / 10, "positions": [step], "staleness_tokens": [3, 4]}


def test_rows_are_whole_whatever_becomes_of_wandb(ray_session, config, tmp_path, monkeypatch):
    """A real one, whose core process is killed; then the tracker itself stands still, and is not waited for."""
    from actors.tracker import Tracker
    from actors.tracking import Tracking

    config.wandb.mode = "offline"
    actor, said = Tracker.remote(config, str(tmp_path)), []

    async def run() -> None:
        tracking = Tracking(actor, said.append)
        rows, _, place, wandb_id = await tracking.begun()
        assert rows == [] and wandb_id in place
        await tracking.log(row(1))
        process = psutil.Process(await actor.__ray_call__.remote(lambda self: os.getpid()))
        cores = [p for p in process.children(recursive=True) if "wandb-core" in p.name()]
        core = min(cores, key=lambda p: p.create_time())  # a child of its own has its name for a moment
        core.kill()
        until(lambda: not core.is_running() or core.status() == psutil.STATUS_ZOMBIE)
        for step in (2, 3):
            await tracking.log(row(step))
            await asyncio.sleep(0.5)
        await tracking.episodes(3, [], [])
        await tracking.roll_back(2)
        await tracking.log(row(3))
        assert len(said) == 1, said
        (line,) = said
        assert line.startswith("· wandb: ") and "the run continues without it" in line
        process.suspend()
        try:
            monkeypatch.setattr("actors.tracking.ANSWER_S", 0.5)
            begin = time.monotonic()
            for step in (4, 5):
                await tracking.log(row(step))
            assert await tracking.flush() == {"metrics.jsonl": 2} and time.monotonic() - begin < 10
            assert said[1:] == [
                "· the tracker (metrics.jsonl, wandb): no answer for 0.5 s; the run does not wait for it"
            ]
        finally:
            monkeypatch.undo()
            process.resume()
        while await tracking.flush():
            await asyncio.sleep(0.1)
        await tracking.finish({"status": "completed"})

    asyncio.run(asyncio.wait_for(run(), LIMIT_S))
    assert rows_of(tmp_path) == [row(step) for step in range(1, 6)]
    ray_session.kill(actor)
