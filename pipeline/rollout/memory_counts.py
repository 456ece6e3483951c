"""Counts over memories that can be summed: facts written, kept and used, and lengths."""

from dataclasses import dataclass, replace
from typing import NamedTuple


class Ratio(NamedTuple):
    """A count `part` out of a count `whole`."""

    part: int = 0
    whole: int = 0

    @property
    def value(self) -> float | None:
        """part / whole; None if `whole` is 0."""
        return self.part / self.whole if self.whole else None


@dataclass(frozen=True)
class MemoryCounts:
    """Counts over memories; they can be summed.

    The wholes are: chances to write a needed fact (`written`) and to keep one (`kept`), episodes that end with all
    needed facts in memory (`answered`), tokens in memories (`junk`), and memories (`tokens`). All but `tokens` are
    empty if the needed facts are unknown.
    """

    written: Ratio = Ratio()  # needed fact in the chunk, all it builds on in the old memory: is it in the new memory?
    kept: Ratio = Ratio()  # needed fact in the old memory: is it in the new memory? (counted at each memory)
    answered: Ratio = Ratio()  # all needed facts in the last memory: is the answer right?
    junk: Ratio = Ratio()  # tokens that belong to no needed fact, or to a repetition of one
    tokens: Ratio = Ratio()  # tokens without the end token; the initial memory text counts as none

    def __add__(self, other: "MemoryCounts") -> "MemoryCounts":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return MemoryCounts(*(Ratio(a.part + b.part, a.whole + b.whole) for a, b in pairs))

    def shares(self) -> dict[str, float | None]:
        """Shares from 0 to 1 of written, kept, answered and junk, and the mean length of a memory (tokens).

        None where the whole is 0: there was no chance, or the needed facts are unknown.
        """
        return {name: ratio.value for name, ratio in vars(self).items()}

    def scored(self, reward: float) -> "MemoryCounts":
        """The counts of one episode, given its reward. A reward of 1 is a right answer; any other is a wrong one."""
        complete = self.answered.whole
        return replace(self, answered=Ratio(complete if reward == 1 else 0, complete))


def memory_shares(counts: MemoryCounts) -> dict[str, float | None]:
    """The shares of `counts` under their names in metrics and summaries: memory_written, memory_kept, …"""
    return {f"memory_{name}": share for name, share in counts.shares().items()}
