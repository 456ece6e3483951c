"""Synthetic documents: a language of a hundred words in which only memory management has to be learned.

A fact is three words: `Sam Rex .` (a person's pet) or `Rex Paris .` (a pet's city, color, food or toy).
A question ends with its subject: `city Rex` (one hop) or `city pet Sam` (two hops). A document is a row of
facts; a word is a token, so a chunk of `CHUNK_TOKENS` holds `CHUNK_FACTS` whole facts.
"""

import random
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from pipeline.problems import Problem

Fact = tuple[str, str]  # subject, object

CHUNK_FACTS = 6
CHUNK_TOKENS = 3 * CHUNK_FACTS

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


def synthetic_problem(seed: int, index: int, chunks: int) -> Problem:
    """The problem number `index` of the series `seed`, with a document of `chunks` × `CHUNK_FACTS` facts.

    It depends on the three arguments alone. One hop or two with equal chance; two hops lie in different chunks,
    the bridge first. `metadata` tells the number of hops, the needed facts in order, and the chunk of each.

    Raises:
        ValueError: fewer than two chunks, in which two hops cannot lie apart.
    """
    if chunks < 2:
        raise ValueError(f"a synthetic document has 2 chunks or more, not {chunks}")
    rng = random.Random(f"synthetic-{seed}-{index}-{chunks}")
    kind, question, needed = draw_question(rng)
    where = sorted(rng.sample(range(chunks), len(needed)))
    facts = [draw_distractor(rng, kind, needed) for _ in range(chunks * CHUNK_FACTS)]
    for chunk, fact in zip(where, needed, strict=True):
        facts[chunk * CHUNK_FACTS + rng.randrange(CHUNK_FACTS)] = fact
    return Problem(
        id=f"synthetic-{seed}-{index}",
        question=question,
        answers=(needed[-1][1],),
        document=facts_text(facts),
        metadata={"hops": len(needed), "needed": [facts_text([fact]) for fact in needed], "chunks": where},
    )


@dataclass(frozen=True)
class SyntheticRecipe:
    """The first `count` problems of the series `seed`, as a `SampleSource` (pipeline/samples.py).

    `metadata` tells also the `set` and the `length` of the document in tokens of the language's own tokenizer.
    """

    seed: int
    chunks: int
    count: int

    def __len__(self) -> int:
        return self.count

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The problems in the order of their numbers, int64 [N]: drawn at random, they need no shuffling."""
        return np.arange(self.count)

    def sample(self, index: int) -> Problem:
        problem = synthetic_problem(self.seed, index, self.chunks)
        metadata = problem.metadata | {"set": "synthetic", "length": self.chunks * CHUNK_TOKENS}
        return replace(problem, metadata=metadata)

    def row(self, index: int) -> tuple[str, object]:
        raise LookupError("no problem of the language is bad")


def draw_question(rng: random.Random) -> tuple[str, str, list[Fact]]:
    """A kind of value, a question about it, and the one or two facts that answer it, the bridge first."""
    kind, pet = rng.choice(KINDS), rng.choice(PETS)
    needed = [(pet, rng.choice(VALUES[kind]))]
    if rng.random() < 0.5:
        return kind, f"{kind} {pet}", needed
    person = rng.choice(PEOPLE)
    return kind, f"{kind} pet {person}", [(person, pet), *needed]


def draw_distractor(rng: random.Random, kind: str, needed: list[Fact]) -> Fact:
    """A fact about none of the needed subjects: a quarter of the asked kind, a quarter about a person's pet."""
    taken = {subject for subject, _ in needed}
    share = rng.random()
    if share < 0.25:
        return _other(rng, PEOPLE, taken), rng.choice(PETS)
    if share >= 0.5:
        kind = _other(rng, KINDS, {kind})
    return _other(rng, PETS, taken), rng.choice(VALUES[kind])


def _other(rng: random.Random, words: tuple[str, ...], taken: set[str]) -> str:
    return rng.choice([word for word in words if word not in taken])


def facts_text(facts: list[Fact]) -> str:
    """The facts as they stand in documents, memories and answers; no fact at all is the empty text."""
    return " ".join(f"{subject} {value} ." for subject, value in facts)


def answer_text(known: list[Fact], complete: bool) -> str:
    """The answer that a memory with the facts `known` of the chain permits: the chain, then the box."""
    value = known[-1][1] if complete else "unknown"
    return f"{facts_text(known)} \\boxed{{ {value} }}".strip()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the language: one token a word, `<unk>` for everything else.

    Words are split at punctuation, so that the text `<memory>` in a document reads as three unknown words
    and never as the special token; only text encoded with special tokens on yields those.
    """
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


def tiny_model_config() -> LlamaConfig:
    """A Llama of two layers, 343K parameters, for the vocabulary of `tiny_tokenizer`."""
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
