"""Records the parts of an episode that an evaluation keeps: the answer, a few memories to read, and counts.

Log-probs are not kept, and prompts only on request, so a document of millions of tokens needs little more memory than
its own tokens.
"""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.rollout.answer import Answer, answer_of
from pipeline.rollout.episodes import Completion, Sampling
from pipeline.rollout.memory_counts import MemoryCounts


@dataclass(frozen=True)
class AnswerRecord:
    text: str
    memories: tuple[str, ...]  # the last few memories, in order
    document_tokens: int | None  # None: the agent did not read the document, or does not report its length
    conversations: int
    prompt_tokens: int
    response_tokens: int
    cut: bool  # a length limit cut the answer off
    cut_memories: int  # responses that reached their limit, other than the last conversation's
    memory_trace: MemoryCounts | None  # counts over the memories, before scoring; None: no memory was written
    transcript: tuple[tuple[list[int], list[int]], ...]  # prompt and response of each conversation; empty unless kept
    # role, response and finish reason of each conversation; None unless kept
    responses: tuple[tuple[str, np.ndarray, str], ...] | None = None
    cached_tokens: int = 0  # tokens of the prompts that the engine had in its prefix cache
    versions: tuple[int, int] | None = (
        None  # oldest and newest weights that wrote a response; None: nothing was written
    )


class AnswerRecorder:
    """The `llm` of an agent (pipeline/agents) that records what an `AnswerRecord` needs.

    Args:
        generate: async (prompt tokens, max_tokens, sampling) -> Completion.
        sampling: sampling parameters of all responses; response i gets the seed `sampling.seed` + i.
        transcript: whether to keep all prompts and responses.
        responses: whether to keep all responses, for a scorer of whole episodes.
    """

    def __init__(self, generate, sampling: Sampling, transcript: bool, responses: bool = False):
        self._generate, self._sampling = generate, sampling
        self._transcript: dict[int, tuple[list[int], list[int]]] | None = {} if transcript else None
        self._responses: dict[int, tuple[str, np.ndarray, str]] | None = {} if responses else None
        self._conversations = self._prompt_tokens = self._cached_tokens = self._response_tokens = self._cut = 0
        self._versions: tuple[int, int] | None = None
        self._last, self._last_is_cut = -1, False  # of the finished conversations, the one that began last

    async def __call__(self, prompt: list[int], max_tokens: int, role: str) -> Completion:
        number, seed = self._conversations, self._sampling.seed
        self._conversations += 1
        response = await self._generate(
            prompt, max_tokens, replace(self._sampling, seed=None if seed is None else seed + number)
        )
        self._prompt_tokens += len(prompt)
        self._cached_tokens += response.cached_tokens
        self._response_tokens += len(response.tokens)
        if wrote := [*response.versions, *(self._versions or ())]:
            self._versions = min(wrote), max(wrote)
        if self._transcript is not None:
            self._transcript[number] = (prompt, list(response.tokens))
        if self._responses is not None:
            self._responses[number] = (role, np.array(response.tokens, np.int32), response.finish_reason)
        is_cut = response.finish_reason == "length"
        self._cut += is_cut
        if number > self._last:
            self._last, self._last_is_cut = number, is_cut
        return response

    def answer(self, returned: object) -> Answer:
        """Turn the return value of the agent's `run` into an `Answer`.

        Raises:
            TypeError: the agent's answer is not text.
        """
        return answer_of(returned, self._last_is_cut)

    def record(self, answer: Answer, tokenized: object, tokenizer, memories: int, counts: MemoryCounts) -> AnswerRecord:
        """Return the record of the finished episode.

        Args:
            answer: the agent's answer.
            tokenized: the result of the agent's `tokenize`; its `document` is counted if it has one.
            tokenizer: the tokenizer that decodes the memories.
            memories: how many of the last memories to keep.
            counts: counts over all memories.
        """
        document, written = getattr(tokenized, "document", None), answer.memories.tokens
        return AnswerRecord(
            text=answer.text,
            memories=tuple(
                tokenizer.decode(list(map(int, m)), skip_special_tokens=True)
                for m in written[max(0, len(written) - memories) :]
            ),
            document_tokens=None if document is None else len(document),
            conversations=self._conversations,
            prompt_tokens=self._prompt_tokens,
            response_tokens=self._response_tokens,
            cut=bool(answer.cut),
            cut_memories=self._cut - self._last_is_cut,
            memory_trace=counts if counts.tokens.whole else None,
            transcript=_in_order(self._transcript or {}),
            responses=None if self._responses is None else _in_order(self._responses),
            cached_tokens=self._cached_tokens,
            versions=self._versions,
        )


def _in_order(conversations: dict[int, tuple]) -> tuple[tuple, ...]:
    """The conversations in the order in which they began."""
    return tuple(conversation for _, conversation in sorted(conversations.items(), key=lambda item: item[0]))
