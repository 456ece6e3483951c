"""What memories did, in counts that add up."""

from dataclasses import dataclass, replace
from typing import NamedTuple


class Ratio(NamedTuple):
    """How many of how many."""

    part: int = 0
    whole: int = 0

    @property
    def value(self) -> float | None:
        """None of nothing."""
        return self.part / self.whole if self.whole else None


@dataclass(frozen=True)
class MemoryCounts:
    """What some memories did, in counts that add up.

    `written` and `kept` are of chances to write and to keep a needed fact, `answered` of episodes that end with all
    needed facts in memory, `junk` of tokens in memories; these four count nothing where the needed facts are unknown.
    `tokens` is of memories.
    """

    written: Ratio = Ratio()  # a needed fact in the chunk, all it builds on in the old memory: is it in the new one?
    kept: Ratio = Ratio()  # a needed fact in the old memory: is it in the new one? (for each update)
    answered: Ratio = Ratio()  # all needed facts in the last memory: is the answer right?
    junk: Ratio = Ratio()  # tokens that belong to no needed fact; also those of a fact that is there already
    tokens: Ratio = Ratio()  # without the end token; the words for an empty memory count as none

    def __add__(self, other: "MemoryCounts") -> "MemoryCounts":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return MemoryCounts(*(Ratio(a.part + b.part, a.whole + b.whole) for a, b in pairs))

    def shares(self) -> dict[str, float | None]:
        """The counts as written, kept, answered and junk (shares from 0 to 1) and tokens (the mean length of a memory).

        None where there was no chance, or where the needed facts are unknown.
        """
        return {name: ratio.value for name, ratio in vars(self).items()}

    def scored(self, reward: float) -> "MemoryCounts":
        """The counts of one episode, once its reward is known: 1 is a right answer, anything else is none."""
        complete = self.answered.whole
        return replace(self, answered=Ratio(complete if reward == 1 else 0, complete))


def memory_shares(counts: MemoryCounts) -> dict[str, float | None]:
    """The shares of `counts` under the names that metrics and summaries give them: memory_written and so on."""
    return {f"memory_{name}": share for name, share in counts.shares().items()}
