"""Synthetic documents: a language of a hundred words in which only memory management has to be learned.

A fact is three words: `Sam Rex .` (a person's pet) or `Rex Paris .` (a pet's city, color, food or toy).
A question ends with its subject: `city Rex` (one hop) or `city pet Sam` (two hops). A document is a sequence of
facts. Each word is one token, so a chunk of `CHUNK_TOKENS` holds `CHUNK_FACTS` whole facts.

`SYNTHETIC_TASKS` lists the tasks in this language: `chains`, on which the embedded model is trained, and others that
ask more of the same skill, to measure how far it transfers.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from pipeline.problems import Problem

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

Fact = tuple[str, str]  # subject, object

CHUNK_FACTS = 6
FACT_TOKENS = 3
CHUNK_TOKENS = FACT_TOKENS * CHUNK_FACTS

PEOPLE = tuple("Adam Beth Carl Dora Emil Fay Gus Hana Ivan Jane Kurt Lena Nora Otto Paul Sam".split())
PETS = tuple("Bello Coco Daisy Echo Fluffy Ginger Izzy Jumbo Kiki Luna Milo Nala Oscar Pixie Rex Zorro".split())
VALUES = {
    kind: tuple(words.split())
    for kind, words in {
        "city": "Athens Berlin Cairo Delhi Dublin Geneva Lima London Madrid Oslo Paris Prague Rome Seoul Tokyo Vienna",
        "color": "amber black blue brown coral crimson gold gray green indigo pink purple red teal white yellow",
        "food": "apples beans bread cheese corn eggs fish honey milk nuts oats peas rice soup tuna yogurt",
        "toy": "ball bell bone boot doll drum duck frisbee kite mouse ring rope shoe sock stick wheel",
    }.items()
}
KINDS = tuple(VALUES)
MARKERS = (".", "pet", "none", "unknown", "\\boxed{", "}")
SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>", "<unk>", "<problem>", "<memory>", "<section>", "<update>", "<answer>")
WORDS = PEOPLE + PETS + sum(VALUES.values(), ()) + KINDS + MARKERS
# The values that are part of no other word. A scorer that looks for substrings would find bell in Bello, for example.
SEPARATE_VALUES = {
    kind: tuple(value for value in values if not any(value in word.lower() for word in WORDS if word != value))
    for kind, values in VALUES.items()
}

# The series of evaluation and of validation problems; training draws the series run.seed, a small number.
EVALUATION_SEED = 1_000_000
VALIDATION_SEED = 2_000_000


def synthetic_problem(seed: int, index: int, chunks: int, task: str = "chains") -> Problem:
    """Problem number `index` of the series `seed`, with a document of `chunks` × `CHUNK_FACTS` facts.

    It depends only on the four arguments. The needed facts lie in different chunks, those of a chain in order from
    first to last; no other fact shares a subject with them. `metadata` holds the number of `hops` (1 if the question
    needs no chain), the `needed` facts in document order, and for each its chunk (`chunks`) and its offset in the
    document in tokens (`needed_at`).

    Raises:
        KeyError: there is no such task.
        ValueError: there are fewer chunks than the most facts that the task may need.
    """
    rules = SYNTHETIC_TASKS[task]
    if chunks < rules.most_needed:
        raise ValueError(f"a document of the task {task} has {rules.most_needed} chunks or more, not {chunks}")
    rng = random.Random(f"{rules.name}-{seed}-{index}-{chunks}")
    kind, question, needed = rules.question(rng)
    where = sorted(rng.sample(range(chunks), len(needed)))
    facts = [rules.distractor(rng, kind, needed) for _ in range(chunks * CHUNK_FACTS)]
    places = [chunk * CHUNK_FACTS + rng.randrange(CHUNK_FACTS) for chunk in where]
    for place, fact in zip(places, needed, strict=True):
        facts[place] = fact
    all_asked = rules.scorer == "values"
    return Problem(
        id=f"{rules.name}-{seed}-{index}",
        question=question,
        answers=tuple(value for _, value in (needed if all_asked else needed[-1:])),
        document=facts_text(facts),
        task=rules.scorer,
        metadata={
            "hops": 1 if all_asked else len(needed),
            "needed": [facts_text([fact]) for fact in needed],
            "needed_at": [FACT_TOKENS * place for place in places],
            "chunks": where,
        },
    )


@dataclass(frozen=True)
class SyntheticRecipe:
    """The first `count` problems of the series `seed`, as a `SampleSource` (pipeline/data/samples.py).

    `metadata` also holds the `set` and the document's `length` in tokens of the language's own tokenizer. The problems
    name the scorer `scorer`; empty: the task's own.
    """

    seed: int
    chunks: int
    count: int
    task: str = "chains"
    scorer: str = ""

    @property
    def set_name(self) -> str:
        return SYNTHETIC_TASKS[self.task].name

    @property
    def length(self) -> int:
        """The document length in tokens."""
        return self.chunks * CHUNK_TOKENS

    def __len__(self) -> int:
        return self.count

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The problems in the order of their numbers, int64 [N]: they are random draws and need no shuffling."""
        return np.arange(self.count)

    def sample(self, index: int) -> Problem:
        problem = synthetic_problem(self.seed, index, self.chunks, self.task)
        metadata = problem.metadata | {"set": self.set_name, "length": self.length}
        return replace(problem, task=self.scorer or problem.task, metadata=metadata)

    def row(self, index: int) -> tuple[str, object]:
        raise LookupError("no problem of the language is bad")


def draw_question(rng: random.Random) -> tuple[str, str, list[Fact]]:
    """Draw a kind of value, a question about it, and the one or two facts that answer it, the bridge first."""
    kind, pet = rng.choice(KINDS), rng.choice(PETS)
    needed = [(pet, rng.choice(VALUES[kind]))]
    if rng.random() < 0.5:
        return kind, f"{kind} {pet}", needed
    person = rng.choice(PEOPLE)
    return kind, f"{kind} pet {person}", [(person, pet), *needed]


def draw_distractor(rng: random.Random, kind: str, needed: list[Fact]) -> Fact:
    """Draw a fact about none of the needed subjects: a quarter of the asked kind, a quarter about a person's pet."""
    taken = {subject for subject, _ in needed}
    share = rng.random()
    if share < 0.25:
        return _other(rng, PEOPLE, taken), rng.choice(PETS)
    if share >= 0.5:
        kind = _other(rng, KINDS, {kind})
    return _other(rng, PETS, taken), rng.choice(VALUES[kind])


def draw_needle(rng: random.Random) -> tuple[str, str, list[Fact]]:
    """Draw a one-hop question."""
    kind, pet = rng.choice(KINDS), rng.choice(PETS)
    return kind, f"{kind} {pet}", [(pet, rng.choice(VALUES[kind]))]


def draw_hard_distractor(rng: random.Random, kind: str, needed: list[Fact]) -> Fact:
    """Draw a fact: nine in ten have the asked kind and another pet; the rest name the asked pet, but as somebody's."""
    [(pet, _)] = needed
    if rng.random() < 0.9:
        return _other(rng, PETS, {pet}), rng.choice(VALUES[kind])
    return rng.choice(PEOPLE), pet


def draw_values(rng: random.Random) -> tuple[str, str, list[Fact]]:
    """Draw a question about two or three pets, named in an order of its own; their values differ."""
    kind, count = rng.choice(KINDS), rng.choice((2, 3))
    pets, values = rng.sample(PETS, count), rng.sample(SEPARATE_VALUES[kind], count)
    return kind, " ".join([kind, *rng.sample(pets, count)]), list(zip(pets, values, strict=True))


def draw_long_chain(rng: random.Random) -> tuple[str, str, list[Fact]]:
    """Draw a three-hop question: a person's pet has a pet, which has the value."""
    kind, person = rng.choice(KINDS), rng.choice(PEOPLE)
    pet, pets_pet = rng.sample(PETS, 2)
    return kind, f"{kind} pet pet {person}", [(person, pet), (pet, pets_pet), (pets_pet, rng.choice(VALUES[kind]))]


def draw_long_chain_distractor(rng: random.Random, kind: str, needed: list[Fact]) -> Fact:
    """Draw a fact: a quarter are about a person's pet, a quarter about a pet's pet, half have the asked kind."""
    taken = {subject for subject, _ in needed}
    share = rng.random()
    if share < 0.25:
        return _other(rng, PEOPLE, taken), rng.choice(PETS)
    pet = _other(rng, PETS, taken)
    return pet, _other(rng, PETS, {pet}) if share < 0.5 else rng.choice(VALUES[kind])


@dataclass(frozen=True)
class SyntheticTask:
    """A task in the language: how its questions and the facts around them are drawn."""

    name: str  # `set` in the metadata, and the start of ids
    question: Callable[[random.Random], tuple[str, str, list[Fact]]]  # draws the asked kind, the question, needed facts
    distractor: Callable[[random.Random, str, list[Fact]], Fact]  # draws a fact, given the kind and the needed facts
    most_needed: int  # the most facts that a question needs
    scorer: str = "qa"


SYNTHETIC_TASKS = {
    "chains": SyntheticTask("synthetic", draw_question, draw_distractor, 2),
    "needles": SyntheticTask("needles", draw_needle, draw_hard_distractor, 1),
    "values": SyntheticTask("values", draw_values, draw_distractor, 3, scorer="values"),
    "long_chains": SyntheticTask("long_chains", draw_long_chain, draw_long_chain_distractor, 3),
}


def _other(rng: random.Random, words: tuple[str, ...], taken: set[str]) -> str:
    return rng.choice([word for word in words if word not in taken])


def facts_text(facts: list[Fact]) -> str:
    """The facts as documents, memories and answers spell them; the empty text for no facts."""
    return " ".join(f"{subject} {value} ." for subject, value in facts)


def answer_text(known: list[Fact], complete: bool) -> str:
    """The answer that a memory with the chain's facts `known` permits: the chain, then the box."""
    value = known[-1][1] if complete else "unknown"
    return f"{facts_text(known)} \\boxed{{ {value} }}".strip()


def tiny_tokenizer() -> "PreTrainedTokenizerFast":
    """A word-level tokenizer of the language: one token per word, `<unk>` for everything else.

    Words are split at punctuation, so the text `<memory>` in a document reads as three unknown words, never as the
    special token. Only text encoded with special tokens enabled yields special tokens.
    """
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(SPECIAL_TOKENS + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\\boxed\{|\w+|[^\w\s]"), "isolated")]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL_TOKENS[4:]),
        clean_up_tokenization_spaces=False,  # keep the blank before the full stop: a fact is three words
        padding_side="left",
        model_max_length=256,
    )


def tiny_model_config() -> "LlamaConfig":
    """A two-layer Llama with 343K parameters, for the vocabulary of `tiny_tokenizer`."""
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(SPECIAL_TOKENS) + len(WORDS),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=SPECIAL_TOKENS.index("<bos>"),
        eos_token_id=SPECIAL_TOKENS.index("<eos>"),
        pad_token_id=SPECIAL_TOKENS.index("<pad>"),
    )
