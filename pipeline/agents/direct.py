"""The baseline that reads the whole document in one context, its middle cut out where the window is too small for it
(as MemAgent's baselines do, arXiv 2507.02259, section 4)."""

from pipeline.agents.reader import Reader, TokenizedProblem


class DirectAgent(Reader):
    asks = ("direct",)

    async def run(self, problem: TokenizedProblem, llm) -> str:
        assert problem.document is not None
        document = self.fit(problem.document, self.prompts.direct(problem.question, []))
        prompt = self.prompts.direct(problem.question, list(map(int, document)))
        return self.text_of(await llm(prompt, self.config.answer_tokens, "answer"))
