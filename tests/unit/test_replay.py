"""Episodes that go on elsewhere: replay, the journal, and what a generator does with both."""

import asyncio

import pytest

from pipeline.rollout.episodes import Completion, response_seed, run_episode
from pipeline.rollout.replay import Finished, Replay, digest


def completion(*tokens: int) -> Completion:
    return Completion(list(tokens), [-0.5] * len(tokens), [1] * len(tokens), "stop")


class Chain:
    """An agent whose every prompt is the response before; it ends after four."""

    async def run(self, first, llm) -> str:
        tokens = first
        for _ in range(4):
            tokens = (await llm(tokens, 8, "memory")).tokens
        return str(tokens)


def successor(prompt: list[int]) -> Completion:
    return completion(*(token + 1 for token in prompt))


@pytest.mark.parametrize("finished", range(5))
def test_an_episode_goes_on_from_any_conversation_to_the_same_end(finished):
    async def generate(prompt, max_tokens):
        generated.append(prompt)
        return successor(prompt)

    generated: list = []
    whole = asyncio.run(run_episode(Chain(), [0], generate))
    replay = Replay(Finished("g", 0, digest(c.prompt), c.response) for c in whole.conversations[:finished])

    async def generate_or_replay(prompt, max_tokens):
        return replay.take(prompt) or await generate(prompt, max_tokens)

    generated.clear()
    assert asyncio.run(run_episode(Chain(), [0], generate_or_replay)) == whole
    assert generated == [c.prompt for c in whole.conversations[finished:]]


def test_equal_prompts_get_their_responses_in_order_and_each_once():
    replay = Replay([Finished("g", 0, digest([1]), completion(n)) for n in (5, 6)])
    assert [replay.take([1]), replay.take([1]), replay.take([1])] == [completion(5), completion(6), None]
    assert replay.take([2]) is None


def test_what_one_conversation_lacks_is_generated_and_nothing_else_is_made_up():
    """A journal that lost its beginning is of no use for that episode, and does no harm."""
    replay = Replay([Finished("g", 0, digest([7]), completion(8))])
    assert replay.take([0]) is None


def test_seeds_differ_for_all_that_a_response_is_part_of_and_stay_the_same():
    numbers = [(0, p, e, c) for p in range(20) for e in range(8) for c in range(9)]
    seeds = [response_seed(*n) for n in numbers]
    assert len(set(seeds)) == len(seeds) and seeds == [response_seed(*n) for n in numbers]
    assert all(0 <= seed < 2**32 for seed in seeds)
