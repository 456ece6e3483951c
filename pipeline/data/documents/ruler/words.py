"""Draws the words, numbers and identifiers of needles and lists, each at most once."""

import random
import re
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files

PLAIN = re.compile(r"[a-z]+")


@cache
def word_list(kind: str) -> tuple[str, ...]:
    """The "noun", "adjective" or "verb" list of the package wonderwords, in order; lower-case letters only."""
    text = (files("wonderwords") / "assets" / f"{kind}list.txt").read_text(encoding="utf-8")
    return tuple(sorted({word for word in map(str.strip, text.splitlines()) if PLAIN.fullmatch(word)}))


@cache
def single_words() -> tuple[str, ...]:
    """All nouns, adjectives and verbs, sorted: some 8,000 different words."""
    return tuple(sorted({word for kind in ("noun", "adjective", "verb") for word in word_list(kind)}))


@cache
def pair_words() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Adjectives and nouns for pairs such as "fancy-lamp", chosen so that no pair is part of another.

    No adjective ends another one and no noun begins another one: "cozy-car" would be found in "cozy-carpet".
    """
    backwards = sorted(word[::-1] for word in word_list("adjective"))
    return tuple(sorted(word[::-1] for word in _not_beginnings(backwards))), tuple(_not_beginnings(word_list("noun")))


def _not_beginnings(ordered: list[str] | tuple[str, ...]) -> list[str]:
    # In sorted order a word that begins another one also begins its next neighbour.
    return [word for word, after in zip(ordered, [*ordered[1:], ""], strict=True) if not after.startswith(word)]


def word_pair(rng: random.Random) -> str:
    adjectives, nouns = pair_words()
    return f"{rng.choice(adjectives)}-{rng.choice(nouns)}"


def number(rng: random.Random) -> str:
    return str(rng.randrange(10**6, 10**7))


def identifier(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


DRAWS = {"words": word_pair, "numbers": number, "uuids": identifier}


def distinct(draw: Callable[[], str], taken: set[str], absent_from: str = "") -> Iterator[str]:
    """Draw forever, skipping draws in `taken` or in the text `absent_from`; each draw is added to `taken`.

    There are some 4 million word pairs, 9 million numbers and practically unlimited identifiers.
    """
    while True:
        drawn = draw()
        if drawn not in taken and drawn not in absent_from:
            taken.add(drawn)
            yield drawn
