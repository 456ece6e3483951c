"""Demonstrations of the tiny language: what the embedded default's models learn before reinforcement learning.

Examples have exactly the prompts that the agents build (pipeline/agents). docs/tiny-model.md tells why the curricula
are as they are.
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

MEMORY_FACTS = 4
DRILL_FACTS = 8
LONGEST_DOCUMENT = 8  # chunks, of one that is read at once

# The careless reader's chances. ATTENTIVE: to keep a fact that it needs, and to note the one that it needs next;
# DISTRACTED: the same at a chunk that begins with a fact about a person. The others: to keep or note a useless fact.
ATTENTIVE, DISTRACTED = 0.97, 0.45
KEEPS_USELESS, HOARDS = 0.4, 0.03

# The mixture of examples, by the share of the steps up to which it holds; each is a method of `Examples`.
CURRICULA: dict[str, list[tuple[float, dict[str, float]]]] = {
    "reading": [
        (0.08, {"existence": 1.0}),
        (1.0, {"careless_memory": 0.6, "reading": 0.2, "answer": 0.1, "existence": 0.1}),
    ],
    "careful": [(1.0, {"careful_memory": 8 / 9, "answer": 1 / 9})],
    "direct": [(0.3, {"existence": 1.0}), (1.0, {"direct": 0.8, "existence": 0.2})],
}


def demonstrations(tokenizer, curriculum: str, seed: int, progress: Callable[[], float]) -> Iterator[Example]:
    """Yield examples of a curriculum for ever.

    Args:
        tokenizer: of the tiny language.
        curriculum: a name in `CURRICULA`.
        seed: of all that is drawn.
        progress: how much of the run is done, from 0 to 1.
    """
    examples = Examples(tokenizer, random.Random(f"warmstart-{seed}"))
    while True:
        share = progress()
        mixture = next(mixture for until, mixture in CURRICULA[curriculum] if share < until)
        yield examples.draw(mixture)


class Examples:
    """Draws examples of all sorts."""

    def __init__(self, tokenizer, rng: random.Random):
        self.rng = rng
        self.template = load_template("tiny")
        self.prompts = Prompts(tokenizer, self.template, {**MemoryAgent.slots, **DirectAgent.slots})
        self.vocabulary = tokenizer.get_vocab()
        self.eos = tokenizer.eos_token_id

    def draw(self, mixture: dict[str, float]) -> Example:
        """One example of a mixture: names of the methods below, with their chances."""
        return getattr(self, self.rng.choices(list(mixture), list(mixture.values()))[0])()

    def existence(self) -> Example:
        """One to `DRILL_FACTS` facts, then twice as many subjects, each followed by its value or, if absent, `none`.

        The small drills come first to be learned and lead on to the large ones, which alone teach nothing.
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
        """A memory conversation of a reader who keeps and notes what is needed, and nothing else."""
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
        """An answer conversation, from a random memory."""
        kind, question, needed = draw_question(self.rng)
        known = len(needed) if self.rng.random() < 0.7 else self.rng.randrange(len(needed))
        memory = self._encode(facts_text(self._memory(kind, needed, known))) or self.prompts.empty_memory
        prompt = self.prompts.fill("answer", problem=self._encode(question), memory=memory)
        return self._respond(prompt, answer_text(needed[:known], known == len(needed)))

    def reading(self) -> Example:
        """The answer of a reader who has a few facts before its eyes, the needed ones often not among them."""
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
        """The answer of a reader who has the whole document before its eyes."""
        rng = self.rng
        kind, question, needed = draw_question(rng)
        facts = [draw_distractor(rng, kind, needed) for _ in range(CHUNK_FACTS * rng.randint(1, LONGEST_DOCUMENT))]
        for place, fact in zip(sorted(rng.sample(range(len(facts)), len(needed))), needed, strict=True):
            facts[place] = fact
        prompt = self.prompts.fill("direct", problem=self._encode(question), document=self._encode(facts_text(facts)))
        return self._respond(prompt, answer_text(needed, True))

    def _memory_written(self, read: Callable[[list[Fact], list[Fact], list[Fact]], list[Fact]]) -> Example:
        """What a reader makes of a random memory and a random chunk.

        Two times in three the chunk holds the next needed fact, if one is missing; what comes after that is not
        known to be needed.
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
        return self._respond(prompt, facts_text(new) or self.template.empty_memory)

    def _memory(self, kind: str, needed: list[Fact], known: int) -> list[Fact]:
        """The first `known` needed facts; in four memories of ten, useless facts among them."""
        facts = needed[:known]
        if self.rng.random() < 0.4:
            for _ in range(self.rng.randint(1, MEMORY_FACTS - known)):
                facts.insert(self.rng.randint(0, len(facts)), draw_distractor(self.rng, kind, needed))
        return facts

    def _respond(self, prompt: list[int], text: str) -> Example:
        return respond(prompt, [*self._encode(text), self.eos])

    def _encode(self, text: str) -> list[int]:
        # The words are all known and apart, so this is what the tokenizer would give, only faster.
        return [self.vocabulary[word] for word in text.split()]
