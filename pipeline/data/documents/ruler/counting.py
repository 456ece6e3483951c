"""The two counting tasks: common words in a numbered list (cwe) and frequent words in a coded text (fwe)."""

import math
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from string import ascii_lowercase

from pipeline.data.documents.ruler.fitting import CountTokens, Fitted, TooFewUnits, fit
from pipeline.data.documents.ruler.sample import Sample
from pipeline.data.documents.ruler.words import distinct, single_words, word_pair

COMMON_WORDS, COMMON_TIMES, OTHER_TIMES = 10, 30, 3
LEAST_OTHERS = 10  # other words in the shortest list
SPARE_WORDS = 10  # words that occur once, to close the last gap

FREQUENT_WORDS = 3
EXPONENT = 2.0  # the word of rank r occurs in proportion to 1 / r² (Zipf's law)
ZETA = math.pi**2 / 6  # the sum of 1 / r² over all ranks
DOTS = "..."  # the "word" of the first rank
CODE_LETTERS = 6
# The shortest text in which the third frequent word (rank 4) occurs twice. From here on it occurs more often than rank
# 5: the difference, 0.0137 times the words, is over 1 from 74 words on, and 53 to 73 words give 2 and 1.
LEAST_WORDS = 53


def common_words_sample(rng: random.Random, tokens: int, count_tokens: CountTokens) -> Sample:
    """A sample of cwe: "1. lamp 2. run …" with ten words 30 times each and all others 3 times (a few of them once).

    All words are single English words, or, if these do not suffice for `tokens`, pairs like "fancy-lamp".

    Raises:
        DataError: `tokens` is too small.
    """
    singles = rng.sample(single_words(), len(single_words()))
    seed = rng.random()
    try:
        common, document = _word_list(iter(singles), len(singles), seed, tokens, count_tokens)
    except TooFewUnits:
        pairs = distinct(lambda: word_pair(rng), set())
        common, document = _word_list(pairs, 10**9, seed, tokens, count_tokens)
    question = (
        "The text is a numbered list of words, some of which come more often than others. Remember those that come "
        f"most often. What are the {COMMON_WORDS} most common words in the numbered list?"
    )
    return Sample(question, tuple(common), document)


def _word_list(
    source: Iterator[str], most_words: int, seed: float, tokens: int, count_tokens: CountTokens
) -> tuple[list[str], Fitted]:
    """The common words and the fitted list, from the distinct words in `source`."""
    common: list[str] = []
    others: list[str] = []
    for word in source:
        # The scorer looks for each gold answer in the whole reply: "art" would be found in "cart".
        (others if any(word in c or c in word for c in common) else common).append(word)
        if len(common) == COMMON_WORDS:
            break

    def first_others(count: int) -> list[str]:
        others.extend(islice(source, max(0, count - len(others))))
        return others[:count]

    def build(units: int, part: Sequence[str]) -> str:
        words = [*(common * COMMON_TIMES), *(first_others(LEAST_OTHERS + units) * OTHER_TIMES), *part]
        random.Random(seed).shuffle(words)
        return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))

    def spare(units: int) -> list[str]:
        return first_others(LEAST_OTHERS + units + SPARE_WORDS)[-SPARE_WORDS:]

    most = most_words - COMMON_WORDS - LEAST_OTHERS - SPARE_WORDS
    return common, fit("cwe", build, spare, tokens, count_tokens, most, cut_pieces=False)


def coded_words_sample(rng: random.Random, tokens: int, count_tokens: CountTokens) -> Sample:
    """A sample of fwe: coded words of six letters, whose counts fall with the square of their rank, among dots.

    The gold answers are the words of ranks 2, 3 and 4, in this order. Each occurs more often than any other word except
    the dots.

    Raises:
        DataError: `tokens` is too small.
    """
    source = distinct(lambda: "".join(rng.choices(ascii_lowercase, k=CODE_LETTERS)), set())
    vocabulary = [DOTS, *islice(source, FREQUENT_WORDS)]
    spare = [f" {word}" for word in islice(source, SPARE_WORDS)]  # occur once, at the end; the last is cut
    seed = rng.random()

    def build(units: int, part: Sequence[str]) -> str:
        counts = coded_word_counts(LEAST_WORDS + units)
        vocabulary.extend(islice(source, max(0, len(counts) - len(vocabulary))))
        words = [word for word, count in zip(vocabulary, counts, strict=False) for _ in range(count)]
        random.Random(seed).shuffle(words)
        return (" ".join(words) + "".join(part)).rstrip()

    document = fit("fwe", build, lambda units: spare, tokens, count_tokens)
    question = (
        "The text consists of coded words. Keep track of how often each of them appears as you read. What are the "
        f"three words that appear most often in the coded text? Ignore the dots {DOTS!r}, and explain nothing."
    )
    return Sample(question, tuple(vocabulary[1 : 1 + FREQUENT_WORDS]), document)


def coded_word_counts(words: int) -> list[int]:
    """How often each rank's word occurs in a text of about `words` words: ⌊words / (r² ζ(2))⌋, while that is not 0."""
    ranks = range(1, math.isqrt(int(words / ZETA)) + 1)
    return [int(words * rank**-EXPONENT / ZETA) for rank in ranks]
