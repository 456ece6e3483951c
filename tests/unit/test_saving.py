"""When a run saves its checkpoints: in the background, each step once, the last one before the run waits for more."""

import asyncio
from dataclasses import replace

import pytest

from tests.support.simulation import Learners, simulate


class SlowLearners(Learners):
    """Learners whose checkpoints are written in the background."""

    def __init__(self):
        self.begun: list[int] = []
        self.rewards: list[float] = []
        self._writing: asyncio.Task | None = None

    async def save(self, state) -> None:
        await self.saved()
        self.begun.append(state.step)
        self.rewards.append(state.reward)
        self._writing = asyncio.create_task(self._write(state.step))

    async def _write(self, step: int) -> None:
        await asyncio.sleep(0.05)
        self.saved_step = step

    async def saved(self) -> None:
        if self._writing:
            await self._writing
            self._writing = None


@pytest.mark.parametrize("steps, saved", [(4, [2, 4]), (5, [2, 4, 5])])
def test_every_checkpoint_is_saved_once(tiny_config, tmp_path, monkeypatch, steps, saved):
    train = replace(tiny_config.train, steps=steps, groups_per_step=4, checkpoint_every=2, evaluate_every=0)
    config = replace(tiny_config, train=train, wandb=replace(tiny_config.wandb, mode="disabled"))

    async def main() -> SlowLearners:
        run = await simulate(config, tmp_path, monkeypatch)
        learners = SlowLearners()
        run.coordinator.learners = run.coordinator.accounts.learners = learners
        await asyncio.wait_for(run.train(), 60)
        assert learners.saved_step == steps  # what follows training may take long
        return learners

    learners = asyncio.run(main())
    assert learners.begun == saved
    assert all(reward == pytest.approx(2 / 3) for reward in learners.rewards)  # each of its own steps
