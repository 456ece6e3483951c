"""The memory agent of MemAgent (arXiv 2507.02259): read chunk by chunk, overwrite a short memory, answer from it."""

from pipeline.agents.reader import Reader, TokenizedProblem


class MemoryAgent(Reader):
    async def run(self, problem: TokenizedProblem, llm) -> str:
        """K memory conversations, each with a fresh context, then the answer from the last memory alone."""
        memory = self.prompts.empty_memory
        for chunk in problem.chunks(self.config.chunk_tokens):
            prompt = self.prompts.memory(problem.question, memory, chunk)
            memory = self.tokens_of(await llm(prompt, self.config.memory_tokens, "memory"))
        prompt = self.prompts.answer(problem.question, memory)
        return self.text_of(await llm(prompt, self.config.answer_tokens, "answer"))
