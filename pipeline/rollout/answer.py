"""The result of an agent's episode: the answer, which is scored, and the memories behind it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class Memories:
    """The memories of one episode. They are counted and shown, not trained on.

    Attributes:
        tokens: the token ids of each memory without the end token, in document order. A turn that leaves the memory
            unchanged repeats it here.
        chained: memory i was written from memory i - 1 and chunk i of the document. A chunk has `agent.chunk_tokens`
            tokens, and `tokenize` returns the document as `document`. Needed facts are followed only through chained
            memories.
    """

    tokens: Sequence[Sequence[int] | np.ndarray] = ()
    chained: bool = False


NO_MEMORIES = Memories()


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer of an episode.

    Attributes:
        text: the text that is scored.
        memories: the memories behind it.
        cut: whether a length limit cut the answer off. A cut answer has reward 0 whatever its text, in training and in
            evaluation. None: cut if the conversation that began last reached its limit, which is right for agents
            whose last response is the answer.
    """

    text: str
    memories: Memories = NO_MEMORIES
    cut: bool | None = None


def answer_of(returned: object, last_is_cut: bool) -> Answer:
    """Turn the return value of an agent's `run` into an `Answer` whose `cut` is set.

    Args:
        returned: the return value: an `Answer`, or the answer's text.
        last_is_cut: whether the conversation that began last reached its length limit.

    Raises:
        TypeError: the answer is not text.
    """
    text = returned.text if isinstance(returned, Answer) else returned
    if not isinstance(text, str):
        raise TypeError(f"the agent's answer must be text, not {type(text).__name__}")
    answer = returned if isinstance(returned, Answer) else Answer(text)
    return answer if answer.cut is not None else replace(answer, cut=last_is_cut)
