"""A scripted reader: it reads documents of hidden facts as a memory agent does, but forgets, and slips now and then.

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
class Habits:
    """The probabilities of what the reader does with a fact at a section.

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
        idle: the memory was empty and stays so. Most sections of a document have nothing to note.
        slip: a useless fact is noted. What follows shows how to mend that; this shows nothing to imitate.
    """

    prompt: list[int]
    response: list[int]
    idle: bool = False
    slip: bool = False


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
            before, memory = memory, self._next(memory, text, facts, rng)
            response = [*(self._tokens(memory) or empty), self.end]
            slip = any(not facts[fact] for fact in memory)
            yield Conversation(prompt, response, idle=not before and not memory, slip=slip)
        held = self._tokens(memory) or empty
        answer = problem.answers[0] if set(needed) <= set(memory) else UNKNOWN
        response = [*encode_text(agent.tokenizer, f"\\boxed{{{answer}}}"), self.end]
        if len(response) > agent.config.answer_tokens:
            raise BadRow(f"the answer has {len(response)} tokens, over agent.answer_tokens")
        yield Conversation(prompts.fill("answer", problem=tokenized.question, memory=held), response)

    def _next(self, memory: list[str], section: str, facts: dict[str, bool], rng: random.Random) -> list[str]:
        """The memory after a section. What builds on an unknown fact does not look needed."""
        needed = [fact for fact, is_needed in facts.items() if is_needed]
        known = sum(fact in memory for fact in needed)
        noted = [fact for fact in memory if facts[fact] and rng.random() < self.habits.keep_share]
        noted += [fact for fact in needed[: known + 1] if fact in section and fact not in noted]
        if not self._fits(noted):
            raise BadRow("the needed facts do not fit agent.memory_tokens")
        for fact in facts:
            useless = self.habits.slip_share > 0 and not facts[fact] and fact in section
            if useless and rng.random() < self.habits.slip_share and self._fits([*noted, fact]):
                noted.append(fact)
        return noted

    def _fits(self, memory: list[str]) -> bool:
        return len(self._tokens(memory)) < self.agent.config.memory_tokens  # it ends with an end token, too

    def _tokens(self, memory: list[str]) -> list[int]:
        return encode_text(self.agent.tokenizer, " ".join(memory)) if memory else []


def _facts(problem: Problem) -> dict[str, bool]:
    """The facts of a document in order, each with whether it is needed."""
    facts = problem.metadata.get("facts")
    if (
        isinstance(facts, list)
        and all(isinstance(fact, list) and list(map(type, fact)) == [str, bool] for fact in facts)
        and any(needed for _, needed in facts)
    ):
        return dict(facts)
    raise BadRow("'metadata' lacks the facts that a scripted reader needs, as `jobs.prepare facts` writes them")
