"""The agents' common base: tokenizes problems, fills prompts and decodes responses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.agents import LongestPrompt
from pipeline.agents.prompts import Prompts, load_template
from pipeline.data.documents.passages import document_text
from pipeline.end_tokens import end_tokens, without_end
from pipeline.errors import BadRow, ConfigError, DataError, QuestionTooLong
from pipeline.problems import Problem
from pipeline.rollout.episodes import Completion
from pipeline.sections import AgentSection
from pipeline.text import encode_document, encode_text

SHOWN = 500  # characters of an error message that are kept


@dataclass(frozen=True)
class TokenizedProblem:
    question: list[int]
    document: np.ndarray | None  # int32 [N]; None: not read

    def chunks(self, size: int) -> Iterator[list[int]]:
        """Yield the document in chunks of `size` tokens; the last may be shorter."""
        assert self.document is not None, "the agent has not read the document"
        for start in range(0, len(self.document), size):
            yield self.document[start : start + size].tolist()


class Reader:
    """Base class of agents. A subclass defines `slots`, `run` and `longest_prompts`.

    Args:
        tokenizer: the model's tokenizer.
        config: the agent's section: lengths and prompt template.

    Raises:
        ConfigError: the template lacks a prompt or a slot, or has a slot that the agent does not fill.
    """

    # The template's prompts that the agent uses, and the slots that it fills in each.
    slots: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, tokenizer, config: AgentSection):
        self.tokenizer, self.config = tokenizer, config
        self.end_tokens = end_tokens(tokenizer)
        self.prompts = Prompts(tokenizer, load_template(config.prompt_template), self.slots)

    def tokenize(self, problem: Problem) -> TokenizedProblem:
        """Encode the question and the document separately.

        Raises:
            QuestionTooLong: the question is longer than `agent.problem_tokens`.
            BadRow: the document has no tokens or too many, or its passage file cannot be used.
        """
        question, most = self.encode_question(problem), self.config.document_tokens
        try:
            text = document_text(problem, self.config.document_characters)
        except (DataError, OSError) as error:
            said = str(error) if len(str(error)) <= SHOWN else f"{str(error)[:SHOWN]}…"
            raise BadRow(f"'passage_file' cannot be used: {said}") from None
        document = encode_document(self.tokenizer, text)
        if not len(document):
            raise BadRow("the document encodes to no tokens")
        if len(document) > most:
            raise BadRow(f"the document has {len(document)} tokens, over agent.document_tokens={most}")
        return TokenizedProblem(question, document)

    def encode_question(self, problem: Problem) -> list[int]:
        """The question's tokens. Raises `QuestionTooLong` if it is longer than `agent.problem_tokens`."""
        question = encode_text(self.tokenizer, problem.question)
        if len(question) > self.config.problem_tokens:
            raise QuestionTooLong(
                f"the question has {len(question)} tokens, over agent.problem_tokens={self.config.problem_tokens}"
            )
        return question

    def longest(self, prompt: str, response: int, lower: str, **slots: int) -> LongestPrompt:
        """The longest conversation with a prompt.

        Args:
            prompt: the prompt's name.
            response: limit of the response, in tokens.
            lower: the key to lower for a shorter conversation.
            slots: the largest number of tokens in each slot.
        """
        full = self.prompts.fill(prompt, **{slot: [0] * tokens for slot, tokens in slots.items()})
        return LongestPrompt(prompt, len(full), response, lower, tuple(slots.items()))

    def tokens_of(self, response: Completion) -> list[int]:
        """The response's tokens without the end token, if it has one."""
        tokens = list(response.tokens)  # the agent's own, which it may change
        return without_end(tokens, self.end_tokens) if response.finish_reason == "stop" else tokens

    def text_of(self, response: Completion) -> str:
        return self.tokenizer.decode(self.tokens_of(response))

    def fit(self, tokens: Sequence[int] | np.ndarray, empty_prompt: list[int]) -> Sequence[int] | np.ndarray:
        """Cut the middle out of `tokens` so that they fit the window together with their prompt and the answer.

        Args:
            tokens: the content of a slot.
            empty_prompt: the prompt with this slot empty.

        Raises:
            ConfigError: not even one token fits.
        """
        room = self.config.window - self.config.answer_tokens - len(empty_prompt)
        if room < 1:
            raise ConfigError(
                f"agent.window={self.config.window} has no room for a document beside a prompt of {len(empty_prompt)} "
                f"tokens and an answer of {self.config.answer_tokens}"
            )
        if len(tokens) <= room:
            return tokens
        return [*tokens[: room - room // 2], *tokens[len(tokens) - room // 2 :]]
