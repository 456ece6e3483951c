"""MemAgent's memory agent (arXiv 2507.02259): read chunk by chunk, rewrite a short memory, answer from the memory."""

import numpy as np

from pipeline.agents import LanguageModel, LongestPrompt
from pipeline.agents.reader import Reader, TokenizedProblem
from pipeline.rollout.answer import Answer, Memories


class MemoryAgent(Reader):
    slots = {"memory": ("problem", "memory", "chunk"), "answer": ("problem", "memory")}

    async def run(self, problem: TokenizedProblem, llm: LanguageModel) -> Answer:
        """Run K memory conversations, each with a fresh context, then answer from the last memory alone."""
        memory, memories = self.prompts.empty_memory, []
        for chunk in problem.chunks(self.config.chunk_tokens):
            prompt = self.prompts.fill("memory", problem=problem.question, memory=memory, chunk=chunk)
            memory = self.tokens_of(await llm(prompt, self.config.memory_tokens, "memory"))
            memories.append(np.array(memory, np.int32))  # hundreds are possible; far smaller than lists
        prompt = self.prompts.fill("answer", problem=problem.question, memory=memory)
        response = await llm(prompt, self.config.answer_tokens, "answer")
        return Answer(self.text_of(response), Memories(memories, chained=True))

    def longest_prompts(self) -> list[LongestPrompt]:
        c = self.config
        full = {"problem": c.problem_tokens, "memory": max(c.memory_tokens, len(self.prompts.empty_memory))}
        return [
            self.longest("memory", c.memory_tokens, "agent.chunk_tokens", **full, chunk=c.chunk_tokens),
            self.longest("answer", c.answer_tokens, "agent.answer_tokens", **full),
        ]
