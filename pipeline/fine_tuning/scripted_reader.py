"""A scripted reader: it reads documents of hidden facts as a memory agent does, but forgets.

Its conversations are demonstrations for fine-tuning, with exactly the prompts of the agent "memory". A model that
imitates them has the form, and reinforcement can still teach it to keep what it needs.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.agents.memory import MemoryAgent
from pipeline.end_tokens import end_tokens
from pipeline.errors import BadRow
from pipeline.problems import Problem
from pipeline.text import encode_text

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Conversation:
    """What the reader is given and what it writes.

    Attributes:
        prompt, response: token ids; the response ends with the end token.
        idle: the memory was empty and stays so. Most sections of a document have nothing to note.
    """

    prompt: list[int]
    response: list[int]
    idle: bool = False


class ScriptedReader:
    """Reads problems whose metadata list the `facts` of the document (pipeline/data/documents/facts).

    It notes every needed fact as soon as its memory has all that the fact builds on, and nothing else.

    Args:
        agent: the agent whose prompts are used.
        keep_share: the probability that a fact of the memory is in the next memory, too.
    """

    def __init__(self, agent: MemoryAgent, keep_share: float):
        self.agent, self.keep_share = agent, keep_share
        self.end = min(end_tokens(agent.tokenizer))

    def read(self, problem: Problem, rng: random.Random) -> Iterator[Conversation]:
        """Yield the conversations in order.

        Raises:
            BadRow: the problem cannot be read, its metadata lack its facts, or memory or answer are too long for the
                agent's limits.
        """
        agent, tokenized = self.agent, self.agent.tokenize(problem)
        needed = _needed(problem)
        memory: list[str] = []
        prompts, empty = agent.prompts, agent.prompts.empty_memory
        for chunk in tokenized.chunks(agent.config.chunk_tokens):
            text = agent.tokenizer.decode(chunk)
            held = self._tokens(memory) or empty
            prompt = prompts.fill("memory", problem=tokenized.question, memory=held, chunk=chunk)
            before, memory = memory, self._next(memory, text, needed, rng)
            response = [*(self._tokens(memory) or empty), self.end]
            yield Conversation(prompt, response, idle=not before and not memory)
        held = self._tokens(memory) or empty
        answer = problem.answers[0] if set(needed) <= set(memory) else UNKNOWN
        response = [*encode_text(agent.tokenizer, f"\\boxed{{{answer}}}"), self.end]
        if len(response) > agent.config.answer_tokens:
            raise BadRow(f"the answer has {len(response)} tokens, over agent.answer_tokens")
        yield Conversation(prompts.fill("answer", problem=tokenized.question, memory=held), response)

    def _next(self, memory: list[str], section: str, needed: list[str], rng: random.Random) -> list[str]:
        """The memory after a section. What builds on an unknown fact does not look needed."""
        known = len(set(needed) & set(memory))
        noted = [fact for fact in memory if rng.random() < self.keep_share]
        noted += [fact for fact in needed[: known + 1] if fact in section and fact not in noted]
        if len(self._tokens(noted)) >= self.agent.config.memory_tokens:  # it ends with an end token, too
            raise BadRow("the needed facts do not fit agent.memory_tokens")
        return noted

    def _tokens(self, memory: list[str]) -> list[int]:
        return encode_text(self.agent.tokenizer, " ".join(memory)) if memory else []


def _needed(problem: Problem) -> list[str]:
    """The needed facts of a document in order."""
    facts = problem.metadata.get("facts")
    if isinstance(facts, list) and all(
        isinstance(fact, list) and list(map(type, fact)) == [str, bool] for fact in facts
    ):
        if needed := [fact for fact, is_needed in facts if is_needed]:
            return needed
    raise BadRow("'metadata' lacks the facts that a scripted reader needs, as `jobs.prepare facts` writes them")
