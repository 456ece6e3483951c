"""The trajectory buffer as an actor: its bound, its back-pressure, and that it hands references through."""

from dataclasses import replace

import numpy as np
import pytest

from tests.groups import random_group, record_of


@pytest.fixture
def buffer(ray_session, tiny_config):
    from actors.buffer import TrajectoryBuffer

    train = replace(tiny_config.train, groups_per_step=2, max_staleness=1, steps=10)
    actor = TrajectoryBuffer.remote(replace(tiny_config, train=train))
    yield actor
    ray_session.kill(actor)


def test_admission_waits_when_the_bound_is_reached_and_goes_on_when_a_step_is_done(ray_session, buffer):
    ray = ray_session
    ray.get(buffer.generator_has.remote("g", 0))
    assert ray.get([buffer.admit.remote(i) for i in "abcd"]) == ["g"] * 4
    waiting = buffer.admit.remote("e")
    assert ray.wait([waiting], timeout=0.5)[0] == []  # (1 + max_staleness) × groups_per_step are in flight

    group = random_group(np.random.default_rng(0))
    ref = ray.put(group)
    for group_id in "ab":
        ray.get(buffer.add.remote(group_id, record_of(group, group_id, [0, 1, 0]), [ref]))
    taken, dropped = ray.get(buffer.take.remote())
    assert [record.group_id for record, _ in taken] == ["a", "b"] and dropped == []
    assert all(refs == [ref] for _, refs in taken)
    ray.get(buffer.generator_has.remote("g", 1, 0.25))  # the weights of the step, once it is done
    assert ray.wait([waiting], timeout=10)[0] == [waiting]  # two are training, two in flight
    ray.get(buffer.step_done.remote())
    counts = ray.get(buffer.counts.remote())
    assert {name: counts[name] for name in ("running", "buffered", "admitted", "trained", "failed")} == {
        "running": 3,
        "buffered": 0,
        "admitted": 5,
        "trained": 2,
        "failed": 0,
    }
    assert counts["update_pause_max"] == 0.25


def test_a_lost_group_makes_room(ray_session, buffer):
    ray = ray_session
    ray.get(buffer.generator_has.remote("g", 0))
    ray.get([buffer.admit.remote(i) for i in "abcd"])
    waiting = buffer.admit.remote("e")
    ray.get(buffer.fail.remote("b"))
    assert ray.get(waiting, timeout=10) == "g"
    assert ray.get(buffer.counts.remote())["failed"] == 1


def test_the_learner_waits_for_whole_steps(ray_session, buffer):
    ray = ray_session
    ray.get(buffer.generator_has.remote("g", 0))
    ray.get([buffer.admit.remote(i) for i in "ab"])
    group = random_group(np.random.default_rng(0))
    ray.get(buffer.add.remote("a", record_of(group, "a", [0, 1, 0]), [ray.put(group)]))
    taking = buffer.take.remote()
    assert ray.wait([taking], timeout=0.5)[0] == []
    ray.get(buffer.add.remote("b", record_of(group, "b", [0, 1, 0]), [ray.put(group)]))
    taken, _ = ray.get(taking, timeout=10)
    assert len(taken) == 2


def test_a_generator_that_died_is_given_no_groups_until_it_reports_again(ray_session, buffer):
    ray = ray_session
    ray.get(buffer.generator_has.remote("g", 0))
    ray.get(buffer.generator_gone.remote("g"))
    waiting = buffer.admit.remote("a")
    assert ray.wait([waiting], timeout=0.5)[0] == []
    ray.get(buffer.generator_has.remote("g", 0))
    assert ray.get(waiting, timeout=10) == "g"
