"""Room for learner ranks; nodes that die are in tests/chaos/__main__.py."""

import asyncio

import pytest

from pipeline.sections import LearnerSection
from tests.support.faults import LIMIT_S, until


def test_room_is_held_until_it_is_released(ray_session):
    from actors.learning.reservation import NoRoom, Reservation

    until(lambda: ray_session.available_resources().get("CPU") == ray_session.cluster_resources()["CPU"])
    free = int(ray_session.available_resources()["CPU"])
    room = Reservation(LearnerSection(ranks=free, num_cpus=1))
    asyncio.run(room.make(free - 1, limit_s=LIMIT_S))
    assert room.is_whole() and room.size == free - 1
    until(lambda: room.reachable() == free)
    other = Reservation(LearnerSection(ranks=free, num_cpus=1))
    with pytest.raises(NoRoom, match="no room for 2 learner ranks"):
        asyncio.run(other.make(2, limit_s=1))
    assert not other.is_whole() and other.size == 0
    asyncio.run(other.make(1, limit_s=LIMIT_S))  # what was too much is not wanted any more
    until(lambda: room.reachable() == free - 1)
    for one in (room, other):
        one.release()
        assert not one.is_whole()
    until(lambda: ray_session.available_resources().get("CPU") == free)
