"""Haystacks, and how sentences are hidden in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.data.documents.ruler.fitting import Build

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True)
class Haystack:
    """`units(n)` returns the first n units; `more(n)` a text, at least a unit long, whose beginning may follow them."""

    separator: str
    units: Callable[[int], list[str]]
    more: Callable[[int], str]

    def pieces(self, units: int) -> list[str]:
        """The words that may follow `units` units, each with the blank before it."""
        return pieces(self.separator, self.more(units))


def pieces(before: str, text: str) -> list[str]:
    """The words of `text`, each with its separator: `before` ahead of the first, a blank ahead of the others."""
    first, *others = text.split()
    return [before + first, *(" " + word for word in others)]


def noise_haystack() -> Haystack:
    """The same line, repeated."""
    return Haystack("\n", lambda n: [NOISE] * n, lambda n: NOISE)


def essay_haystack(sentences: tuple[str, ...]) -> Haystack:
    """The essay from its beginning, repeated after its end."""

    def units(n: int) -> list[str]:
        times, rest = divmod(n, len(sentences))
        return [*(sentences * times), *sentences[:rest]]

    return Haystack(" ", units, lambda n: sentences[n % len(sentences)])


def hidden(haystack: Haystack, needles: Sequence[tuple[float, str]]) -> Build:
    """Return a `Build` that puts each needle (share, text) between whole units, after that share of them.

    The shares, in [0, 1), do not depend on the number of units, so needles keep their places during the search for it.
    A part of a unit comes at the very end.
    """
    ordered = sorted(needles)

    def build(count: int, part: Sequence[str]) -> str:
        units = haystack.units(count)
        texts, begin = [], 0
        for share, needle in ordered:
            end = int(share * (count + 1))  # one more place than units: before the first … after the last
            texts += units[begin:end]
            texts.append(needle)
            begin = end
        return haystack.separator.join(texts + units[begin:]) + "".join(part)

    return build
