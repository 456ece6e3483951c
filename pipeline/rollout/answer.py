"""What an agent returns at the end of an episode: the answer that is scored, and the memories that led to it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class Memories:
    """The memories of one episode in the order of the document, each as token ids without the end token.

    They are counted and shown, not trained on. `chained`: memory i was written from memory i - 1 and chunk i of the
    document (`agent.chunk_tokens` tokens each; `tokenize` returns the document as `document`). The facts that a problem
    needs are followed through such memories only. A turn that leaves the memory as it was repeats it here.
    """

    tokens: Sequence[Sequence[int] | np.ndarray] = ()
    chained: bool = False


NO_MEMORIES = Memories()


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer of an episode.

    `cut`: a length limit cut the answer off, so its reward is 0 whatever it holds, in training as in evaluation. None:
    it did if the conversation begun last reached its limit, which is right wherever an agent's last response is its
    answer.
    """

    text: str
    memories: Memories = NO_MEMORIES
    cut: bool | None = None


def answer_of(returned: object, last_is_cut: bool) -> Answer:
    """The answer of an agent's `run`, with `cut` decided.

    Args:
        returned: by `run`: an `Answer`, or its text alone.
        last_is_cut: whether the conversation begun last reached its length limit.

    Raises:
        TypeError: the answer is no text.
    """
    text = returned.text if isinstance(returned, Answer) else returned
    if not isinstance(text, str):
        raise TypeError(f"the agent's answer must be text, not {type(text).__name__}")
    answer = returned if isinstance(returned, Answer) else Answer(text)
    return answer if answer.cut is not None else replace(answer, cut=last_is_cut)
