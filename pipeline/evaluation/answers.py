"""What an evaluation keeps of an episode: the answer, a few memories to read, and counts.

Log-probs are not kept, and prompts only on request, so a document of millions of tokens needs no more memory than its
own tokens.
"""

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from pipeline.rollout.episodes import Completion, Sampling, cuts_answer
from pipeline.rollout.memory_counts import MemoryCounts


@dataclass(frozen=True)
class Answer:
    text: str
    memories: tuple[str, ...]  # the last few, in order
    document_tokens: int | None  # None: the agent did not read the document, or does not report its length
    conversations: int
    prompt_tokens: int
    response_tokens: int
    cut: bool  # the answer reached its length limit
    cut_memories: int  # other responses that reached theirs
    memory_trace: MemoryCounts | None  # counts over its memories, before scoring; None: it wrote no memory
    transcript: tuple[tuple[list[int], list[int]], ...]  # prompt and response of each conversation; empty unless kept
    # role, response and finish reason of each conversation; None unless kept
    responses: tuple[tuple[str, np.ndarray, str], ...] | None = None


class AnswerRecorder:
    """The `llm` of an agent (pipeline/agents) that records what an `Answer` needs.

    Args:
        generate: async (prompt tokens, max_tokens, sampling) -> Completion.
        sampling: sampling parameters of all responses; response number i gets the seed `sampling.seed` + i.
        memories: how many of the last memories to keep.
        transcript: whether to keep all prompts and responses.
        follow: async (tokens) -> None, awaited with each memory before the agent continues.
        responses: whether to keep all responses, for a scorer of whole episodes.
    """

    def __init__(self, generate, sampling: Sampling, memories: int, transcript: bool, follow, responses: bool = False):
        self._generate, self._sampling, self._follow = generate, sampling, follow
        self._transcript: dict[int, tuple[list[int], list[int]]] | None = {} if transcript else None
        self._responses: dict[int, tuple[str, np.ndarray, str]] | None = {} if responses else None
        self._memories: deque[tuple[int, Completion]] = deque(maxlen=memories)
        self._conversations = self._prompt_tokens = self._response_tokens = 0
        self._cut_answer, self._cut_memories = False, 0

    async def __call__(self, prompt: list[int], max_tokens: int, role: str) -> Completion:
        number, seed = self._conversations, self._sampling.seed
        self._conversations += 1
        response = await self._generate(
            prompt, max_tokens, replace(self._sampling, seed=None if seed is None else seed + number)
        )
        self._prompt_tokens += len(prompt)
        self._response_tokens += len(response.tokens)
        if self._transcript is not None:
            self._transcript[number] = (prompt, response.tokens)
        if self._responses is not None:
            self._responses[number] = (role, np.array(response.tokens, np.int32), response.finish_reason)
        if cuts_answer(role, response.finish_reason):
            self._cut_answer = True
        elif response.finish_reason == "length":
            self._cut_memories += 1
        if role == "memory":
            self._memories.append((number, response))
            await self._follow(response.tokens)
        return response

    def answer(self, text: str, tokenized: object, tokenizer, counts: MemoryCounts) -> Answer:
        """The record of the episode, with the agent's answer.

        Args:
            text: the answer that the agent returned.
            tokenized: the tokenized problem; its `document`, if any, gives the number of document tokens.
            tokenizer: decodes the memories.
            counts: counts over all memories.

        Raises:
            TypeError: the agent's answer is not text.
        """
        if not isinstance(text, str):
            raise TypeError(f"the agent's answer must be text, not {type(text).__name__}")
        document = getattr(tokenized, "document", None)
        memories = sorted(self._memories, key=lambda memory: memory[0])
        return Answer(
            text=text,
            memories=tuple(tokenizer.decode(m.tokens, skip_special_tokens=True) for _, m in memories),
            document_tokens=None if document is None else len(document),
            conversations=self._conversations,
            prompt_tokens=self._prompt_tokens,
            response_tokens=self._response_tokens,
            cut=self._cut_answer,
            cut_memories=self._cut_memories,
            memory_trace=counts if counts.tokens.whole else None,
            transcript=_in_order(self._transcript or {}),
            responses=None if self._responses is None else _in_order(self._responses),
        )


def _in_order(conversations: dict[int, tuple]) -> tuple[tuple, ...]:
    """By the numbers in which they were begun."""
    return tuple(conversation for _, conversation in sorted(conversations.items(), key=lambda item: item[0]))
