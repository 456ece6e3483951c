"""Scorers: whole groups, and whatever goes wrong costs one group only."""

import asyncio
import contextlib
from dataclasses import replace

import numpy as np
import pytest

from pipeline.problems import Problem
from pipeline.rollout.episodes import Completion, Conversation, Episode, GroupRecord, pack_group
from pipeline.sections import ObjectiveSection
from tests.support.bad_scorers import MODULES
from tests.support.faults import LIMIT_S
from tests.support.groups import random_group

GROUP = replace(
    random_group(np.random.default_rng(0)), episode_answers=("\\boxed{ Paris }", "\\boxed{ Rome }", "Paris")
)


def asked(task: str) -> Problem:
    return Problem("p", "city Rex", ("Paris",), task=task)


@contextlib.contextmanager
def scoring(config, timeout_s: float):
    """A pool of one scorer: a function that scores a group by a task, and what the pool said."""
    from actors.scoring.scorer_pool import ScorerPool

    said: list[str] = []
    with asyncio.Runner() as runner:

        async def make():
            scorer = replace(config.scorer, count=1, timeout_s=timeout_s, modules=MODULES)
            pool = ScorerPool(replace(config, scorer=scorer), said.append)
            return pool, asyncio.create_task(pool.run())

        pool, running = runner.run(make())
        yield lambda task: runner.run(pool.score(GROUP, asked(task))), said
        running.cancel()
        runner.run(pool.close())


@pytest.fixture(scope="module")
def score(ray_session, tiny_config):
    with scoring(tiny_config, timeout_s=LIMIT_S) as (score, _):
        yield score


def test_a_group_gets_its_rewards_and_advantages(score):
    record = GroupRecord.of(score("qa"), group_id="id", generator="generator-0", generation_seconds=1.5)
    assert record.rewards.tolist() == [1, 0, 0]
    of_episodes = np.array([2 / 3, -1 / 3, -1 / 3])
    assert record.advantages.tolist() == pytest.approx(of_episodes[GROUP.episodes])
    assert record.generator == "generator-0" and record.generation_seconds == 1.5


def test_over_long_responses_lower_the_advantage_and_not_the_reward(ray_session):
    """Limits of 10 tokens with a tail of 2: the first episode's turns are penalized by 1 and 0.5, the second's not."""
    from actors.scoring.scorer import Scorer

    def conversation(tokens: int) -> Conversation:
        return Conversation("m", [1], Completion([5] * tokens, [-1.0] * tokens, [0] * tokens, "stop", max_tokens=10))

    episodes = [
        Episode([conversation(10), conversation(9)], "\\boxed{ Paris }"),
        Episode([conversation(8)], "\\boxed{ Rome }"),
    ]
    objective = ObjectiveSection(overlong_penalty=0.4, overlong_share=0.2, advantage="leave_one_out")
    scorer = Scorer.remote(objective)
    record = ray_session.get(scorer.score.remote(pack_group("p", episodes), asked("qa")))
    assert record.rewards.tolist() == [1, 0] and record.penalties.tolist() == [-0.75, 0]
    assert record.advantages.tolist() == pytest.approx([0.7, 0.7, -0.7])  # of two conversations, and of one


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("raises", ZeroDivisionError, "always raises"),
        ("returns_nan", ValueError, "not a finite number"),
        ("no_such_task", ValueError, "there are qa, values"),
    ],
)
def test_a_bad_scorer_fails_its_group_and_the_next_group_is_scored(score, task, error, message):
    with pytest.raises(error, match=message):
        score(task)
    assert score("qa").rewards.tolist() == [1, 0, 0]


def test_a_scorer_that_raises_a_timeout_is_not_ended(ray_session, tiny_config):
    with scoring(tiny_config, timeout_s=LIMIT_S) as (score, said):
        with pytest.raises(TimeoutError, match="the judge did not answer"):
            score("times_out")
        assert score("qa").rewards.tolist() == [1, 0, 0]
    assert not any("hung" in line for line in said)


def test_a_scorer_that_hangs_is_ended_and_another_tries(ray_session, tiny_config, monkeypatch):
    monkeypatch.setattr("actors.scoring.scorer_pool.ATTEMPTS", 2)
    with scoring(tiny_config, timeout_s=4) as (score, said):
        with pytest.raises(TimeoutError, match="scorer.timeout_s=4"):
            score("hangs")
        assert sum("hung" in line for line in said) >= 1  # the second is said when its process has ended
        assert score("qa").rewards.tolist() == [1, 0, 0]
    assert sum("hung" in line and "starting it again" in line for line in said) >= 2
