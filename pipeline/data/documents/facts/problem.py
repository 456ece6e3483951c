"""A problem of hidden facts: a question, the facts that answer it, others like them, and the prose around them."""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.data.documents.facts.relations import PERSON, Relation, draw_subject, draw_value
from pipeline.data.documents.ruler.fitting import fit
from pipeline.data.documents.ruler.haystack import essay_haystack, hidden
from pipeline.errors import DataError
from pipeline.problems import Problem

TRIES = 1000  # placements drawn until no needed fact is cut, and draws of a fact that must differ from others
TOKENS_PER_DISTRACTOR = 100  # a document has about one fact beside the needed ones for so many tokens

TokenStarts = Callable[[str], Sequence[int]]  # the character at which each token of a text begins


@dataclass(frozen=True)
class Fact:
    relation: Relation
    subject: str
    value: str
    text: str  # the sentence


@dataclass(frozen=True)
class Riddle:
    """A question and its facts.

    Attributes:
        question: the question.
        needed: the facts that answer it, in the order in which one leads to the next.
        others: facts that do not help, of which some have the relation that is asked for.
    """

    question: str
    needed: tuple[Fact, ...]
    others: tuple[Fact, ...]


def draw_riddle(rng: random.Random, relations: Sequence[Relation], hops: int, others: int) -> Riddle:
    """Draw a question over `hops` facts (1 or 2), and `others` further facts.

    No other fact has relation and subject of a needed one, or the value of one. At least one has the relation of each
    needed fact, if there are enough others, so the subject decides.

    Raises:
        DataError: there is no chain of two among the relations.
    """
    bridges = [relation for relation in relations if relation.role]
    ends = [relation for relation in relations if relation.subject == PERSON]
    if hops == 1:
        asked = rng.choice(relations)
        needed = [_fact(rng, asked, draw_subject(asked, rng))]
        question = asked.question.format(s=needed[0].subject)
    else:
        if not bridges or not ends:
            raise DataError("these forms have no chain of two facts")
        bridge, asked = rng.choice(bridges), rng.choice(ends)
        first = _fact(rng, bridge, draw_subject(bridge, rng))
        needed = [first, _fact(rng, asked, first.value)]
        question = asked.question.format(s=bridge.role.format(s=first.subject))
    taken = {(fact.relation.name, fact.subject) for fact in needed}
    values = {fact.value for fact in needed}
    found: list[Fact] = []
    wanted = [fact.relation for fact in needed]
    for _ in range(TRIES * (others + 1)):
        if len(found) == others:
            break
        relation = wanted[len(found)] if len(found) < len(wanted) else rng.choice(relations)
        fact = _fact(rng, relation, draw_subject(relation, rng))
        if (relation.name, fact.subject) not in taken and fact.value not in values:
            taken.add((relation.name, fact.subject))
            found.append(fact)
    rng.shuffle(found)
    return Riddle(question, tuple(needed), tuple(found))


def _fact(rng: random.Random, relation: Relation, subject: str) -> Fact:
    value = draw_value(relation, rng)
    while value == subject:
        value = draw_value(relation, rng)
    text = rng.choice(relation.statements).format(s=subject, v=value)
    return Fact(relation, subject, value, text[0].upper() + text[1:])


def hidden_facts_problem(
    seed: int,
    index: int,
    tokens: int,
    hops: int,
    relations: Sequence[Relation],
    prose: Sequence[str],
    chunk_tokens: int,
    token_starts: TokenStarts,
    set_name: str = "facts",
) -> Problem:
    """Problem number `index` of the series `seed`, with a document of 0.99 × `tokens` to `tokens` tokens.

    It depends only on the arguments. The prose begins at a random sentence. The needed facts stand whole in different
    chunks, in order. `metadata` has `set`, `length` (the wanted tokens), `hops`, `needed` (the sentences),
    `needed_values` (the value of each), `needed_at` (its first token) and `facts`: all facts of the document in order,
    each [sentence, whether it is needed].

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
    riddle = draw_riddle(rng, relations, hops, max(2, tokens // TOKENS_PER_DISTRACTOR))
    begin = rng.randrange(len(prose))
    haystack = essay_haystack((*prose[begin:], *prose[:begin]))
    others = [(rng.random(), fact.text) for fact in riddle.others]
    for _ in range(TRIES):
        shares = sorted(rng.random() for _ in riddle.needed)
        needed = list(zip(shares, (fact.text for fact in riddle.needed), strict=True))
        build = hidden(haystack, [*others, *needed])
        document = fit("facts", build, haystack.pieces, tokens, lambda text: len(token_starts(text)))
        places = _places(document.text, riddle.needed, chunk_tokens, token_starts)
        if places is not None:
            break
    else:
        raise DataError(f"facts: no {hops} facts fit {tokens} tokens in different chunks of {chunk_tokens} tokens")
    facts = sorted((*riddle.needed, *riddle.others), key=lambda fact: document.text.index(fact.text))
    return Problem(
        id=f"{set_name}-{tokens}-{seed}-{index}",
        question=riddle.question,
        answers=(riddle.needed[-1].value,),
        document=document.text,
        metadata={
            "set": set_name,
            "length": tokens,
            "hops": hops,
            "needed": [fact.text for fact in riddle.needed],
            "needed_values": [fact.value for fact in riddle.needed],
            "needed_at": places,
            "facts": [[fact.text, fact in riddle.needed] for fact in facts],
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
