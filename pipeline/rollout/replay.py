"""Going on where a generator stopped: the finished conversations of an episode stand for its whole state.

An agent is a function of its problem and of the responses that it got. So an episode goes on anywhere: the agent runs
again from the start, what it asks for is answered from the journal (actors/generation/journal.py) as long as that has
answers,
and only then by an engine.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from pipeline.rollout.episodes import Completion


@dataclass(frozen=True)
class Finished:
    """A finished conversation of a group that is under way."""

    group_id: str
    episode: int
    prompt: bytes  # digest of its tokens
    response: Completion


def digest(prompt: list[int]) -> bytes:
    return blake2b(np.asarray(prompt, np.int64).tobytes(), digest_size=16).digest()


class Replay:
    """The finished conversations of one episode. Each is given out once, to the prompt that it answered."""

    def __init__(self, finished: Iterable[Finished]):
        self._responses: defaultdict[bytes, deque[Completion]] = defaultdict(deque)
        for conversation in finished:
            self._responses[conversation.prompt].append(conversation.response)

    def take(self, prompt: list[int]) -> Completion | None:
        """The response to this prompt; None if it has to be generated."""
        responses = self._responses.get(digest(prompt))
        return responses.popleft() if responses else None
