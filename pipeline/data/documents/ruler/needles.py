"""The eight needle tasks: sentences "One of the special magic numbers for KEY is: VALUE." in a haystack."""

import functools
import random
from dataclasses import dataclass
from itertools import islice

from pipeline.data.documents.ruler.fitting import CountTokens, fit
from pipeline.data.documents.ruler.haystack import NOISE, Haystack, essay_haystack, hidden, noise_haystack
from pipeline.data.documents.ruler.sample import Sample, depth, listed
from pipeline.data.documents.ruler.words import DRAWS, distinct
from pipeline.errors import DataError


@dataclass(frozen=True)
class NeedleTask:
    """`haystack` is noise, essay or needles; `key` and `value` say what is drawn; the rest are counts."""

    haystack: str
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1  # per key
    asked: int = 1  # keys in the question


NEEDLE_TASKS = {
    "niah_single_1": NeedleTask("noise"),
    "niah_single_2": NeedleTask("essay"),
    "niah_single_3": NeedleTask("essay", value="uuids"),
    "niah_multikey_1": NeedleTask("essay", keys=4),
    "niah_multikey_2": NeedleTask("needles"),
    "niah_multikey_3": NeedleTask("needles", key="uuids", value="uuids"),
    "niah_multivalue": NeedleTask("essay", values=4),
    "niah_multiquery": NeedleTask("essay", keys=4, asked=4),
}


def needle_sample(
    task: str, rng: random.Random, tokens: int, count_tokens: CountTokens, essay: tuple[str, ...] | None
) -> Sample:
    """A sample of the RULER task `task`. No key or value occurs twice in its document, and none occurs in the essay.

    `needles` are the needles that are asked for, in the order of the gold answers: {"key", "value", "depth"}.

    Raises:
        DataError: the task needs an essay and there is none, or `tokens` is too small.
    """
    kind = NEEDLE_TASKS[task]
    if kind.haystack == "essay" and not essay:
        raise DataError(f"{task} hides its needles in an essay: give a text, a folder of texts or JSON as `essay=`")
    taken: set[str] = set()
    text = " ".join(essay).lower() if essay and kind.haystack == "essay" else ""
    keys, values = (distinct(functools.partial(DRAWS[k], rng), taken, text) for k in (kind.key, kind.value))
    needles = [(key, value) for key in islice(keys, kind.keys) for value in islice(values, kind.values)]
    asked = needles[: kind.asked * kind.values]

    def sentence(key: str, value: str) -> str:
        return f"One of the special magic {kind.value} for {key} is: {value}."

    if kind.haystack == "noise":
        haystack = noise_haystack()
    elif kind.haystack == "essay":
        haystack = essay_haystack(essay or ())
    else:
        haystack = _needle_haystack(sentence(*needle) for needle in zip(keys, values, strict=True))
    places = [(rng.random(), sentence(*needle)) for needle in needles]
    document = fit(task, hidden(haystack, places), haystack.pieces, tokens, count_tokens)
    return Sample(
        _question(kind, list(dict.fromkeys(key for key, _ in asked))),
        tuple(value for _, value in asked),
        document,
        tuple({"key": k, "value": v, "depth": depth(document.text, sentence(k, v))} for k, v in asked),
        needed=tuple((sentence(key, value), value) for key, value in asked),
    )


def _needle_haystack(sentences) -> Haystack:
    """A haystack of lines from the iterator `sentences`, drawn when needed and kept."""
    drawn: list[str] = []

    def units(n: int) -> list[str]:
        drawn.extend(islice(sentences, max(0, n - len(drawn))))
        return drawn[:n]

    # A cut needle could read as a wrong value or another needle's key, so noise closes the last gap. A needle with two
    # identifiers may have several times the tokens of a line of noise.
    return Haystack("\n", units, lambda n: " ".join([NOISE] * 10))


def _question(kind: NeedleTask, keys: list[str]) -> str:
    if kind.asked * kind.values == 1:
        needle = f"special magic {kind.value.removesuffix('s')}"
        introduction = f"The text hides a {needle}. Remember it when you come across it."
        beginning = f"What is the {needle}"
    else:
        needle = f"special magic {kind.value}"
        introduction = f"The text hides some {needle}. Remember them when you come across them."
        beginning = f"What are all the {needle}"
    return f"{introduction} {beginning} for {listed(keys)} mentioned in the provided text?"
