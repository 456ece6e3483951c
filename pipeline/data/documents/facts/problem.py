"""A problem of hidden facts: a question, the facts that answer it, others like them, and the prose around them."""

import functools
import random
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.data.documents.facts.relations import PERSON, Relation, draw_value, subjects_of
from pipeline.data.documents.ruler.fitting import fit
from pipeline.data.documents.ruler.haystack import essay_haystack, hidden
from pipeline.errors import DataError
from pipeline.problems import Problem

TRIES = 1000  # draws of places until no needed fact is cut, and of a fact until it differs from the needed ones
TOKENS_PER_FACT = 100  # a document has one fact beside the needed ones for so many tokens, as long as there are any

TokenStarts = Callable[[str], Sequence[int]]  # the character at which each token of a text begins


@dataclass(frozen=True)
class Fact:
    relation: Relation
    subject: str
    value: str
    text: str  # the sentence

    @property
    def signs(self) -> list[str]:
        """What a memory must contain to hold the fact: the value; for a bridge the thing, too.

        The next fact of a chain repeats a bridge's value, so the value alone shows nothing.
        """
        return [self.subject.removeprefix("the "), self.value] if self.relation.role else [self.value]


@dataclass(frozen=True)
class Riddle:
    """A question and its facts.

    Attributes:
        question: the question.
        needed: the facts that answer it, in the order in which one leads to the next.
        others: facts that do not help.
    """

    question: str
    needed: tuple[Fact, ...]
    others: tuple[Fact, ...]


def draw_riddle(rng: random.Random, relations: tuple[Relation, ...], hops: int, others: int) -> Riddle:
    """Draw a question over `hops` facts (1 or 2), and `others` further facts, or all that there are.

    Only the subject in the question tells the needed facts from the others: the first others have the relations of the
    needed facts and, for two hops, are a chain of another thing. No other fact has relation and subject of a needed
    one, and no value of another contains that of one.

    Raises:
        DataError: there is no chain of two among the relations.
    """
    if hops == 1:
        asked = rng.choice(relations)
        needed = [_fact(rng, asked, rng.choice(subjects_of(asked)))]
        question = asked.question.format(s=needed[0].subject)
    else:
        bridges = [relation for relation in relations if relation.role]
        ends = [relation for relation in relations if relation.subject == PERSON]
        if not bridges or not ends:
            raise DataError("these forms have no chain of two facts")
        bridge, asked = rng.choice(bridges), rng.choice(ends)
        first = _fact(rng, bridge, rng.choice(subjects_of(bridge)))
        needed = [first, _fact(rng, asked, first.value)]
        question = asked.question.format(s=bridge.role.format(s=first.subject))
    taken = {(fact.relation, fact.subject) for fact in needed}
    found: list[Fact] = []

    def add(relation: Relation, subject: str) -> None:
        if (relation, subject) not in taken:
            taken.add((relation, subject))
            found.append(_fact(rng, relation, subject, needed))

    for fact in needed[:others]:
        chained = found[0].value if fact.relation.subject == PERSON and found else ""
        while len(found) <= needed.index(fact):
            add(fact.relation, chained or rng.choice(subjects_of(fact.relation)))
    pairs = _pairs(relations)
    for relation, subject in rng.sample(pairs, min(len(pairs), others + len(taken))):
        if len(found) < others:
            add(relation, subject)
    rng.shuffle(found)
    return Riddle(question, tuple(needed), tuple(found))


@functools.lru_cache(maxsize=4)
def _pairs(relations: tuple[Relation, ...]) -> list[tuple[Relation, str]]:
    """All relations, each with each of its subjects."""
    return [(relation, subject) for relation in relations for subject in subjects_of(relation)]


def _fact(rng: random.Random, relation: Relation, subject: str, needed: Sequence[Fact] = ()) -> Fact:
    """A fact about a subject, whose value contains none of a needed fact."""
    for _ in range(TRIES):
        value = draw_value(relation, rng)
        text = rng.choice(relation.statements).format(s=subject, v=value)
        if not any(re.search(rf"\b{re.escape(fact.value)}\b", value) for fact in needed):
            return Fact(relation, subject, value, text[0].upper() + text[1:])
    raise AssertionError(f"every value of {relation.name} is a needed one")


def hidden_facts_problem(
    seed: int,
    index: int,
    tokens: int,
    hops: int,
    relations: tuple[Relation, ...],
    prose: Sequence[str],
    chunk_tokens: int,
    token_starts: TokenStarts,
    set_name: str = "facts",
) -> Problem:
    """Problem number `index` of the series `seed`, with a document of 0.99 × `tokens` to `tokens` tokens.

    It depends only on the arguments. The prose begins at a random sentence. The needed facts stand whole in different
    chunks, in order. `metadata` has `set`, `length` (the wanted tokens), `hops`, `needed` (the sentences),
    `needed_values` (what a memory must contain to hold each), `needed_at` (its first token) and `facts`: all facts of
    the document in order, each [sentence, whether it is needed].

    Args:
        seed, index: name the problem.
        tokens: tokens of the document.
        hops: 1 or 2, the number of needed facts.
        relations: the relations that are stated and asked for.
        prose: sentences.
        chunk_tokens: tokens of a chunk of the agents that will read it.
        token_starts: of the tokenizer that counts tokens.
        set_name: the name of the problem's set.

    Raises:
        DataError: `tokens` is too small.
    """
    rng = random.Random(f"facts/{seed}/{index}/{tokens}/{hops}")
    riddle = draw_riddle(rng, relations, hops, max(2, tokens // TOKENS_PER_FACT))
    begin = rng.randrange(len(prose))
    haystack = essay_haystack((*prose[begin:], *prose[:begin]))
    others = [(rng.random(), fact) for fact in riddle.others]
    for _ in range(TRIES):
        placed = [*others, *zip(sorted(rng.random() for _ in riddle.needed), riddle.needed, strict=True)]
        build = hidden(haystack, [(share, fact.text) for share, fact in placed])
        document = fit("facts", build, haystack.pieces, tokens, lambda text: len(token_starts(text)))
        places = _places(document.text, riddle.needed, chunk_tokens, token_starts)
        if places is not None:
            break
    else:
        raise DataError(f"facts: no {hops} facts fit {tokens} tokens in different chunks of {chunk_tokens} tokens")
    last = riddle.needed[-1]
    return Problem(
        id=f"{set_name}-{tokens}-{seed}-{index}",
        question=riddle.question,
        answers=tuple(answer.format(v=last.value) for answer in last.relation.answers),
        document=document.text,
        metadata={
            "set": set_name,
            "length": tokens,
            "hops": hops,
            "needed": [fact.text for fact in riddle.needed],
            "needed_values": [fact.signs for fact in riddle.needed],
            "needed_at": places,
            "facts": [[fact.text, fact in riddle.needed] for _, fact in sorted(placed, key=lambda place: place[0])],
        },
    )


def _places(text: str, needed: Sequence[Fact], chunk_tokens: int, token_starts: TokenStarts) -> list[int] | None:
    """The first token of each needed fact; None if a chunk cuts one, or two are not in different chunks in order."""
    starts, places, chunks = token_starts(text), [], [-1]
    for fact in needed:
        begin = text.index(fact.text)
        first, last = (bisect_right(starts, at) - 1 for at in (begin, begin + len(fact.text) - 1))
        if first // chunk_tokens != last // chunk_tokens or first // chunk_tokens <= chunks[-1]:
            return None
        places.append(first)
        chunks.append(first // chunk_tokens)
    return places
