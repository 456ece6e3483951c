"""Replay: resuming an episode after its generator died. Its finished conversations are its whole state.

An agent is a function of its problem and the responses that it got. So an episode can resume on any generator: the
agent runs again from the start. Its prompts are answered from the journal (actors/generation/journal.py) where that has
the response, and by the engine otherwise.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from pipeline.rollout.episodes import Completion


@dataclass(frozen=True)
class Finished:
    """A finished conversation of a running group."""

    group_id: str
    episode: int
    prompt: bytes  # digest of the prompt's tokens
    response: Completion


def digest(prompt: list[int]) -> bytes:
    return blake2b(np.asarray(prompt, np.int64).tobytes(), digest_size=16).digest()


class Replay:
    """The finished conversations of one episode. Each response is returned once, for the prompt that it answered."""

    def __init__(self, finished: Iterable[Finished]):
        self._responses: defaultdict[bytes, deque[Completion]] = defaultdict(deque)
        for conversation in finished:
            self._responses[conversation.prompt].append(conversation.response)

    def take(self, prompt: list[int]) -> Completion | None:
        """Remove and return the response to this prompt; None if it must be generated."""
        responses = self._responses.get(digest(prompt))
        return responses.popleft() if responses else None
