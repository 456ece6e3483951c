"""What the first episode of a group read and remembered, for people to see (pipeline/run/sampled_episode.py)."""

from dataclasses import dataclass

import numpy as np

MOST_DOCUMENT = 16384  # tokens of the document
MOST_SECTION = 512  # tokens of a section


@dataclass(frozen=True, eq=False)
class Reading:
    """The sections, memories and needed facts of one episode. K is the number of sections, M of memories, F of facts.

    Sections and facts are known only of chained memories (`Memories.chained`), whose memory i follows section i.

    document_tokens  tokens of the document; None: the agent did not read it, or does not report it
    sections         int32 [..] each, K: the first tokens of each section, within the bounds of this module
    memories         int32 [..] each, M: the tokens of each memory
    facts            text of each needed fact, F
    places           index of the section with each fact, F; None: in none, or a boundary cuts it
    held             bool [M, F]: whether the memory holds the fact
    """

    document_tokens: int | None
    sections: tuple[np.ndarray, ...]
    memories: tuple[np.ndarray, ...]
    facts: tuple[str, ...]
    places: tuple[int | None, ...]
    held: np.ndarray
