"""Agents: how a document is read and a question answered. An agent is an object with two methods,

    tokenize(problem) -> tokens of its question and document, once for all episodes of the problem
    async run(tokenized, llm) -> the answer as text, once an episode

where `await llm(prompt_tokens, max_tokens, role)` samples one response, a `Completion`, and keeps it as a conversation
of the episode. Its class is made with (tokenizer, AgentSection); `METHODS` has those that come along. The class may
name the prompts of the template that it uses (`asks`; `ASKS` where it does not): before anything starts, the longest
of them are checked against `agent.window`.

A response ends with an end token if its finish reason is "stop". A model may have several; `Reader.tokens_of`
(pipeline/agents/reader.py) takes off whichever came, and pipeline/end_tokens.py tells them from the tokenizer.
"""

import inspect

from pipeline.errors import ConfigError
from pipeline.named_code import load_named

ASKS = ("memory", "answer")
METHODS = {
    "memory": "pipeline.agents.memory:MemoryAgent",
    "direct": "pipeline.agents.direct:DirectAgent",
    "concat": "pipeline.agents.concat:ConcatAgent",
    "closed_book": "pipeline.agents.closed_book:ClosedBookAgent",
}


def load_agent(method: str) -> type:
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
    reads, runs = getattr(agent, "tokenize", None), getattr(agent, "run", None)
    is_async = callable(runs) and inspect.iscoroutinefunction(inspect.unwrap(runs))  # within its decorators
    if not (isinstance(agent, type) and callable(reads) and is_async):
        raise ConfigError(
            f"the method {method!r} is no agent: a class with the methods tokenize(problem) and async run(tokenized, "
            "llm) is wanted, with functools.wraps in decorators (pipeline/agents/memory.py is an example)"
        )
    return agent
