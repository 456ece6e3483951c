"""The parts that keep something of every step bound what they hold: lines, the journal, the figure's curves."""

import asyncio
from dataclasses import replace

from actors.generation.journal import DROPPED_KEPT, Journal
from actors.job_actor import LINES_KEPT, JobActor
from pipeline.lease import Lease
from pipeline.rollout.replay import Finished
from pipeline.run.history import DRAWN, History
from tests.support.memory import bytes_held


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
