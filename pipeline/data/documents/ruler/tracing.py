"""Variable tracking (vt): a chain of assignments hidden in noise, one hop from each variable to the next."""

import random
from itertools import islice
from string import ascii_uppercase

from pipeline.data.documents.ruler.fitting import CountTokens, fit
from pipeline.data.documents.ruler.haystack import hidden, noise_haystack
from pipeline.data.documents.ruler.sample import Sample, depth
from pipeline.data.documents.ruler.words import distinct

HOPS = 4
NAME_LETTERS = 5


def tracing_sample(rng: random.Random, tokens: int, count_tokens: CountTokens) -> Sample:
    """A sample of vt: lines "VAR ABCDE = 12345" and "VAR FGHIJ = VAR ABCDE", each after the line it refers to.

    The gold answers are the chain's variables in order. `needles` has the same order: {"key": variable, "value",
    "depth"}.

    Raises:
        DataError: `tokens` is too small.
    """
    value = str(rng.randrange(10**4, 10**5))
    names = distinct(lambda: "".join(rng.choices(ascii_uppercase, k=NAME_LETTERS)), set())
    variables = list(islice(names, HOPS + 1))
    sources = [value, *(f"VAR {name}" for name in variables[:-1])]
    lines = [f"VAR {name} = {source}" for name, source in zip(variables, sources, strict=True)]
    shares = sorted(rng.random() for _ in lines)
    haystack = noise_haystack()
    build = hidden(haystack, list(zip(shares, lines, strict=True)))
    document = fit("vt", build, haystack.pieces, tokens, count_tokens)
    depths = (depth(document.text, line) for line in lines)
    needles = tuple({"key": v, "value": value, "depth": d} for v, d in zip(variables, depths, strict=True))
    question = (
        "The text hides a chain of variable assignments. Remember them and follow the chain as you read. "
        f"Find all variables that are assigned the value {value} in the text."
    )
    return Sample(question, tuple(variables), document, needles)
