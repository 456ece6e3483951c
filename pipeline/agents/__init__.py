"""Agents: how a document is read and a question answered.

`Agent` says what an agent is, `METHODS` has those that come along, and docs/extending.md shows how to write your own.
The rest of the system sees an episode's conversations, each with a role that the agent chose, and its answer; what the
conversations are for is the agent's business.
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from pipeline.errors import ConfigError
from pipeline.named_code import load_named
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

Tokenized = TypeVar("Tokenized")  # what an agent makes of a problem


class LanguageModel(Protocol):
    """Samples one response and keeps it as a conversation of the episode."""

    async def __call__(self, prompt: list[int], max_tokens: int, role: str) -> Completion:
        """`prompt` is the whole context; `role` is any name, for scorers and readers to tell conversations apart.

        A response ends with an end token if its finish reason is "stop". A model may have several end tokens;
        `Reader.tokens_of` (pipeline/agents/reader.py) takes off whichever came.
        """


class LongestPrompt(NamedTuple):
    """The longest conversation with one prompt, in tokens; it has to fit `agent.window`."""

    prompt: str  # its name in the prompt template
    tokens: int  # of the prompt, its slots full
    response: int  # limit of the response
    lower: str  # the key that makes the conversation shorter, like agent.chunk_tokens
    slots: tuple[tuple[str, int], ...] = ()  # the tokens in each slot, for a message to name


class Agent(Protocol[Tokenized]):
    """Reads documents and answers questions.

    `Reader` (pipeline/agents/reader.py) is a base with all that the agents here have in common.
    """

    def __init__(self, tokenizer, config: AgentSection):
        """Made once in a process. Raises `ConfigError` if the configuration does not suit it."""

    def tokenize(self, problem: Problem, /) -> Tokenized:
        """What `run` needs of a problem, made once for all its episodes.

        If it has an attribute `document` (int32 [N], or None), evaluations report the document's length.

        Raises:
            BadRow: the problem cannot be asked.
        """

    async def run(self, tokenized: Tokenized, llm: LanguageModel, /) -> str | Answer:
        """Run one episode and return its answer.

        It must depend on the problem and the responses of `llm` alone: where a generator died, another one runs the
        agent from the start and replays the responses that are known. Conversations may be open at the same time. An
        episode may have any number of them, and need not read to the end.
        """

    def longest_prompts(self) -> Sequence[LongestPrompt]:
        """The longest prompt of each kind, against which `agent.window` is checked before anything starts."""


def load_agent(method: str) -> type[Agent[Any]]:
    """The class of a method: a name in `METHODS`, or module:class for a user's own.

    Raises:
        ConfigError: there is no such method, or it names no agent.
    """
    try:
        agent = load_named(METHODS.get(method, method))
    except ConfigError as error:
        raise ConfigError(
            f"the method {method!r} is none of {', '.join(METHODS)}, nor a module:class that can be loaded: {error}"
        ) from None
    runs = getattr(agent, "run", None)
    is_async = callable(runs) and inspect.iscoroutinefunction(inspect.unwrap(runs))  # within its decorators
    others = all(callable(getattr(agent, name, None)) for name in ("tokenize", "longest_prompts"))
    if not (isinstance(agent, type) and is_async and others):
        raise ConfigError(
            f"the method {method!r} is no agent: a class with the methods tokenize(problem), async run(tokenized, "
            "llm) and longest_prompts() is wanted, with functools.wraps in decorators (pipeline/agents/memory.py is an "
            "example)"
        )
    return agent
