"""Naive external compression: each chunk is compressed separately, and the answer is given from all the results.

The prompts are those of the memory agent. Every chunk is read with an empty memory; the memories of all chunks, one per
line, are the memory of the answer conversation. If they do not fit the window, the middle is cut out."""

import asyncio

import numpy as np

from pipeline.agents import LanguageModel
from pipeline.agents.memory import MemoryAgent
from pipeline.agents.reader import TokenizedProblem
from pipeline.rollout.answer import Answer, Memories
from pipeline.sections import AgentSection
from pipeline.text import encode_text

AT_ONCE = 16  # chunks read concurrently, so that a document of millions of tokens is never in the engine as a whole


class ConcatAgent(MemoryAgent):
    def __init__(self, tokenizer, config: AgentSection):
        super().__init__(tokenizer, config)
        self.new_line = encode_text(tokenizer, "\n")

    async def run(self, problem: TokenizedProblem, llm: LanguageModel) -> Answer:
        turn = asyncio.Semaphore(AT_ONCE)

        async def compress(prompt: list[int]) -> list[int]:
            try:
                return self.tokens_of(await llm(prompt, self.config.memory_tokens, "memory"))
            finally:
                turn.release()

        compressing = []
        try:
            async with asyncio.TaskGroup() as tasks:
                chunks = problem.chunks(self.config.chunk_tokens)
                # In a thread: a streamed document parses and tokenizes its next section.
                while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                    await turn.acquire()
                    empty = self.prompts.empty_memory
                    prompt = self.prompts.fill("memory", problem=problem.question, memory=empty, chunk=chunk)
                    compressing.append(tasks.create_task(compress(prompt)))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        memories = [task.result() for task in compressing]
        joined = [token for memory in memories for token in [*memory, *self.new_line]]
        memory = self.fit(joined, self.prompts.fill("answer", problem=problem.question, memory=[]))
        prompt = self.prompts.fill("answer", problem=problem.question, memory=list(memory))
        response = await llm(prompt, self.config.answer_tokens, "answer")
        return Answer(self.text_of(response), Memories([np.array(memory, np.int32) for memory in memories]))
