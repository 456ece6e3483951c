"""A scripted model for readings, and documents of pieces with places."""

import re

from pipeline.agents import load_agent
from pipeline.asking.sections import Place, PlacedText
from pipeline.rollout.episodes import Completion
from pipeline.sections import AgentSection
from pipeline.text import encode_text
from tests.support.byte_tokenizer import byte_tokenizer

SLOT = re.compile(r"<(problem|memory|section|article)>\n(.*?)\n</\1>", re.DOTALL)
FACT = re.compile(r"The \w+ is \w+\.")


def reader(method: str = "memory", **lengths: int):
    """An agent of the byte tokenizer: a token is a byte."""
    given = {"window": 4096, "problem_tokens": 100, "chunk_tokens": 60, "memory_tokens": 200, "answer_tokens": 80}
    return load_agent(method)(byte_tokenizer(), AgentSection(**given | lengths))


def pieces_of(*texts: str, file: str = "a.txt"):
    """A document of pieces, one after the other in one file."""
    line = 1
    for text in texts:
        yield PlacedText(text, Place(file, None, line))
        line += text.count("\n")


class ScriptedModel:
    """Notes each sentence `The … is ….` of a section, and answers with the last word of the last one that it has noted.

    Args:
        tokenizer: the agent's.
        before: called with the number of a conversation, from 1, before it is answered.
    """

    def __init__(self, tokenizer, before=lambda number: None):
        self.tokenizer, self.before = tokenizer, before
        self.asked: list[dict[str, str]] = []
        self.seeds: list[int | None] = []

    async def generate(self, prompt, max_tokens, sampling) -> Completion:
        self.asked.append(dict(SLOT.findall(self.tokenizer.decode(prompt))))
        self.seeds.append(sampling.seed)
        self.before(len(self.asked))
        slots = self.asked[-1]
        if "section" in slots:
            noted = [] if slots["memory"] == "No previous memory" else [slots["memory"]]
            text = " ".join([*noted, *FACT.findall(slots["section"])])
        else:
            facts = FACT.findall(slots["memory" if "memory" in slots else "article"])
            text = f"It is \\boxed{{{facts[-1].split()[-1].rstrip('.')}}}" if facts else "\\boxed{unknown}"
        tokens = encode_text(self.tokenizer, text)[: max_tokens - 1]
        return Completion([*tokens, self.tokenizer.eos_token_id], [-0.5] * (len(tokens) + 1), [0] * (len(tokens) + 1),
                          "stop", max_tokens=max_tokens)  # fmt: skip
