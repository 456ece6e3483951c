"""How the supervisor publishes weights: beside the next step, in order, and never those of a lost gang."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from actors.learning.gang import GangLost
from actors.learning.rank import Description
from actors.learning.supervisor import RESTARTS_IN_A_ROW, LearnerSupervisor
from pipeline.data.problem_stream import START
from pipeline.errors import RunFailed
from pipeline.run.checkpoints import Checkpoint, RunState
from pipeline.weights.transport import Weights


class Gang:
    """Sends what was copied last, once it may."""

    size = 1

    def __init__(self):
        self.may_send, self.copied, self.fails = asyncio.Event(), 0, False

    async def copy_weights(self, version: int, transport: str) -> None:
        self.copied = version

    async def send_weights(self) -> Weights:
        await self.may_send.wait()
        if self.fails:
            raise GangLost("a rank died")
        return Weights(self.copied)

    async def close(self) -> None: ...

    def kill(self) -> None: ...


class Supervisor(LearnerSupervisor):
    """Has a gang, and notes what is delivered."""

    def __init__(self, config, folder):
        super().__init__(config, folder, "run", print)
        self._gang, self.delivered = Gang(), []

    async def deliver(self, weights: Weights) -> None:
        self.delivered.append(weights.version)


@pytest.fixture
def supervised(tiny_config, tmp_path):
    """Runs a life of a supervisor."""

    def run(life):
        async def main():
            return await asyncio.wait_for(life(Supervisor(tiny_config, tmp_path)), 10)

        return asyncio.run(main())

    return run


def test_training_goes_on_while_a_version_is_sent_and_the_next_one_waits_for_it(supervised):
    async def life(learners: Supervisor) -> None:
        await learners.publish(1, learners.deliver)
        assert await learners.unless_unsent(asyncio.sleep(0, "groups")) == "groups" and learners.delivered == []
        waiting = asyncio.create_task(learners.publish(2, learners.deliver))
        await asyncio.sleep(0.01)
        assert learners._gang.copied == 1  # its buffers are in use
        learners._gang.may_send.set()
        await waiting
        await learners.sent()
        await learners.sent()
        assert learners.delivered == [1, 2]

    supervised(life)


def test_the_share_of_bytes_is_that_of_the_version_that_was_sent_last(supervised, monkeypatch):
    transport = SimpleNamespace(bytes_share=lambda pieces: 0.25)
    monkeypatch.setattr("actors.learning.supervisor.load_transport", lambda name: {"buckets": transport}[name])

    async def life(learners: Supervisor) -> None:
        learners._gang.may_send.set()
        assert learners.weight_bytes_share is None
        await learners.publish(1, learners.deliver)
        await learners.sent()
        assert learners.weight_bytes_share == 0.25

    supervised(life)


def test_who_waits_for_groups_learns_that_a_version_cannot_be_sent(supervised):
    async def life(learners: Supervisor) -> None:
        learners._gang.fails = True
        await learners.publish(1, learners.deliver)
        learners._gang.may_send.set()
        with pytest.raises(GangLost, match="a rank died"):
            await learners.unless_unsent(asyncio.Event().wait())
        assert learners.delivered == []

    supervised(life)


def test_sends_that_keep_failing_end_the_run_whatever_is_trained_in_between(supervised):
    async def life(learners: Supervisor) -> int:
        learners._gang.fails = True
        learners._gang.may_send.set()
        for number in range(100):
            await learners.publish(number, learners.deliver)
            with pytest.raises(GangLost):
                await learners.sent()
            try:
                await learners.lost("a rank died")
            except RunFailed:
                return number
        return 100

    assert supervised(life) == RESTARTS_IN_A_ROW


def test_a_version_that_arrives_ends_the_row_of_losses(supervised):
    async def life(learners: Supervisor) -> None:
        learners._gang.may_send.set()
        for number in range(3 * RESTARTS_IN_A_ROW):
            await learners.publish(number, learners.deliver)
            await learners.sent()
            await learners.lost("a rank died")

    supervised(life)


@pytest.mark.parametrize("ranks", [2, 3])
def test_only_the_checkpoint_folder_must_be_shared(tiny_config, tmp_path, monkeypatch, ranks):
    """Whatever the number of ranks that wrote the checkpoint."""
    from actors.learning import supervisor as module

    checked, started = [], []

    class StartingGang(Gang):
        def __init__(self, config, size, group):
            super().__init__()

        async def up(self) -> None: ...

        async def check_folder(self, folder: str, run_id: str, advice: str) -> None:
            checked.append((folder, run_id))

        async def start(self, checkpoint: str) -> None:
            started.append(checkpoint)

        async def describe(self) -> Description:
            return Description("", None, 0, "padded")

    async def life() -> None:
        config = replace(tiny_config, train=replace(tiny_config.train, checkpoint_folder="s3://bucket/kept"))
        learners = Supervisor(config, tmp_path)
        state = RunState(8, 8, START, ranks)
        learners.keeper.newest = Checkpoint("s3://bucket/kept/run/8", state)
        learners._room = SimpleNamespace(is_whole=lambda: True, size=2, group=None)
        await learners.start(0)

    monkeypatch.setattr(module, "LearnerGang", StartingGang)
    asyncio.run(life())
    assert checked == [(f"s3://bucket/kept/{tiny_config.run.name}", "run")] and started == ["s3://bucket/kept/run/8"]


@pytest.mark.parametrize("end", ["lost", "make way", "abandon", "close"])
def test_what_a_gang_that_is_gone_was_sending_is_not_delivered(supervised, end):
    async def life(learners: Supervisor) -> None:
        learners.works = True
        learners._room.reachable = lambda: 0
        await learners.publish(1, learners.deliver)
        waiting = asyncio.create_task(learners.sent())
        await asyncio.sleep(0.01)
        if end == "lost":
            await learners.lost("a rank died")
        elif end == "make way":
            await learners.make_way()
        elif end == "abandon":
            learners.abandon("another run has the folder")
        else:
            await learners.close()
        with pytest.raises(GangLost):
            await waiting
        learners._gang.may_send.set()
        await learners.sent()
        assert await learners.unless_unsent(asyncio.sleep(0.01, "groups")) == "groups"
        assert learners.delivered == []

    supervised(life)
