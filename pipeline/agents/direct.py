"""The baseline that reads the whole document in one context.

If the document does not fit the window, its middle is cut out, as in MemAgent's baselines (arXiv 2507.02259,
section 4).
"""

from pipeline.agents import LanguageModel, LongestPrompt
from pipeline.agents.reader import Reader, TokenizedProblem


class DirectAgent(Reader):
    slots = {"direct": ("problem", "document")}

    async def run(self, problem: TokenizedProblem, llm: LanguageModel) -> str:
        assert problem.document is not None, "the agent has not read the document"
        document = self.fit(problem.document, self.prompts.fill("direct", problem=problem.question, document=[]))
        prompt = self.prompts.fill("direct", problem=problem.question, document=list(map(int, document)))
        return self.text_of(await llm(prompt, self.config.answer_tokens, "answer"))

    def longest_prompts(self) -> list[LongestPrompt]:
        """The prompt with one token of the document: `run` cuts the document to fit, but needs at least one token."""
        c = self.config
        return [self.longest("direct", c.answer_tokens, "agent.answer_tokens", problem=c.problem_tokens, document=1)]
