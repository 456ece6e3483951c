"""A scripted reader: it reads documents of hidden facts as a memory agent does, with given habits.

Its conversations are demonstrations for fine-tuning. They have exactly the prompts of the agent "memory". A careless
reader is a start for reinforcement learning: it shows the form, and leaves something to find out.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from pipeline.agents.memory import MemoryAgent
from pipeline.end_tokens import end_tokens
from pipeline.errors import BadRow
from pipeline.problems import Problem
from pipeline.text import encode_text

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Habits:
    """Probabilities of what the reader does with a fact of a section or of its memory.

    Attributes:
        notes: it notes a needed fact.
        notes_misled: the same, if the section has other facts, too.
        keeps: it keeps a needed fact.
        notes_useless: it notes another fact.
        keeps_useless: it keeps another fact.
    """

    notes: float
    notes_misled: float
    keeps: float
    notes_useless: float
    keeps_useless: float


READERS = {
    "careful": Habits(notes=1.0, notes_misled=1.0, keeps=1.0, notes_useless=0.0, keeps_useless=0.0),
    "careless": Habits(notes=0.95, notes_misled=0.85, keeps=0.75, notes_useless=0.1, keeps_useless=0.3),
}


class ScriptedReader:
    """Reads problems whose metadata list all `facts` of the document (pipeline/data/documents/facts).

    A memory that does not fit agent.memory_tokens loses facts, the needed ones last.

    Args:
        agent: the agent whose prompts are used.
        habits: what the reader does.
    """

    def __init__(self, agent: MemoryAgent, habits: Habits):
        self.agent, self.habits = agent, habits
        self.end = min(end_tokens(agent.tokenizer))

    def read(self, problem: Problem, rng: random.Random) -> Iterator[tuple[list[int], list[int], bool]]:
        """Yield each conversation: its prompt, its response with the end token, and whether it is idle.

        A conversation is idle if the memory was empty and stays so: most sections of a document have nothing to note.

        Raises:
            BadRow: the problem cannot be read, its metadata lack its facts, or memory or answer are too long for the
                agent's limits.
        """
        agent, tokenized = self.agent, self.agent.tokenize(problem)
        facts, needed = _facts(problem)
        memory: list[str] = []
        prompts, empty = agent.prompts, agent.prompts.empty_memory
        for chunk in tokenized.chunks(agent.config.chunk_tokens):
            text = agent.tokenizer.decode(chunk)
            held = self._tokens(memory) or empty
            prompt = prompts.fill("memory", problem=tokenized.question, memory=held, chunk=chunk)
            before, memory = memory, self._next(memory, [fact for fact in facts if fact in text], needed, rng)
            yield prompt, [*(self._tokens(memory) or empty), self.end], not before and not memory
        held = self._tokens(memory) or empty
        answer = problem.answers[0] if set(needed) <= set(memory) else UNKNOWN
        response = [*encode_text(agent.tokenizer, f"\\boxed{{{answer}}}"), self.end]
        if len(response) > agent.config.answer_tokens:
            raise BadRow(f"the answer has {len(response)} tokens, over agent.answer_tokens")
        yield prompts.fill("answer", problem=tokenized.question, memory=held), response, False

    def _next(self, memory: list[str], section: list[str], needed: list[str], rng: random.Random) -> list[str]:
        """The memory after a section. What builds on an unknown fact does not look needed."""
        habits = self.habits
        known = sum(fact in memory for fact in needed)
        wanted = needed[: known + 1]
        kept = [fact for fact in memory if rng.random() < (habits.keeps if fact in needed else habits.keeps_useless)]
        notes = habits.notes if len(section) == 1 else habits.notes_misled
        new = [
            fact
            for fact in section
            if fact not in kept and rng.random() < (notes if fact in wanted else habits.notes_useless)
        ]
        memory = kept + new
        while len(self._tokens(memory)) >= self.agent.config.memory_tokens:  # it ends with an end token, too
            useless = [fact for fact in memory if fact not in needed]
            if not useless:
                raise BadRow("the needed facts do not fit agent.memory_tokens")
            memory.remove(rng.choice(useless))
        return memory

    def _tokens(self, memory: list[str]) -> list[int]:
        return encode_text(self.agent.tokenizer, " ".join(memory)) if memory else []


def _facts(problem: Problem) -> tuple[list[str], list[str]]:
    """All facts of a document, and the needed ones in order."""
    facts, needed = problem.metadata.get("facts"), problem.metadata.get("needed")
    pairs = isinstance(facts, list) and all(isinstance(fact, list) and len(fact) == 2 for fact in facts)
    texts = [text for text, _ in cast(list, facts)] if pairs else []
    if not texts or not isinstance(needed, list) or not all(isinstance(text, str) for text in (*texts, *needed)):
        raise BadRow("'metadata' lacks the facts that a scripted reader needs, as `jobs.prepare facts` writes them")
    return texts, needed
