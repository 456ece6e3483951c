"""The groups of a run: their bound, their back-pressure, and that references are handed through."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from actors.generation.journal import Journal
from actors.groups import Groups
from pipeline.data.problem_queue import ProblemQueue
from pipeline.data.problem_stream import START
from pipeline.data.quarantine import Quarantine
from pipeline.run.ledger import BUFFERED
from tests.support.groups import random_group, record_of
from tests.support.simulation import Handle, Problems

GROUP = random_group(np.random.default_rng(0))


@pytest.fixture
def groups(tiny_config, tmp_path):
    """With one generator; two groups a step, staleness up to 1."""
    config = replace(tiny_config, train=replace(tiny_config.train, groups_per_step=2, max_staleness=1, steps=10))
    journal, quarantine = Journal.__ray_metadata__.modified_class(), Quarantine(tmp_path / "quarantine.jsonl", 1.0)
    groups = Groups(config, lambda line: None, Handle(journal), quarantine, {"g": 0})
    groups.problems = ProblemQueue(Problems(50), 0, quarantine)
    return groups


async def admit(groups, number: int) -> list[str]:
    """Start so many groups, all on the one generator; return their ids."""
    admitted = [await asyncio.wait_for(groups.admit(), 1) for _ in range(number)]
    assert {name for _, name in admitted} <= {"g"}
    return [group_id for group_id, _ in admitted]


def add(groups, *group_ids: str) -> None:
    for group_id in group_ids:
        groups.add(group_id, record_of(GROUP, group_id, [0, 1, 0]), f"reference to {group_id}")
        assert groups.ledger.entries[group_id].state == BUFFERED


def has(groups, version: int | None, name: str = "g") -> None:
    """A generator samples with these weights from now on; None: it is gone."""
    if version is None:
        del groups.ledger.generators[name]
    else:
        groups.ledger.generators[name] = version
    groups.changed()


def ids(step) -> list[str]:
    return [record.group_id for record, _ in step.groups]


async def waits(task: asyncio.Task) -> bool:
    await asyncio.sleep(0.05)
    return not task.done()


def test_admission_waits_when_the_bound_is_reached_and_goes_on_when_a_step_is_done(groups):
    async def run():
        a, b, *_ = await admit(groups, 4)
        admitting = asyncio.create_task(groups.admit())
        assert await waits(admitting)  # (1 + max_staleness) × groups_per_step are in flight
        add(groups, a, b)
        step = await groups.take()
        assert [(record.group_id, ref) for record, ref in step.groups] == [
            (a, f"reference to {a}"),
            (b, f"reference to {b}"),
        ]
        assert step.positions == [0, 1] and [problem.id for problem in step.problems] == ["p0", "p1"]
        assert not groups.failures and await waits(admitting)
        has(groups, 1)  # the weights of the step, once it is done
        _, generator = await asyncio.wait_for(admitting, 1)  # two are training, two in flight
        assert generator == "g"
        groups.step_done(step)
        assert (groups.ledger.admitted, groups.ledger.trained, len(groups.ledger.entries)) == (5, 2, 3)

    asyncio.run(run())


def test_a_group_that_failed_makes_room(groups):
    async def run():
        _, b, *_ = await admit(groups, 4)
        admitting = asyncio.create_task(groups.admit())
        assert await waits(admitting)
        groups.fail(b, RuntimeError("it failed"))
        again, _ = await asyncio.wait_for(admitting, 1)
        assert groups.position(again) == 1

    asyncio.run(run())
    assert groups.ledger.failed == 1 and groups.failures == {"RuntimeError": 1}


def test_the_learner_waits_for_whole_steps(groups):
    async def run():
        a, b = await admit(groups, 2)
        add(groups, a)
        taking = asyncio.create_task(groups.take())
        assert await waits(taking)
        add(groups, b)
        assert len((await asyncio.wait_for(taking, 1)).groups) == 2

    asyncio.run(run())


def test_a_generator_that_died_is_given_no_groups_until_it_is_in_service_again(groups):
    async def run():
        has(groups, None)
        admitting = asyncio.create_task(groups.admit())
        assert await waits(admitting)
        has(groups, 0)
        assert (await asyncio.wait_for(admitting, 1))[1] == "g"

    asyncio.run(run())


def test_a_generator_that_dies_while_a_problem_is_read_is_given_no_group(groups):
    async def run():
        read = groups.problems.next

        def read_and_lose():
            groups.problems.next = read
            del groups.ledger.generators["g"]
            return read()

        groups.problems.next = read_and_lose
        admitting = asyncio.create_task(groups.admit())
        assert await waits(admitting) and not groups.ledger.entries
        has(groups, 0)
        group_id, _ = await asyncio.wait_for(admitting, 1)
        assert groups.position(group_id) == 0

    asyncio.run(run())


def test_a_running_group_moves_to_another_generator_as_soon_as_there_is_one(groups):
    async def run():
        (a,) = await admit(groups, 1)
        has(groups, None)
        moving = asyncio.create_task(groups.move(a))
        assert await waits(moving)
        has(groups, 3, "h")
        assert await asyncio.wait_for(moving, 1) == "h"
        # Its first tokens may be those of the generator before.
        assert (groups.ledger.entries[a].generator, groups.ledger.entries[a].first_version) == ("h", 0)

    asyncio.run(run())


def test_lost_groups_are_made_again_and_the_others_of_their_step_are_taken_again(groups):
    async def run():
        a, b = await admit(groups, 2)
        add(groups, a, b)
        assert groups.lose(await groups.take(), [0]) == [a]
        taking = asyncio.create_task(groups.take())
        assert await waits(taking)
        add(groups, a)
        assert ids(await asyncio.wait_for(taking, 1)) == [a, b]

    asyncio.run(run())


def test_a_rollback_goes_back_in_steps_and_on_in_versions(groups):
    async def run():
        a, b, c, d = await admit(groups, 4)
        add(groups, a, b, c, d)
        groups.step_done(await groups.take())
        await groups.take()
        groups.roll_back(0, START)
        assert (groups.ledger.step, groups.ledger.version, groups.ledger.trained) == (0, 2, 0)
        taking = asyncio.create_task(groups.take())
        assert await waits(taking)
        # Of version 0: too old for the weights that are version 2 now.
        assert groups.failures == {"dropped_stale": 2} and not groups.ledger.entries
        taking.cancel()
        has(groups, 2)
        assert [groups.position(group_id) for group_id in await admit(groups, 4)] == [0, 1, 2, 3]

    asyncio.run(run())
