"""A scripted reader: it reads documents of hidden facts as a memory agent does, but makes mistakes.

Its conversations are demonstrations for fine-tuning, with exactly the prompts of the agent "memory". A model that
imitates them has the form, and reinforcement can still teach it to keep what it needs.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.agents.memory import MemoryAgent
from pipeline.end_tokens import end_tokens
from pipeline.errors import BadRow
from pipeline.problems import Problem
from pipeline.text import encode_text

UNKNOWN = "unknown"
Kind = Literal["", "idle", "tempted", "slip"]


@dataclass(frozen=True)
class Habits:
    """The reader's mistakes, as probabilities per section.

    Attributes:
        keep_share: that a needed fact of the memory is in the next memory, too. A useless one never is.
        slip_share: that a useless fact of the section is noted, if there is room.
    """

    keep_share: float
    slip_share: float = 0.0


@dataclass(frozen=True)
class Conversation:
    """What the reader is given and what it writes.

    Attributes:
        prompt, response: token ids; the response ends with the end token.
        kind: "idle" if the memory was empty and stays so, as at most sections; "tempted" if so although the section has
            a useless fact; "slip" if a useless fact is noted; else "".
    """

    prompt: list[int]
    response: list[int]
    kind: Kind = ""


class ScriptedReader:
    """Reads problems whose metadata list the `facts` of the document (pipeline/data/documents/facts).

    It notes every needed fact as soon as its memory has all that the fact builds on.

    Args:
        agent: the agent whose prompts are used.
        habits: its mistakes.
    """

    def __init__(self, agent: MemoryAgent, habits: Habits):
        self.agent, self.habits = agent, habits
        self.end = min(end_tokens(agent.tokenizer))

    def read(self, problem: Problem, rng: random.Random) -> Iterator[Conversation]:
        """Yield the conversations in order.

        Raises:
            BadRow: the problem cannot be read, its metadata lack its facts, or memory or answer are too long for the
                agent's limits.
        """
        agent, tokenized = self.agent, self.agent.tokenize(problem)
        facts = _facts(problem)
        needed = [fact for fact, is_needed in facts.items() if is_needed]
        memory: list[str] = []
        prompts, empty = agent.prompts, agent.prompts.empty_memory
        for chunk in tokenized.chunks(agent.config.chunk_tokens):
            text = agent.tokenizer.decode(chunk)
            held = self._tokens(memory) or empty
            prompt = prompts.fill("memory", problem=tokenized.question, memory=held, chunk=chunk)
            useless = [fact for fact, is_needed in facts.items() if not is_needed and fact in text]
            before, memory = memory, self._next(memory, text, needed, useless, rng)
            response = [*(self._tokens(memory) or empty), self.end]
            kind: Kind = ""
            if not set(memory) <= set(needed):
                kind = "slip"
            elif not before and not memory:
                kind = "tempted" if useless else "idle"
            yield Conversation(prompt, response, kind)
        held = self._tokens(memory) or empty
        answer = problem.answers[0] if set(needed) <= set(memory) else UNKNOWN
        response = [*encode_text(agent.tokenizer, f"\\boxed{{{answer}}}"), self.end]
        if len(response) > agent.config.answer_tokens:
            raise BadRow(f"the answer has {len(response)} tokens, over agent.answer_tokens")
        yield Conversation(prompts.fill("answer", problem=tokenized.question, memory=held), response)

    def _next(
        self, memory: list[str], section: str, needed: list[str], useless: list[str], rng: random.Random
    ) -> list[str]:
        """The memory after a section that has these useless facts. What builds on an unknown fact does not look
        needed."""
        known = len(set(needed) & set(memory))
        noted = [fact for fact in memory if fact in needed and rng.random() < self.habits.keep_share]
        noted += [fact for fact in needed[: known + 1] if fact in section and fact not in noted]
        if not self._fits(noted):
            raise BadRow("the needed facts do not fit agent.memory_tokens")
        for fact in useless:
            if rng.random() < self.habits.slip_share and self._fits([*noted, fact]):
                noted.insert(rng.randint(0, len(noted)), fact)
        return noted

    def _fits(self, memory: list[str]) -> bool:
        return len(self._tokens(memory)) < self.agent.config.memory_tokens  # it ends with an end token, too

    def _tokens(self, memory: list[str]) -> list[int]:
        return encode_text(self.agent.tokenizer, " ".join(memory)) if memory else []


def _facts(problem: Problem) -> dict[str, bool]:
    """The facts of a document in order, each with whether it is needed."""
    facts = problem.metadata.get("facts")
    if isinstance(facts, list) and all(
        isinstance(fact, list) and list(map(type, fact)) == [str, bool] for fact in facts
    ):
        if any(is_needed for _, is_needed in facts):
            return dict(facts)
    raise BadRow("'metadata' lacks the facts that a scripted reader needs, as `jobs.prepare facts` writes them")
