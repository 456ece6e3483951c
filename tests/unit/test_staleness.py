"""The staleness rule: whatever finishes when, no group is trained too late, none is lost, and nothing stands still."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.run.config import TrainSection
from pipeline.run.ledger import RUNNING, Ledger, too_many_failed
from pipeline.run.staleness import choose, feasible
from tests.support.groups import random_group, record_of


def test_feasible_means_that_every_deadline_can_be_kept_in_turn():
    assert feasible([5, 5, 6, 6], version=5, groups_per_step=2)
    assert not feasible([5, 5, 5], version=5, groups_per_step=2)
    assert not feasible([4], version=5, groups_per_step=2)


def test_the_learner_takes_the_earliest_deadlines_first_and_of_those_the_first_in_the_data():
    assert choose([(3, 0, "c"), (1, 7, "a"), (2, 5, "b"), (1, 6, "z")], [], version=1, groups_per_step=2) == ["z", "a"]


def test_the_learner_waits_for_a_slow_group_rather_than_let_it_expire():
    ready = [(2, 0, "new-1"), (2, 1, "new-2")]
    assert choose(ready, running=[1], version=1, groups_per_step=2) is None
    assert choose(ready, running=[2], version=1, groups_per_step=2) == ["new-1", "new-2"]


def take(ledger: Ledger) -> tuple[list[str] | None, list[str]]:
    """The groups of a step, if it need not wait; and those that were dropped as too old."""
    dropped = list(ledger.drop_stale())
    return ledger.take(), dropped


def record(group_id: str, version: int, rewards=(0.0, 1.0)):
    import numpy as np

    group = random_group(np.random.default_rng(0), episodes=2, version=version)
    return record_of(group, group_id, rewards)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_schedule_keeps_the_bound_and_loses_nothing(data):
    """Random generators, finishing orders, weight-update delays and failures against the ledger."""
    per_step, staleness, steps = (data.draw(st.integers(low, high)) for low, high in ((1, 4), (0, 3), (1, 6)))
    most = data.draw(st.integers(0, 4))
    ledger = Ledger(per_step, staleness, steps, max_discarded=most)
    rewards = st.sampled_from([(0.0, 1.0), (0.0, 0.0), (1.0, 1.0)])
    ledger.generators = {f"g{i}": 0 for i in range(data.draw(st.integers(1, 3)))}
    number = trained = failures = 0
    while ledger.step < steps:
        moves = ["admit", "finish", "update", "train", "fail"]
        move = data.draw(st.sampled_from(moves))
        running = [i for i, e in ledger.entries.items() if e.state == RUNNING]
        if move == "fail" and running and failures < 5:
            ledger.fail(data.draw(st.sampled_from(running)))
            failures += 1
        elif move == "finish" and running:
            group_id = data.draw(st.sampled_from(running))
            finished = record(group_id, ledger.entries[group_id].first_version, data.draw(rewards))
            discarded = ledger.add(group_id, finished)
            assert not discarded or not finished.is_informative
            assert ledger.discarded_since_take <= most
        elif move == "update":
            name = data.draw(st.sampled_from(sorted(ledger.generators)))
            ledger.generators[name] = ledger.version
        elif move == "admit" and ledger.admit(f"group-{number}", number):
            number += 1
            assert len(ledger.entries) <= (staleness + 1) * per_step
        elif move == "train":
            chosen, dropped = take(ledger)
            assert dropped == []  # the rule alone keeps the bound
            if chosen:
                assert all(ledger.version - ledger.entries[i].first_version <= staleness for i in chosen)
                ledger.step_done()
                trained += len(chosen)
        if data.draw(st.integers(0, 30)) == 0:
            break
    # From wherever it stopped, finishing everything ends the run: there is no deadlock.
    while ledger.step < steps:
        ledger.generators = dict.fromkeys(ledger.generators, ledger.version)
        while ledger.admit(f"group-{number}", number):
            number += 1
        for group_id in [i for i, e in ledger.entries.items() if e.state == RUNNING]:
            # Nothing to learn from any more: the cap alone lets the run end.
            ledger.add(group_id, record(group_id, ledger.entries[group_id].first_version, (1.0, 1.0)))
        chosen, dropped = take(ledger)
        assert not dropped
        if chosen:
            ledger.step_done()
            trained += len(chosen)
    assert trained == ledger.trained == steps * per_step
    assert ledger.numbered == ledger.trained + ledger.failed + ledger.discarded
    assert ledger.discarded <= steps * most
    assert not ledger.entries


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_faults_leave_a_history_that_has_every_problem_once(data):
    """Generators that die and come back, groups lost when they are to be trained, and learners that go back to a
    checkpoint, in any order: in the history that is left no problem is missing and none is there twice."""
    per_step, staleness, steps = (data.draw(st.integers(low, high)) for low, high in ((1, 3), (0, 2), (2, 6)))
    ledger = Ledger(per_step, staleness, steps, generators={"g0": 0, "g1": 0})
    history: list[list[int]] = []  # positions, by step
    again: list[int] = []
    position = number = rollbacks = saved = 0
    names = itertools.count(2)

    def run(move: str) -> None:
        nonlocal position, number, rollbacks, saved, history
        running = [i for i, e in ledger.entries.items() if e.state == RUNNING]
        if move == "admit":
            chosen = min(again) if again else position
            if ledger.admit(f"group-{number}", chosen):
                number += 1
                if again:
                    again.remove(chosen)
                else:
                    position += 1
        elif move == "finish" and running:
            group_id = running[0]
            assert not ledger.add(group_id, record(group_id, ledger.entries[group_id].first_version))
        elif move == "update":
            ledger.generators = dict.fromkeys(ledger.generators, ledger.version)
        elif move == "kill":
            ledger.generators.pop(sorted(ledger.generators)[0])
            for group_id in running:
                assert ledger.move(group_id) in ledger.generators
            ledger.generators[f"g{next(names)}"] = ledger.version
        elif move in ("train", "train, but some are lost", "train, but the learners die"):
            chosen, dropped = take(ledger)
            assert staleness == 0 or rollbacks or not dropped
            again.extend(dropped_positions(dropped))
            if chosen and move == "train":
                positions = [ledger.entries[i].position for i in chosen]
                assert all(ledger.version - ledger.entries[i].record.oldest_version <= staleness for i in chosen)
                ledger.step_done()
                history.append(positions)
                if data.draw(st.booleans()):
                    saved = ledger.step
            elif chosen and move == "train, but some are lost":
                ledger.lose(chosen[:1])
                assert ledger.entries[chosen[0]].state == RUNNING
            elif chosen and rollbacks < 4:
                rollbacks += 1
                ledger.roll_back(saved)
                history, gone = history[:saved], history[saved:]
                again.extend(p for positions in gone for p in positions)
            elif chosen:
                ledger.put_back()

    known: dict[str, int] = {}

    def dropped_positions(dropped: list[str]) -> list[int]:
        return [known[i] for i in dropped]

    moves = ["admit", "finish", "update", "kill", "train", "train, but some are lost", "train, but the learners die"]
    for move in data.draw(st.lists(st.sampled_from(moves), min_size=40, max_size=120)):
        run(move)
        known |= {i: e.position for i, e in ledger.entries.items()}
    for _ in range(20 * steps):
        if ledger.step == steps:
            break
        for move in ["update", *["admit"] * 9, *["finish"] * 9, "train"]:
            run(move)
            known |= {i: e.position for i, e in ledger.entries.items()}
    assert [len(positions) for positions in history] == [per_step] * steps
    trained = [p for positions in history for p in positions]
    open_positions = [e.position for e in ledger.entries.values()] + again
    assert sorted(trained + open_positions) == list(range(position))


def test_synchronous_training_starts_nothing_until_the_generator_has_the_new_weights():
    ledger = Ledger(groups_per_step=2, max_staleness=0, steps=2, generators={"g": 0})
    assert ledger.admit("a", 0) and ledger.admit("b", 0)
    assert ledger.admit("c", 0) is None
    for group_id in "ab":
        ledger.add(group_id, record(group_id, 0))
    assert take(ledger) == (["a", "b"], [])
    assert ledger.admit("c", 0) is None
    ledger.step_done()
    assert ledger.admit("c", 0) is None
    ledger.generators["g"] = 1
    assert ledger.admit("c", 0) == "g"


def test_a_group_whose_tokens_are_too_old_all_the_same_is_dropped_and_counted():
    ledger = Ledger(groups_per_step=1, max_staleness=0, steps=2, step=1, version=1, generators={"g": 1})
    ledger.admit("a", 0)
    ledger.add("a", record("a", version=0))
    assert take(ledger) == (None, ["a"])
    assert ledger.dropped_stale == 1 and not ledger.entries


def test_learners_that_go_back_leave_no_groups_that_nothing_moves_on():
    """Eight groups have the same deadline, which after the rollback only four of them can keep."""
    ledger = Ledger(groups_per_step=4, max_staleness=1, steps=9, generators={"g": 0})
    for number in range(8):
        ledger.admit(f"group-{number}", number)
        ledger.add(f"group-{number}", record(f"group-{number}", 0))
    assert len(take(ledger)[0]) == 4
    ledger.roll_back(0)
    chosen, dropped = take(ledger)
    assert (len(chosen), dropped) == (4, [])
    ledger.step_done()
    assert take(ledger) == (None, [f"group-{number}" for number in range(4, 8)])
    ledger.generators["g"] = 2
    assert ledger.admit("another", 8) == "g"


def test_new_groups_go_to_the_generator_with_the_fewest():
    ledger = Ledger(groups_per_step=4, max_staleness=0, steps=1, generators={"g0": 0, "g1": 0})
    assert [ledger.admit(i, 0) for i in "abcd"] == ["g0", "g1", "g0", "g1"]


def test_admission_looks_once_at_each_version_however_many_generators_have_it(monkeypatch):
    ledger, looked = Ledger(groups_per_step=2, max_staleness=1, steps=9), []
    ledger.generators = {f"g{number}": number % 2 for number in range(100)}

    def look(deadlines, *_) -> bool:
        looked.append(deadlines[-1])
        return False

    monkeypatch.setattr("pipeline.run.ledger.feasible", look)
    assert ledger.next_generator() is None and sorted(looked) == [1, 2]


def test_a_group_that_an_old_generator_would_make_too_late_goes_to_a_newer_one():
    ledger = Ledger(groups_per_step=1, max_staleness=1, steps=9, version=1, generators={"a old": 0, "b new": 1})
    assert ledger.admit("p", 0) == "a old"
    ledger.add("p", record("p", 0))
    assert ledger.next_generator() == "b new"  # although the other one has no group either
    assert ledger.admit("q", 1) == "b new" and ledger.next_generator() is None


def test_the_last_steps_are_not_given_more_groups_than_they_need():
    ledger = Ledger(groups_per_step=2, max_staleness=5, steps=1, generators={"g": 0})
    assert [ledger.admit(i, 0) for i in "abc"] == ["g", "g", None]


def test_a_group_cannot_be_added_twice():
    ledger = Ledger(groups_per_step=1, max_staleness=0, steps=1, generators={"g": 0})
    ledger.admit("a", 0)
    ledger.add("a", record("a", 0))
    with pytest.raises(KeyError, match="not running"):
        ledger.add("a", record("a", 0))


def test_dynamic_sampling_discards_groups_of_equal_rewards_up_to_its_cap_for_each_step():
    ledger = Ledger(groups_per_step=2, max_staleness=0, steps=2, max_discarded=2, generators={"g": 0})
    equal = (1.0, 1.0)
    discarded = []
    for group_id, rewards in [("a", equal), ("b", (0.0, 1.0)), ("c", equal), ("d", equal)]:
        ledger.admit(group_id, 0)
        discarded.append([*ledger.add(group_id, record(group_id, 0, rewards))])
    assert discarded == [["a"], [], ["c"], []]  # the cap is reached: "d" is trained though it teaches nothing
    assert sorted(take(ledger)[0]) == ["b", "d"] and ledger.discarded == 2
    ledger.step_done()
    ledger.generators["g"] = 1
    ledger.admit("e", 0)
    assert [*ledger.add("e", record("e", 1, equal))] == ["e"]


@pytest.mark.parametrize(
    ("failed", "done", "ends"),
    [(7, 0, False), (8, 0, True), (8, 8, False), (9, 8, True), (20, 80, False)],  # 80 done: trained or discarded
)
def test_a_run_ends_when_more_than_its_share_of_groups_failed(failed, done, ends):
    assert too_many_failed(failed, done, TrainSection(groups_per_step=4, max_failed_share=0.5)) == ends


def test_without_dynamic_sampling_every_group_is_trained():
    ledger = Ledger(groups_per_step=1, max_staleness=0, steps=1, generators={"g": 0})
    ledger.admit("a", 0)
    assert not ledger.add("a", record("a", 0, (1.0, 1.0))) and take(ledger) == (["a"], [])
