"""The trajectory buffer: its bound, its back-pressure, and that it hands references through."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from actors.buffer import TrajectoryBuffer
from tests.support.groups import random_group, record_of

GROUP = random_group(np.random.default_rng(0))


@pytest.fixture
def buffer(tiny_config):
    """With one generator; two groups a step, staleness up to 1."""
    train = replace(tiny_config.train, groups_per_step=2, max_staleness=1, steps=10)
    buffer = TrajectoryBuffer(replace(tiny_config, train=train))
    buffer.generator_has("g", 0)
    return buffer


def add(buffer, *group_ids: str) -> None:
    for group_id in group_ids:
        assert buffer.add(group_id, record_of(GROUP, group_id, [0, 1, 0]), f"reference to {group_id}")


async def waits(task: asyncio.Task) -> bool:
    await asyncio.sleep(0.05)
    return not task.done()


def test_admission_waits_when_the_bound_is_reached_and_goes_on_when_a_step_is_done(buffer):
    async def run():
        assert [buffer.admit(i, p) for p, i in enumerate("abcd")] == ["g"] * 4
        room = asyncio.create_task(buffer.room())
        assert await waits(room)  # (1 + max_staleness) × groups_per_step are in flight
        add(buffer, "a", "b")
        taken, dropped = await buffer.take()
        assert [(record.group_id, ref) for record, ref in taken] == [
            ("a", "reference to a"),
            ("b", "reference to b"),
        ]
        assert dropped == [] and await waits(room)
        buffer.generator_has("g", 1)  # the weights of the step, once it is done
        await asyncio.wait_for(room, 1)  # two are training, two in flight
        assert buffer.admit("e", 4) == "g"
        buffer.step_done()
        assert (buffer.ledger.admitted, buffer.ledger.trained, len(buffer.ledger.entries)) == (5, 2, 3)

    asyncio.run(run())


def test_a_group_that_failed_makes_room(buffer):
    async def run():
        for position, group_id in enumerate("abcd"):
            buffer.admit(group_id, position)
        room = asyncio.create_task(buffer.room())
        assert await waits(room)
        buffer.fail("b")
        await asyncio.wait_for(room, 1)

    asyncio.run(run())
    assert buffer.ledger.failed == 1


def test_the_learner_waits_for_whole_steps(buffer):
    async def run():
        buffer.admit("a", 0), buffer.admit("b", 1)
        add(buffer, "a")
        taking = asyncio.create_task(buffer.take())
        assert await waits(taking)
        add(buffer, "b")
        taken, _ = await asyncio.wait_for(taking, 1)
        assert len(taken) == 2

    asyncio.run(run())


def test_a_generator_that_died_is_given_no_groups_until_it_reports_again(buffer):
    async def run():
        buffer.generator_gone("g")
        room = asyncio.create_task(buffer.room())
        assert await waits(room) and buffer.admit("a", 0) is None
        buffer.generator_has("g", 0)
        await asyncio.wait_for(room, 1)
        assert buffer.admit("a", 0) == "g"

    asyncio.run(run())


def test_a_running_group_moves_to_another_generator_as_soon_as_there_is_one(buffer):
    async def run():
        buffer.admit("a", 0)
        buffer.generator_gone("g")
        moving = asyncio.create_task(buffer.move("a"))
        assert await waits(moving)
        buffer.generator_has("h", 3)
        assert await asyncio.wait_for(moving, 1) == "h"

    asyncio.run(run())
    # Its first tokens may be those of the generator before.
    assert (buffer.ledger.entries["a"].generator, buffer.ledger.entries["a"].first_version) == ("h", 0)


def test_lost_groups_are_made_again_and_the_others_of_their_step_are_taken_again(buffer):
    async def run():
        buffer.admit("a", 0), buffer.admit("b", 1)
        add(buffer, "a", "b")
        await buffer.take()
        buffer.lose(["a"])
        taking = asyncio.create_task(buffer.take())
        assert await waits(taking)
        add(buffer, "a")
        taken, _ = await asyncio.wait_for(taking, 1)
        assert [record.group_id for record, _ in taken] == ["a", "b"]

    asyncio.run(run())


def test_a_rollback_goes_back_in_steps_and_on_in_versions(buffer):
    async def run():
        for number, group_id in enumerate("abcd"):
            buffer.admit(group_id, number)
        add(buffer, "a", "b", "c", "d")
        await buffer.take()
        buffer.step_done()
        await buffer.take()
        buffer.roll_back(0)
        assert (buffer.ledger.step, buffer.ledger.version, buffer.ledger.trained) == (0, 2, 0)
        taken, dropped = await buffer.take()
        assert taken is None and dropped == ["c", "d"]  # of version 0: too old for the weights that are version 2 now

    asyncio.run(run())
