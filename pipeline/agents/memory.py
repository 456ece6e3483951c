"""The memory agent of MemAgent (arXiv 2507.02259): read chunk by chunk, overwrite a short memory, answer from it.

An agent is an object with two methods: `tokenize(problem)`, done once for the group, and the async
`run(tokenized, llm)`, done once an episode. `await llm(prompt_tokens, max_tokens)` returns a `Completion`.
"""

from dataclasses import dataclass

from pipeline.config import AgentConfig
from pipeline.episodes import Conversation, Episode
from pipeline.problems import BadRow, Problem, QuestionTooLong
from pipeline.prompts import PROMPT_TEMPLATES, Prompts, encode_text


@dataclass(frozen=True)
class TokenizedProblem:
    question: list[int]
    chunks: list[list[int]]


class MemoryAgent:
    def __init__(self, tokenizer, config: AgentConfig):
        self.tokenizer, self.config = tokenizer, config
        self.prompts = Prompts(tokenizer, PROMPT_TEMPLATES[config.prompt_template])

    def tokenize(self, problem: Problem) -> TokenizedProblem:
        """Encode the question, and the document by itself, cut at fixed token offsets.

        Raises:
            QuestionTooLong: the question is over `problem_tokens`.
            BadRow: the document encodes to nothing.
        """
        question = encode_text(self.tokenizer, problem.question)
        if len(question) > self.config.problem_tokens:
            raise QuestionTooLong(
                f"the question has {len(question)} tokens, over agent.problem_tokens={self.config.problem_tokens}"
            )
        document, size = encode_text(self.tokenizer, problem.document), self.config.chunk_tokens
        if not document:
            raise BadRow("the document encodes to no tokens")
        return TokenizedProblem(question, [document[i : i + size] for i in range(0, len(document), size)])

    async def run(self, problem: TokenizedProblem, llm) -> Episode:
        """K memory conversations, each with a fresh context, then the answer from the last memory alone."""
        episode, memory = Episode(), self.prompts.empty_memory
        for chunk in problem.chunks:
            prompt = self.prompts.update(problem.question, memory, chunk)
            update = await llm(prompt, self.config.memory_tokens)
            episode.conversations.append(Conversation("memory", prompt, update))
            memory = self._without_eos(update.tokens)
        prompt = self.prompts.answer(problem.question, memory)
        answer = await llm(prompt, self.config.answer_tokens)
        episode.conversations.append(Conversation("answer", prompt, answer))
        episode.answer = self.tokenizer.decode(self._without_eos(answer.tokens))
        return episode

    def _without_eos(self, tokens: list[int]) -> list[int]:
        return tokens[:-1] if tokens and tokens[-1] == self.tokenizer.eos_token_id else tokens
