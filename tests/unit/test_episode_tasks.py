"""An evaluation asks once, in another process, whether a task's scorer wants whole episodes."""

import asyncio
from types import SimpleNamespace

import pytest

from actors.scoring import answer_scoring
from actors.scoring.answer_scoring import EpisodeTasks

MODULES = {"whole": "mine:whole", "alone": "mine:alone", "breaks": "mine:breaks", "hangs": "mine:hangs"}


@pytest.fixture
def asked(monkeypatch):
    asked, cancelled = [], []

    async def ask(task):
        if task == "hangs":
            await asyncio.Event().wait()
        if task == "breaks":
            raise ImportError(task)
        return task == "whole"

    def remote(task, modules):
        assert modules == MODULES
        asked.append(task)
        return ask(task)

    monkeypatch.setattr(answer_scoring, "scores_episodes_apart", SimpleNamespace(remote=remote))
    monkeypatch.setattr(answer_scoring.ray, "cancel", lambda asking, force: cancelled.append(force))
    monkeypatch.setattr(answer_scoring, "SCORER_LIMIT_S", 0.05)
    return asked, cancelled


def test_each_task_is_asked_once(asked):
    async def answers():
        tasks = EpisodeTasks(MODULES)
        names = ["whole", "alone", "breaks", "hangs", "qa", "unknown"]
        return [await asyncio.gather(*(tasks.has(name) for name in names)) for _ in range(3)]

    assert asyncio.run(answers()) == [[True, False, False, False, False, False]] * 3
    assert sorted(asked[0]) == ["alone", "breaks", "hangs", "whole"]
    assert asked[1] == [True]


def test_a_trial_that_is_cancelled_does_not_take_the_answer_from_the_others(asked):
    async def answers():
        tasks = EpisodeTasks(MODULES)
        first, second = (asyncio.create_task(tasks.has("whole")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(answers()) and asked[0] == ["whole"]
