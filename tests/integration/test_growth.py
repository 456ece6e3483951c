"""What a run holds does not grow with its steps: 4,000 of them, of a run whose engines only pretend."""

import asyncio
import random
from dataclasses import replace

import pytest

from pipeline.run.history import RunTotals
from tests.support.faults import rows_of
from tests.support.memory import bytes_held
from tests.support.simulation import Simulation, simulate


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


def test_four_thousand_steps_leave_no_more_than_a_thousand(tiny_config, tmp_path, monkeypatch):
    """With groups that fail, generators that are killed, checkpoints, and entries of the journal that come too late."""
    for limit in ("actors.job_actor.LINES_KEPT", "actors.generation.journal.DROPPED_KEPT"):
        monkeypatch.setattr(limit, 500)  # reached in a thousand steps
    train = replace(tiny_config.train, steps=4000, groups_per_step=2, checkpoint_every=100, episodes_every=2000)
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
    assert len(rows) == train.steps and rows[-1]["groups_failed"] > 200 and rows[-1]["rows_quarantined"] >= 2
    early, late = held[1000], held[train.steps]
    # A number of eight bytes or two of each metric that the summary or the figure needs.
    for name in ("accounts", "tracker"):
        assert late.pop(name) - early.pop(name) < 150 * (train.steps - 1000)
    assert late == {name: pytest.approx(size, rel=0.1, abs=4000) for name, size in early.items()}
    assert sum(late.values()) < 1_000_000
