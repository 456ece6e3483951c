"""Demonstrations in the tiny language: the embedded default's models learn from them before reinforcement learning.

The examples have exactly the prompts that the agents build (pipeline/agents). docs/tiny-model.md explains the choice of
curricula.
"""

import random
from collections.abc import Callable, Iterator

from pipeline.agents.direct import DirectAgent
from pipeline.agents.memory import MemoryAgent
from pipeline.agents.prompts import Prompts, load_template
from pipeline.data.documents.synthetic import (
    CHUNK_FACTS,
    KINDS,
    PEOPLE,
    PETS,
    VALUES,
    Fact,
    answer_text,
    draw_distractor,
    draw_question,
    facts_text,
)
from pipeline.fine_tuning.examples import Example, respond

TEMPLATES = ("tiny", "tiny_chunk_first")  # prompt templates in the tiny language
MEMORY_FACTS = 4
DRILL_FACTS = 8
LONGEST_DOCUMENT = 8  # chunks, for documents that are read in one prompt

# Probabilities of the careless reader. ATTENTIVE: keep a needed fact, and note the next needed one. DISTRACTED: the
# same at a chunk that begins with a fact about a person. KEEPS_USELESS and HOARDS: keep or note a useless fact.
ATTENTIVE, DISTRACTED = 0.97, 0.45
KEEPS_USELESS, HOARDS = 0.4, 0.03

# Mixtures of examples, each with the share of the steps until which it holds. The keys are methods of `Examples`.
CURRICULA: dict[str, list[tuple[float, dict[str, float]]]] = {
    "reading": [
        (0.08, {"existence": 1.0}),
        (1.0, {"careless_memory": 0.6, "reading": 0.2, "answer": 0.1, "existence": 0.1}),
    ],
    "careful": [(1.0, {"careful_memory": 8 / 9, "answer": 1 / 9})],
    "direct": [(0.3, {"existence": 1.0}), (1.0, {"direct": 0.8, "existence": 0.2})],
}


def demonstrations(
    tokenizer, curriculum: str, seed: int, progress: Callable[[], float], prompt_template: str
) -> Iterator[Example]:
    """Yield examples of a curriculum forever.

    Args:
        tokenizer: the tiny language's tokenizer.
        curriculum: a name in `CURRICULA`.
        seed: seed of all random draws.
        progress: returns the finished share of the run, from 0 to 1.
        prompt_template: a name in `TEMPLATES`.
    """
    examples = Examples(tokenizer, random.Random(f"warmstart-{seed}"), prompt_template)
    while True:
        share = progress()
        mixture = next(mixture for until, mixture in CURRICULA[curriculum] if share < until)
        yield examples.draw(mixture)


class Examples:
    """Draws random examples; each method without arguments draws one kind."""

    def __init__(self, tokenizer, rng: random.Random, prompt_template: str):
        self.rng = rng
        self.template = load_template(prompt_template)
        self.prompts = Prompts(tokenizer, self.template, {**MemoryAgent.slots, **DirectAgent.slots})
        self.vocabulary = tokenizer.get_vocab()
        self.eos = tokenizer.eos_token_id

    def draw(self, mixture: dict[str, float]) -> Example:
        """Draw an example from a mixture: names of the methods below, with their probabilities."""
        return getattr(self, self.rng.choices(list(mixture), list(mixture.values()))[0])()

    def existence(self) -> Example:
        """A drill: one to `DRILL_FACTS` facts, then twice as many subjects, each with its value or `none` if absent.

        The model learns small drills first, and they prepare it for large ones; large ones alone teach nothing.
        """
        rng = self.rng
        count = rng.randint(1, DRILL_FACTS)
        queries = rng.sample(PEOPLE + PETS, 2 * count)
        facts = {q: rng.choice(PETS if q in PEOPLE else VALUES[rng.choice(KINDS)]) for q in queries[:count]}
        rng.shuffle(queries)
        prompt = self._encode(f"<bos> <section> {facts_text(list(facts.items()))} <update>")
        answers = self._encode(facts_text([(query, facts.get(query, "none")) for query in queries]))
        return Example(prompt + answers, [False] * len(prompt) + [False, True, False] * len(queries))

    def careful_memory(self) -> Example:
        """A memory conversation of a reader who keeps and notes exactly the needed facts."""
        return self._memory_written(lambda memory, chunk, needed: [fact for fact in needed if fact in memory + chunk])

    def careless_memory(self) -> Example:
        """A memory conversation of the careless reader."""

        def read(memory: list[Fact], chunk: list[Fact], needed: list[Fact]) -> list[Fact]:
            rng = self.rng
            useful = DISTRACTED if chunk[0][0] in PEOPLE else ATTENTIVE
            new = [fact for fact in memory if rng.random() < (useful if fact in needed else KEEPS_USELESS)]
            new += [fact for fact in chunk if rng.random() < (useful if fact in needed else HOARDS)]
            while len(new) > MEMORY_FACTS:
                new.pop(rng.randrange(len(new)))
            return new

        return self._memory_written(read)

    def answer(self) -> Example:
        """An answer conversation with a random memory."""
        kind, question, needed = draw_question(self.rng)
        known = len(needed) if self.rng.random() < 0.7 else self.rng.randrange(len(needed))
        memory = self._encode(facts_text(self._memory(kind, needed, known))) or self.prompts.empty_memory
        prompt = self.prompts.fill("answer", problem=self._encode(question), memory=memory)
        return self._respond(prompt, answer_text(needed[:known], known == len(needed)))

    def reading(self) -> Example:
        """The answer to a short document in one prompt, which often lacks needed facts."""
        rng = self.rng
        kind, question, needed = draw_question(rng)
        count = max(rng.randint(1, CHUNK_FACTS + 2), len(needed))
        facts = [draw_distractor(rng, kind, needed) for _ in range(count)]
        known = needed if rng.random() < 0.5 else needed[: rng.randrange(len(needed))]
        for place, fact in zip(rng.sample(range(count), len(known)), known, strict=True):
            facts[place] = fact
        prompt = self.prompts.fill("direct", problem=self._encode(question), document=self._encode(facts_text(facts)))
        return self._respond(prompt, answer_text(known, len(known) == len(needed)))

    def direct(self) -> Example:
        """The answer to a whole document in one prompt."""
        rng = self.rng
        kind, question, needed = draw_question(rng)
        facts = [draw_distractor(rng, kind, needed) for _ in range(CHUNK_FACTS * rng.randint(1, LONGEST_DOCUMENT))]
        for place, fact in zip(sorted(rng.sample(range(len(facts)), len(needed))), needed, strict=True):
            facts[place] = fact
        prompt = self.prompts.fill("direct", problem=self._encode(question), document=self._encode(facts_text(facts)))
        return self._respond(prompt, answer_text(needed, True))

    def _memory_written(self, read: Callable[[list[Fact], list[Fact], list[Fact]], list[Fact]]) -> Example:
        """The memory that a reader writes from a random memory and a random chunk.

        If a needed fact is missing, the chunk holds the next one with probability 0.65. The reader does not yet know
        that later ones are needed.
        """
        rng = self.rng
        kind, question, needed = draw_question(rng)
        known = rng.randint(0, len(needed))
        memory = self._memory(kind, needed, known)
        chunk = [draw_distractor(rng, kind, needed) for _ in range(CHUNK_FACTS)]
        if known < len(needed) and rng.random() < 0.65:
            chunk[rng.randrange(CHUNK_FACTS)] = needed[known]
        elif known < len(needed) - 1 and rng.random() < 0.3:
            chunk[rng.randrange(CHUNK_FACTS)] = needed[known + 1]
        new = read(memory, chunk, needed[: known + 1])
        old = self._encode(facts_text(memory)) or self.prompts.empty_memory
        section = self._encode(facts_text(chunk))
        prompt = self.prompts.fill("memory", problem=self._encode(question), memory=old, chunk=section)
        return self._respond(prompt, facts_text(new) or self.template.empty_memory or "")

    def _memory(self, kind: str, needed: list[Fact], known: int) -> list[Fact]:
        """The first `known` needed facts; with probability 0.4, mixed with useless facts."""
        facts = needed[:known]
        if self.rng.random() < 0.4:
            for _ in range(self.rng.randint(1, MEMORY_FACTS - known)):
                facts.insert(self.rng.randint(0, len(facts)), draw_distractor(self.rng, kind, needed))
        return facts

    def _respond(self, prompt: list[int], text: str) -> Example:
        return respond(prompt, [*self._encode(text), self.eos])

    def _encode(self, text: str) -> list[int]:
        # All words are in the vocabulary and separated by blanks, so this equals the tokenizer's result, only faster.
        return [self.vocabulary[word] for word in text.split()]
