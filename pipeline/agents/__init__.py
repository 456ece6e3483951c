"""Agents: how a document is read and a question answered.

`Agent` is the protocol, `METHODS` lists the built-in agents, and docs/extending.md shows how to write your own. The
rest of the system sees an episode's answer and its conversations, each with a role chosen by the agent. The purpose of
a conversation is known to the agent only.
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from pipeline.errors import ConfigError
from pipeline.named_code import load_choice
from pipeline.problems import Problem
from pipeline.rollout.answer import Answer
from pipeline.rollout.episodes import Completion
from pipeline.sections import AgentSection

METHODS = {
    "memory": "pipeline.agents.memory:MemoryAgent",
    "direct": "pipeline.agents.direct:DirectAgent",
    "concat": "pipeline.agents.concat:ConcatAgent",
    "closed_book": "pipeline.agents.closed_book:ClosedBookAgent",
}

Tokenized = TypeVar("Tokenized")  # what an agent's `tokenize` returns


class LanguageModel(Protocol):
    """Samples one response and records it as a conversation of the episode."""

    async def __call__(self, prompt: list[int], max_tokens: int, role: str) -> Completion:
        """Sample the response to a prompt.

        A response whose finish reason is "stop" ends with an end token. A model may have several end tokens;
        `Reader.tokens_of` (pipeline/agents/reader.py) removes any of them.

        Args:
            prompt: the whole context.
            max_tokens: generation limit of the response.
            role: any name; scorers and readers tell conversations apart by it.
        """


class LongestPrompt(NamedTuple):
    """The longest conversation with one prompt, in tokens. It must fit `agent.window`."""

    prompt: str  # the prompt's name in the prompt template
    tokens: int  # prompt length with every slot full
    response: int  # limit of the response
    lower: str  # the key to lower for a shorter conversation, such as agent.chunk_tokens
    slots: tuple[tuple[str, int], ...] = ()  # most tokens in each slot, shown in error messages


class Agent(Protocol[Tokenized]):
    """Reads documents and answers questions.

    `Reader` (pipeline/agents/reader.py) is the common base class of the built-in agents.
    """

    def __init__(self, tokenizer, config: AgentSection):
        """Called once per process. Raises `ConfigError` if the agent cannot work with the configuration."""

    def tokenize(self, problem: Problem, /) -> Tokenized:
        """Prepare a problem for `run`; called once for all its episodes.

        If the result has an attribute `document` (int32 [N], or None), evaluations report the document's length.

        Raises:
            BadRow: the problem cannot be asked.
        """

    async def run(self, tokenized: Tokenized, llm: LanguageModel, /) -> str | Answer:
        """Run one episode and return its answer.

        The run must depend only on the problem and the responses of `llm`: when a generator dies, another one runs the
        agent from the start and replays the responses already known. An episode may have any number of conversations,
        may have several open at once, and may stop before the end of the document.
        """

    def longest_prompts(self) -> Sequence[LongestPrompt]:
        """The longest form of each prompt. `agent.window` is checked against them before anything starts."""


def load_agent(method: str) -> type[Agent[Any]]:
    """Return the class of a method: a name in `METHODS`, or module:class for your own.

    Raises:
        ConfigError: the method cannot be found, or is not an agent.
    """
    agent = load_choice("the method", method, METHODS, "module:class")
    runs = getattr(agent, "run", None)
    is_async = callable(runs) and inspect.iscoroutinefunction(inspect.unwrap(runs))  # look inside decorators
    others = all(callable(getattr(agent, name, None)) for name in ("tokenize", "longest_prompts"))
    if not (isinstance(agent, type) and is_async and others):
        raise ConfigError(
            f"the method {method!r} is no agent: it must be a class with the methods tokenize(problem), async "
            "run(tokenized, llm) and longest_prompts(), and decorators must use functools.wraps (example: "
            "pipeline/agents/memory.py)"
        )
    return agent
