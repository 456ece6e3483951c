"""Agents: how a document is read and a question answered. An agent is an object with two methods,

    tokenize(problem) -> tokens of its question and document, once for all episodes of the problem
    async run(tokenized, llm) -> the answer as text, once an episode

where `await llm(prompt_tokens, max_tokens, role)` samples one response, a `Completion`, and keeps it as a conversation
of the episode. Its class is made with (tokenizer, AgentConfig); `METHODS` has those that come along. The class may name
the prompts of the template that it uses (`asks`; `ASKS` where it does not): before anything starts, the longest of them
are checked against `agent.window`.
"""

import importlib

from pipeline.config import ConfigError

ASKS = ("update", "answer")
METHODS = {
    "memory": "pipeline.agents.memory:MemoryAgent",
    "direct": "pipeline.agents.direct:DirectAgent",
    "concat": "pipeline.agents.concat:ConcatAgent",
    "closed_book": "pipeline.agents.closed_book:ClosedBookAgent",
}


def load_agent(method: str) -> type:
    """The class of a method: a name in `METHODS`, or module:class for a user's own.

    Raises:
        ConfigError: there is no such method, module or class.
    """
    module, _, name = METHODS.get(method, method).partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the method {method!r} is none of {', '.join(METHODS)}, nor a module:class that can be loaded: {error}"
        ) from None
