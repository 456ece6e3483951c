"""Fits a document to a wanted number of tokens, for any tokenizer, in a few encodings of the whole text.

A document consists of units (sentences, lines, paragraphs, words). The search first finds the number of whole units.
If one more unit is too many and a gap is left, it finds how many pieces (words) of one more unit fit, and last how many
characters of one more piece.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.errors import DataError

CountTokens = Callable[[str], int]
Build = Callable[[int, Sequence[str]], str]  # (whole units, pieces of one more unit) → document

LEAST_SHARE = 0.99  # least share of the wanted tokens that a document has
FIRST_UNITS = 16  # units of the first measurement, to learn how many tokens a unit has
GROWTH = 32  # the next measurement has at most this many times the units: the first few may be unlike the rest
UNLIMITED = 10**9


@dataclass(frozen=True)
class Fitted:
    """A document `text` = build(units, part), with its measured number of tokens."""

    text: str
    tokens: int
    units: int
    part: tuple[str, ...] = ()


class TooFewUnits(DataError):
    """All units together are shorter than the wanted document."""


def fit(
    task: str,
    build: Build,
    pieces: Callable[[int], Sequence[str]],
    tokens: int,
    count_tokens: CountTokens,
    most_units: int = UNLIMITED,
    cut_pieces: bool = True,
) -> Fitted:
    """Build a document that has 0.99 × `tokens` to `tokens` tokens.

    `build(n, part)` is the document with `n` units plus the text pieces `part`, as far as the task has a place for
    them. `pieces(n)` are the pieces that may follow `n` units, together at least one unit long. Unless `cut_pieces`,
    pieces stay whole. Units of about 1% of `tokens` or less need no pieces: some five encodings in all.

    Raises:
        DataError: the document is too long even without units, or nothing fits its last gap; the message says how many
            tokens `task` needs.
        TooFewUnits: `most_units` are not enough.
    """

    def measure(units: int, part: Sequence[str] = ()) -> int:
        return count_tokens(build(units, part))

    empty = measure(0)
    if empty > tokens:
        raise DataError(f"{task} needs at least {empty} tokens for its document's fixed content, not {tokens}")
    units, size = _search(measure, empty, most_units, tokens)
    if _enough(size, tokens):
        return Fitted(build(units, ()), size, units)
    if units == most_units:
        raise TooFewUnits(f"{task}: all {units} units together have {size} tokens, fewer than the wanted {tokens}")
    # If the first piece (a paragraph's heading) is larger than the gap, try one whole unit less and a longer part.
    for whole in range(units, max(units - 2, -1), -1):
        part = _longest_part(functools.partial(measure, whole), pieces(whole), cut_pieces, tokens)
        text = build(whole, part)
        size = count_tokens(text)
        if _enough(size, tokens):
            return Fitted(text, size, whole, tuple(part))
    least = measure(units, pieces(units)[:1])
    raise DataError(f"{task} needs at least {least} tokens for its document's fixed content and more, not {tokens}")


def _longest_part(
    measure: Callable[[Sequence[str]], int], pieces: Sequence[str], cut_pieces: bool, tokens: int
) -> Sequence[str]:
    count, size = _search(lambda k: measure(pieces[:k]), measure(()), len(pieces), tokens)
    part = list(pieces[:count])
    if cut_pieces and count < len(pieces) and not _enough(size, tokens):
        piece = pieces[count]
        cut, _ = _search(lambda c: measure([*part, piece[:c]]), size, len(piece) - 1, tokens)
        part += [piece[:cut]] if cut else []
    return part


def _search(measure: Callable[[int], int], none: int, most: int, tokens: int) -> tuple[int, int]:
    """A number from 0 to `most` whose measure is within the bounds, else the largest with a measure ≤ `tokens`.

    `none` is the measure of 0, at most `tokens`. The measure grows with the number, nearly in proportion, so the search
    interpolates linearly; every third step halves the interval in case that fails. Returns the number and its measure.
    """
    low, low_size = 0, none
    high, high_size = most + 1, None
    aim = tokens * (1 + LEAST_SHARE) / 2
    guess: float
    step = 0
    while not _enough(low_size, tokens) and high - low > 1:
        if high_size is None and low_size == none:
            guess = max(FIRST_UNITS, 2 * low)
        elif high_size is None:
            guess = min(low * (aim - none) / (low_size - none), GROWTH * low)
        elif step % 3 == 2:
            guess = (low + high) / 2
        else:
            guess = low + (high - low) * (aim - low_size) / (high_size - low_size)
        number = min(max(round(guess), low + 1), high - 1)
        size = measure(number)
        if size <= tokens:
            low, low_size = number, size
        else:
            high, high_size = number, size
        step += 1
    return low, low_size


def _enough(size: int, tokens: int) -> bool:
    return size >= LEAST_SHARE * tokens
