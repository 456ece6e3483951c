"""What a run holds does not grow with its steps: 10,000 of them, in seconds, of a run whose engines only pretend."""

import asyncio
import gc
import random
import sys
import types
from dataclasses import replace

import pytest

from actors.generation.journal import DROPPED_KEPT, Journal
from actors.job_actor import LINES_KEPT, JobActor
from pipeline.lease import Lease
from pipeline.rollout.replay import Finished
from pipeline.run.history import DRAWN, History, RunTotals
from tests.support.faults import rows_of
from tests.support.simulation import Simulation, simulate

NOT_HELD = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.FrameType, types.CodeType)


def bytes_held(*roots: object) -> int:
    """Of all objects that can be reached from these, but not by way of code."""
    seen, left, size = set(), list(roots), 0
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, NOT_HELD):
            continue
        seen.add(id(thing))
        size += sys.getsizeof(thing)
        left += gc.get_referents(thing)
    return size


def parts(run: Simulation) -> dict[str, object]:
    c = run.coordinator
    return {
        "lines": c._lines,
        "journal": c.groups._journal.actor,
        "ledger": c.groups.ledger,
        "queue": c.groups.problems,
        "groups": (c.groups.failures, c.groups._discarded, c.quarantine),
        "tasks": [None] * len(c._tasks),
        "accounts": (c.accounts.done, c.accounts.pauses),
        "tracker": vars(run.tracker),
    }


def test_ten_thousand_steps_leave_no_more_than_a_thousand(tiny_config, tmp_path, monkeypatch):
    """With groups that fail, generators that are killed, checkpoints, and entries of the journal that come too late."""
    for limit in ("actors.job_actor.LINES_KEPT", "actors.generation.journal.DROPPED_KEPT"):
        monkeypatch.setattr(limit, 500)  # reached in a thousand steps
    train = replace(tiny_config.train, steps=10_000, groups_per_step=2, checkpoint_every=100, episodes_every=5000)
    config = replace(tiny_config, train=train, wandb=replace(tiny_config.wandb, mode="disabled"))
    chance, held, added = random.Random(0), {}, RunTotals.add

    def strike(problem) -> None:
        if chance.random() < 0.05:
            raise RuntimeError("a scorer raised")

    def look(totals: RunTotals, row: dict) -> None:
        added(totals, row)
        if row["step"] in (1000, train.steps):
            held[row["step"]] = {name: bytes_held(part) for name, part in parts(run).items()}

    monkeypatch.setattr(RunTotals, "add", look)
    with asyncio.Runner() as runner:
        run = runner.run(simulate(config, tmp_path, monkeypatch, problems=3000, strike=strike, deadly={"p70", "p2500"}))
        runner.run(run.train())
    rows = rows_of(tmp_path)
    assert len(rows) == train.steps and rows[-1]["groups_failed"] > 500 and rows[-1]["rows_quarantined"] >= 2
    early, late = held[1000], held[train.steps]
    # A number of eight bytes or two of each metric that the summary or the figure needs.
    for name in ("accounts", "tracker"):
        assert late.pop(name) - early.pop(name) < 150 * (train.steps - 1000)
    assert late == {name: pytest.approx(size, rel=0.1, abs=4000) for name, size in early.items()}
    assert sum(late.values()) < 1_000_000


def test_a_follower_that_comes_too_late_is_told_how_many_lines_it_missed():
    actor = JobActor(".", Lease(".", "run", "token"))
    for number in range(LINES_KEPT + 5):
        actor.say(f"line {number}")

    async def ask(after: int) -> tuple[int, list[str]]:
        return await actor.lines(after, 0.01)

    def lines(after: int) -> tuple[int, list[str]]:
        return asyncio.run(ask(after))

    following, kept = lines(0)
    assert following == LINES_KEPT + 5 and len(kept) == LINES_KEPT + 1
    assert kept[0].startswith("· 5 earlier lines were dropped") and kept[1] == "line 5"
    assert lines(3)[1][:2] == [kept[0].replace("5", "2", 1), "line 5"]
    assert lines(5)[1][0] == "line 5" and lines(following - 1) == (following, [kept[-1]])
    assert lines(following) == (following, [])
    assert lines(following + 1)[1] == kept  # it has followed an actor that was started again since


def test_a_journal_takes_nothing_of_a_group_that_was_dropped():
    journal = Journal.__ray_metadata__.modified_class()
    first = Finished("a", 0, b"", None)
    journal.add([first, replace(first, group_id="b")])
    journal.drop(["a"])
    journal.add([first, replace(first, group_id="b", episode=1)])
    assert journal.of("a") == [] and [finished.episode for finished in journal.of("b")] == [0, 1]
    journal.drop([f"group {number}" for number in range(2 * DROPPED_KEPT)])
    assert len(journal._dropped) == DROPPED_KEPT and len(journal.of("b")) == 2


def test_the_figure_is_drawn_from_two_numbers_a_step():
    row = {"reward": 0.5, "loss": None, "memory_tokens": 3.0, "positions": list(range(128))}
    curves = History(DRAWN, (row | {"step": step} for step in range(1, 10_001)))
    assert curves.points("reward")[0].tolist() == curves.points("memory_tokens")[0].tolist() == list(range(1, 10_001))
    assert (
        set(curves.points("reward")[1]) == {0.5} and len(curves.points("loss")[0]) == 0 and curves.last_step == 10_000
    )
    assert bytes_held(curves) < 40 * 10_000
