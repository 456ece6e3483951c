"""The journal of finished conversations, a Ray actor of its own."""

import asyncio

import pytest

from pipeline.rollout.episodes import Completion
from pipeline.rollout.replay import Finished, digest


def completion(*tokens: int) -> Completion:
    return Completion(list(tokens), [-0.5] * len(tokens), [1] * len(tokens), "stop")


@pytest.fixture
def journal(ray_session):
    from actors.generation.journal import Journal

    actor = Journal.remote()
    yield actor
    ray_session.kill(actor)


def test_the_journal_keeps_groups_apart_and_forgets_those_that_are_done(ray_session, journal):
    ray = ray_session
    entries = [Finished(group, episode, digest([episode]), completion(1)) for group in "ab" for episode in range(2)]
    ray.get(journal.add.remote(entries))
    assert ray.get(journal.of.remote("a")) == entries[:2]
    ray.get(journal.drop.remote(["a", "unknown"]))
    assert ray.get([journal.of.remote(g) for g in "ab"]) == [[], entries[2:]]


def test_what_was_written_is_in_the_journal_when_the_writer_returns(ray_session, journal):
    from actors.generation.journal import JournalWriter

    async def write():
        writer = JournalWriter(journal)

        async def episode(number: int):
            for turn in range(10):
                await writer.write(Finished("g", number, digest([turn]), completion(turn)))
                there = await journal.of.remote("g")
                assert sum(f.episode == number for f in there) == turn + 1

        await asyncio.gather(*map(episode, range(5)))
        return await journal.of.remote("g")

    there = asyncio.run(write())
    assert [[f.response.tokens[0] for f in there if f.episode == e] for e in range(5)] == [list(range(10))] * 5


def test_a_writer_that_is_cancelled_does_not_hold_the_others_up(ray_session, journal):
    from actors.generation.journal import JournalWriter

    async def write():
        writer = JournalWriter(journal)
        cancelled = asyncio.create_task(writer.write(Finished("g", 0, b"", completion(0))))
        others = [asyncio.create_task(writer.write(Finished("g", n, b"", completion(0)))) for n in (1, 2)]
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(*others)
        await writer.write(Finished("g", 3, b"", completion(0)))

    asyncio.run(asyncio.wait_for(write(), 20))
