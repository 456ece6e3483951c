"""A problem that kills its generators is found, and costs nobody else anything."""

import asyncio
import json
from dataclasses import replace

import pytest

from pipeline.data.problem_queue import ProblemQueue
from pipeline.data.problem_stream import START, Cursor
from pipeline.data.quarantine import Quarantine
from pipeline.errors import DataError, RunFailed
from pipeline.run.checkpoints import RunState
from pipeline.run.ledger import SUSPECT_DEATHS, Ledger
from tests.support.faults import rows_of
from tests.support.simulation import Problems, simulate


@pytest.mark.parametrize("generators", [1, 2, 4])
@pytest.mark.parametrize("deadly", [{"p5"}, {"p2", "p5", "p6", "p7"}])
def test_who_kills_generators_is_quarantined_by_name_and_nobody_else_is_charged(
    tiny_config, tmp_path, monkeypatch, generators, deadly
):
    train = replace(tiny_config.train, steps=12, groups_per_step=4, max_staleness=1)
    wandb, data = replace(tiny_config.wandb, mode="disabled"), replace(tiny_config.data, max_bad_share=0.2)
    config = replace(tiny_config, train=train, wandb=wandb, data=data)

    async def main():
        # Two passes over the data, so that each problem's turn comes again.
        run = await simulate(
            config, tmp_path, monkeypatch, problems=25, generators=generators, deadly=deadly, seconds=0.01
        )
        await asyncio.wait_for(run.train(), 60)
        return run

    run = asyncio.run(main())
    quarantined = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert {row["id"] for row in quarantined} == deadly and run.coordinator.quarantine.bad == len(deadly)
    assert all(
        "generators died under it, the last one while it ran nothing else" in row["reason"] for row in quarantined
    )
    assert run.coordinator.groups.problems.withdrawn == sorted(deadly)
    # Of the generators that died under it, the last one ran nothing else; and no more do.
    for problem in deadly:
        ran = [group_ids for _, group_ids in run.generators.together if any(f"{problem}#" in i for i in group_ids)]
        assert len(ran[-1]) == 1 and all(f"{problem}#" in i for i in ran[-1])
        assert len(ran) == SUSPECT_DEATHS + 1
    lost = {group_id.partition("#")[0] for _, group_ids in run.generators.together for group_id in group_ids}
    assert lost - deadly or generators == 4  # innocent ones, too
    assert run.coordinator.groups.failures == {}
    assert not any(problem.failures for problem in run.coordinator.groups.problems._open.values())
    trained = [position for row in rows_of(tmp_path) for position in row["positions"]]
    assert len(trained) == len(set(trained)) == 48 and not {f"p{p % 25}" for p in trained} & deadly
    assert not run.coordinator.groups.ledger.generators.keys() - set(run.generators.names)


def ledger_of(**generators: int) -> Ledger:
    return Ledger(groups_per_step=8, max_staleness=0, steps=1, generators=generators)


def test_a_suspect_waits_for_an_empty_generator_which_is_given_nothing_else():
    ledger = ledger_of(a=0, b=0)
    for position, group_id in enumerate("qrst"):
        assert ledger.admit(group_id, position) == "abab"[position]
    for _ in range(SUSPECT_DEATHS):
        ledger.generator_lost("q", blame=True)
        ledger.move("q")
    assert ledger.entries["q"].reserved == "a" and ledger.entries["q"].generator == ""  # s runs there
    assert ledger.next_generator() == "b" and ledger.admit("u", 4) == "b"
    ledger.fail("s")
    assert ledger.move("q") == "a"
    assert [ledger.admit(group_id, 5) for group_id in "vw"] == ["b", "b"]
    ledger.fail("q")
    assert ledger.admit("x", 6) == "a"


def test_each_suspect_has_a_generator_of_its_own_and_the_others_wait():
    ledger = ledger_of(a=0)
    for position, group_id in enumerate("qrs"):
        ledger.admit(group_id, position)
    for group_id in "qrs":
        for _ in range(SUSPECT_DEATHS if group_id != "s" else 1):
            ledger.generator_lost(group_id, blame=True)
    assert ledger.move("q") == "a" and ledger.move("r") is None and ledger.move("s") is None
    assert ledger.admit("t", 3) is None
    ledger.withdraw("q")
    assert ledger.move("r") == "a" and ledger.move("s") is None
    ledger.withdraw("r")
    assert ledger.move("s") == "a"


def test_a_suspect_whose_generator_leaves_is_kept_another():
    ledger = ledger_of(a=0, b=0)
    ledger.admit("q", 0)
    for _ in range(SUSPECT_DEATHS):
        ledger.generator_lost("q", blame=True)
    assert ledger.move("q") == "a"
    del ledger.generators["a"]
    assert ledger.generator_lost("q", blame=False).deaths == SUSPECT_DEATHS
    assert ledger.move("q") == "b"


def test_generators_that_leave_make_no_suspect():
    ledger = ledger_of(a=0)
    ledger.admit("q", 0), ledger.admit("r", 1)
    for _ in range(10):
        assert ledger.generator_lost("q", blame=False).deaths == 0
        assert ledger.move("q") == "a" and ledger.entries["q"].reserved == ""


def queue_of(problems: int, tmp_path, cursor=START, withdrawn=()) -> ProblemQueue:
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 1.0)
    return ProblemQueue(Problems(problems), 0, quarantine, cursor, withdrawn)


def test_a_withdrawn_problem_is_passed_over_in_every_pass_and_after_the_run_is_resumed(tmp_path):
    queue = queue_of(3, tmp_path)
    read = [queue.next() for _ in range(3)]
    queue.withdraw(read[1])
    assert [queue.next() for _ in range(4)] == [3, 5, 6, 8]
    resumed = queue_of(3, tmp_path, queue.cursor(), queue.withdrawn)
    assert [resumed.next() for _ in range(8)] == [0, 2, 3, 5, 6, 8, 9, 11] and resumed.withdrawn == ["p1"]
    for position in (0, 2, 3, 5, 6, 8):
        queue.done(position)
    queue.roll_back(START)
    assert [queue.next() for _ in range(8)] == [0, 2, 3, 5, 6, 8, 9, 11]


def test_when_all_problems_are_withdrawn_the_run_ends(tmp_path):
    queue = queue_of(2, tmp_path)
    for position in [queue.next() for _ in range(2)]:
        queue.withdraw(position)
    with pytest.raises(DataError, match="all problems were withdrawn"):
        queue.next()


def test_what_was_withdrawn_before_the_run_was_resumed_is_counted_once(tmp_path):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", 1.0)
    quarantine.add("a", "bad", {})
    quarantine.resume(["a", "b"])
    quarantine.add("b", "bad again", {})
    assert quarantine.bad == 2 and len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 1


def test_a_problem_that_was_withdrawn_after_the_last_checkpoint_is_not_run_again(tiny_config, tmp_path, monkeypatch):
    """Whether there is a checkpoint or none. A row of data that says so itself withdraws nothing."""
    config = replace(tiny_config, wandb=replace(tiny_config.wandb, mode="disabled"))
    config = replace(config, data=replace(config.data, max_bad_share=1.0))
    monkeypatch.setattr("actors.groups.training_source", lambda config: Problems(5))
    state = RunState(step=1, version=1, cursor=Cursor(1, (0,)), ranks=1, withdrawn=["p3"])

    async def life(state):
        run = (await simulate(config, tmp_path, monkeypatch)).coordinator
        run.rollouts.run = lambda: asyncio.sleep(0)
        await run._read(state)
        await asyncio.sleep(0)
        return run

    async def main():
        first = await life(None)
        first.quarantine.add("p2", "bad", {"withdrawn": True})
        handed_out = [first.groups.problems.next() for _ in range(3)]
        first.groups.ledger.generators = {"g": 0}
        assert first.groups.ledger.admit("p1#0", handed_out[1]) == "g"
        first.groups.withdraw("p1#0", "generators died under it")
        await first.finish_files(first.quarantine_file)
        with first.quarantine.path.open("a") as file:
            file.write('{"id": "p0", "withdrawn": tr')  # torn
        for state_of_checkpoint, expected in ((None, [0, 2, 3, 4]), (state, [0, 2, 4, 5])):
            run = await life(state_of_checkpoint)
            assert [run.groups.problems.next() for _ in range(4)] == expected
            assert run.quarantine.bad == len(run.groups.problems.withdrawn)
            assert run.groups.problems.withdrawn == (["p1", "p3"] if state_of_checkpoint else ["p1"])

    asyncio.run(main())


def test_a_quarantine_that_cannot_be_read_ends_a_run_with_a_reason(tiny_config, tmp_path, monkeypatch):
    (tmp_path / "quarantine.jsonl").mkdir()
    monkeypatch.setattr("actors.groups.training_source", lambda config: Problems(5))
    config = replace(tiny_config, wandb=replace(tiny_config.wandb, mode="disabled"))

    async def main():
        run = (await simulate(config, tmp_path, monkeypatch)).coordinator
        with pytest.raises(RunFailed, match="the quarantine of this run so far cannot be read: IsADirectoryError"):
            await run._read(None)

    asyncio.run(main())
