"""What an agent of one's own may do wrong: it spoils no episode, or is told so."""

import asyncio

import numpy as np
import pytest

from jobs.support.inputs import check_model
from pipeline.agents import LongestPrompt
from pipeline.agents.reader import Reader, TokenizedProblem
from pipeline.errors import ConfigError
from pipeline.evaluation.answers import AnswerRecorder
from pipeline.rollout.answer import NO_MEMORIES, Answer
from pipeline.rollout.episodes import Completion, Episode, Sampling, pack_group, run_agent, run_episode
from pipeline.rollout.memory_counts import MemoryCounts
from pipeline.run.config import load_training_config
from pipeline.sections import AgentSection
from tests.support.byte_tokenizer import byte_tokenizer


class Accumulates(Reader):
    """Changes in place whatever list it gets."""

    slots = {"memory": ("problem", "memory", "chunk")}

    async def run(self, problem, llm):
        memory = self.prompts.empty_memory
        context = self.prompts.fill("memory", problem=problem.question, memory=memory, chunk=[])
        for _ in range(3):
            response = await llm(context, 8, "turn")
            kept = self.tokens_of(response)
            memory += kept
            kept.append(0)
            context += response.tokens
            response.tokens.clear()
        return "done"

    def longest_prompts(self):
        return LONGEST


LONGEST: object = []
PROBLEM = TokenizedProblem([1, 2], np.arange(8, dtype=np.int32))


async def two_tokens(prompt, max_tokens, sampling=None) -> Completion:
    return Completion([7, 8], [-1.0, -1.0], [0, 0], "length", 0, max_tokens)


def agent() -> Accumulates:
    return Accumulates(byte_tokenizer(), AgentSection())


def test_lists_that_an_agent_changes_are_its_own():
    one = agent()
    empty = one.prompts.empty_memory
    episode = asyncio.run(run_episode(one, PROBLEM, two_tokens))
    assert one.prompts.empty_memory == empty
    first, second, third = (conversation.prompt for conversation in episode.conversations)
    assert second == [*first, 7, 8] and third == [*second, 7, 8]
    assert all(conversation.response.tokens == [7, 8] for conversation in episode.conversations)
    recorder = AnswerRecorder(two_tokens, Sampling(1.0, seed=5), transcript=True)
    asyncio.run(run_agent(one, PROBLEM, recorder))
    record = recorder.record(Answer("done", NO_MEMORIES, False), PROBLEM, None, 1, MemoryCounts())
    assert record.transcript == ((first, [7, 8]), (second, [7, 8]), (third, [7, 8]))


class Leaving(RuntimeError):
    pass


class Swallows:
    async def run(self, tokenized, llm):
        notes = await asyncio.gather(*(llm([i], 5, "note") for i in range(1, 4)), return_exceptions=True)
        return f"from {sum(isinstance(note, Completion) for note in notes)} notes"


class Replaces:
    async def run(self, tokenized, llm):
        try:
            await llm([9], 5, "note")
        except Leaving:
            raise ValueError("no notes") from None


class Cancels:
    async def run(self, tokenized, llm):
        draft = asyncio.create_task(llm([1], 5, "draft"))
        await asyncio.sleep(0)
        draft.cancel()
        await asyncio.gather(draft, return_exceptions=True)
        return "done"


async def leaving(prompt, max_tokens, sampling=None) -> Completion:
    await asyncio.sleep(0.001)
    if prompt != [1]:
        raise Leaving("no more conversations")
    return await two_tokens(prompt, max_tokens)


@pytest.mark.parametrize("method", [Swallows, Replaces])
def test_an_episode_that_lacks_a_response_is_none(method):
    with pytest.raises(Leaving, match="no more"):
        asyncio.run(run_episode(method(), None, leaving))
    with pytest.raises(Leaving, match="no more"):
        asyncio.run(run_agent(method(), None, AnswerRecorder(leaving, Sampling(1.0), False)))


def test_an_agent_may_cancel_a_conversation():
    assert asyncio.run(run_episode(Cancels(), None, leaving)).answer == "done"


def test_an_agent_that_asks_nothing_is_told_so():
    with pytest.raises(ValueError, match="the agent asked the model nothing"):
        pack_group("p", [Episode(answer="guess"), Episode(answer="guess")])


@pytest.mark.parametrize(
    "returned", [None, [], [("memory", 3, 4)], "memory", 3, [LongestPrompt("memory", None, 4, "agent.chunk_tokens")]]
)
def test_longest_prompts_that_are_none_are_refused(returned, monkeypatch):
    monkeypatch.setattr(f"{__name__}.LONGEST", returned)
    config = load_training_config(["preset=tiny"])
    with pytest.raises(ConfigError, match=rf"the agent {__name__}:Accumulates: longest_prompts must return .* not "):
        check_model(config, [f"{__name__}:Accumulates"])


def test_a_prompt_that_was_not_declared_is_named():
    with pytest.raises(TypeError, match="the prompt plan is none that the agent declares in slots: memory"):
        agent().prompts.fill("plan", problem=[1])
