"""The groups of a run: their bound, their back-pressure, and that references are handed through."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest

from actors.generation.journal import Journal
from actors.groups import Groups
from pipeline.data.problem_queue import ProblemQueue
from pipeline.data.problem_stream import START, Cursor
from pipeline.data.quarantine import Quarantine
from pipeline.errors import DataError, RunFailed
from pipeline.run.checkpoints import RunState
from pipeline.run.ledger import BUFFERED, DROPPED_STALE
from pipeline.run.source import training_source
from tests.support.groups import random_group, record_of
from tests.support.simulation import Handle, Problems

GROUP = random_group(np.random.default_rng(0))


def make_groups(config, folder, problems: int = 50, max_bad_share: float = 1.0, **train) -> Groups:
    """With one generator; two groups a step, staleness up to 1, unless `train` says otherwise."""
    sizes = {"groups_per_step": 2, "max_staleness": 1, "steps": 10} | train
    config = replace(config, train=replace(config.train, **sizes))
    quarantine = Quarantine(folder / "quarantine.jsonl", max_bad_share)
    groups = Groups(config, lambda line: None, Handle(Journal.__ray_metadata__.modified_class()), quarantine, {"g": 0})
    groups.problems = ProblemQueue(Problems(problems), 0, quarantine)
    return groups


@pytest.fixture
def groups(tiny_config, tmp_path):
    return make_groups(tiny_config, tmp_path)


async def admit(groups, number: int) -> list[str]:
    """Start so many groups, all on the one generator; return their ids."""
    admitted = [await asyncio.wait_for(groups.admit(), 1) for _ in range(number)]
    assert {name for _, name in admitted} <= {"g"}
    return [group_id for group_id, _ in admitted]


def add(groups, *group_ids: str) -> None:
    for group_id in group_ids:
        groups.add(group_id, record_of(GROUP, group_id, [0, 1, 0]), f"reference to {group_id}")
        assert groups.ledger.entries[group_id].state == BUFFERED


def discard(groups, group_id: str) -> None:
    groups.add(group_id, record_of(GROUP, group_id, [1, 1, 1]), "reference")
    assert group_id not in groups.ledger.entries


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
        assert (groups.ledger.numbered, groups.ledger.trained, len(groups.ledger.entries)) == (5, 2, 3)

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


def test_a_groups_number_is_its_place_in_the_order_of_admission_whatever_becomes_of_it(groups):
    async def run():
        a, b, c = await admit(groups, 3)
        assert [groups.number(group) for group in (a, b, c)] == [1, 2, 3]
        groups.generator_lost(a, blame=True)
        await groups.move(a)
        groups.withdraw(b, "cannot be run")
        add(groups, a, c)
        assert groups.lose(await groups.take(), [0]) == [a]
        assert groups.number(a) == 1 and groups.number(c) == 3
        (d,) = await admit(groups, 1)
        assert groups.number(d) == 4

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


def test_a_rollback_wakes_an_admission(tiny_config, tmp_path):
    groups = make_groups(tiny_config, tmp_path, max_staleness=2, steps=2)

    async def run():
        a, b, *_ = await admit(groups, 4)
        add(groups, a, b)
        groups.step_done(await groups.take())
        has(groups, 1)
        admitting = asyncio.create_task(groups.admit())
        assert await waits(admitting)  # the last step has its groups
        groups.roll_back(0, START)
        again, _ = await asyncio.wait_for(admitting, 1)
        assert groups.position(again) == 0

    asyncio.run(run())


def test_a_suspect_runs_as_soon_as_its_generator_is_empty(groups):
    async def run():
        suspect, other = await admit(groups, 2)
        groups.generator_lost(suspect, blame=True)
        assert await asyncio.wait_for(groups.move(suspect), 1) == "g"
        groups.generator_lost(suspect, blame=True)
        moving = asyncio.create_task(groups.move(suspect))
        assert await waits(moving)
        groups.generator_lost(other, blame=False)  # the generator was back, under its name, before this was known
        assert await asyncio.wait_for(moving, 1) == "g"
        moving = asyncio.create_task(groups.move(other))
        assert await waits(moving)
        add(groups, suspect)
        assert await asyncio.wait_for(moving, 1) == "g"

    asyncio.run(run())


def test_a_step_that_is_taken_wakes_an_admission(tiny_config, tmp_path):
    groups = make_groups(tiny_config, tmp_path, groups_per_step=1, max_staleness=2)

    async def run():
        add(groups, *await admit(groups, 1))
        groups.step_done(await groups.take())
        late, _ = await admit(groups, 2)
        groups.roll_back(0, START)  # the deadline of both is now, and only one can meet it
        add(groups, late)
        has(groups, 2)
        admitting = asyncio.create_task(groups.admit())
        assert await waits(admitting)
        await groups.take()
        await asyncio.wait_for(admitting, 1)

    asyncio.run(run())


def test_groups_discarded_while_a_step_trains_belong_to_the_next_step(tiny_config, tmp_path):
    groups = make_groups(tiny_config, tmp_path, dynamic_sampling=True)

    async def run():
        a, b, c, d = await admit(groups, 4)
        discard(groups, c)
        add(groups, a, b)
        first = await groups.take()
        discard(groups, d)
        groups.step_done(first)
        has(groups, 1)
        add(groups, *await admit(groups, 2))
        second = await groups.take()
        assert [[record.group_id for record in step.discarded] for step in (first, second)] == [[c], [d]]

    asyncio.run(run())


def test_a_run_resumes_with_its_problems_steps_and_failures(tiny_config, tmp_path):
    path = tmp_path / "samples.jsonl"
    rows = [{"id": f"p{n}", "question": "who?", "answers": ["Ann"], "document": "Ann did."} for n in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = replace(tiny_config, data=replace(tiny_config.data, source="file", path=str(path)))
    order = [f"p{row}" for row in training_source(config).order(config.run.seed, 0)]
    failures = {"RuntimeError": 2, DROPPED_STALE: 1}
    state = RunState(3, 5, Cursor(4, (1,)), 2, failures=failures, discarded=7, withdrawn=[order[4]])
    groups = make_groups(config, tmp_path)

    async def run():
        await groups.open_data(state, {order[6]})
        groups.resume(state)
        assert groups.problems.cursor() == state.cursor
        has(groups, 5)
        return [(groups.position(group_id), groups.problem(group_id).id) for group_id in await admit(groups, 4)]

    assert asyncio.run(run()) == [(position, order[position]) for position in (1, 5, 7, 8)]
    assert (groups.ledger.step, groups.ledger.version, groups.failures) == (3, 5, failures)
    assert (groups.ledger.failed, groups.ledger.dropped_stale, groups.ledger.discarded) == (2, 1, 7)
    assert groups.problems.withdrawn == sorted([order[4], order[6]]) and groups._quarantine.bad == 2


def test_a_run_fails_when_too_many_groups_fail(groups):
    groups.failures[DROPPED_STALE] = 9  # no failures

    async def run():
        *first, last = await admit(groups, 4)
        for group_id in first:
            groups.fail(group_id, RuntimeError("it failed"))
        with pytest.raises(RunFailed, match="4 groups failed and 0 did not; the last failure: RuntimeError: it failed"):
            groups.fail(last, RuntimeError("it failed"))

    asyncio.run(run())
    assert not groups.ledger.entries


@pytest.mark.parametrize("how", ["withdraw", "fail"])
def test_a_run_ends_when_too_many_problems_cannot_be_run(tiny_config, tmp_path, how):
    groups = make_groups(tiny_config, tmp_path, problems=10, max_bad_share=0.1, max_attempts=1, max_failed_share=1.0)
    end = groups.withdraw if how == "withdraw" else lambda group_id, why: groups.fail(group_id, RuntimeError(why))

    async def run():
        a, b = await admit(groups, 2)
        end(a, "too long")
        with pytest.raises(DataError, match="2 of 10 rows are bad, more than max_bad_share=0.1"):
            end(b, "too long")

    asyncio.run(run())
    assert not groups.ledger.entries and groups.problems.withdrawn == ["p0", "p1"]
    quarantined = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["id"], row["withdrawn"]) for row in quarantined] == [("p0", True), ("p1", True)]
    assert all(row["reason"].endswith("too long") for row in quarantined)
