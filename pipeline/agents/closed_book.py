"""The control that never sees the document: the model answers from the question alone, by knowledge or guessing."""

from pipeline.agents import LanguageModel, LongestPrompt
from pipeline.agents.reader import Reader, TokenizedProblem
from pipeline.problems import Problem


class ClosedBookAgent(Reader):
    slots = {"closed_book": ("problem",)}

    def tokenize(self, problem: Problem) -> TokenizedProblem:
        return TokenizedProblem(self.encode_question(problem), document=None)

    async def run(self, problem: TokenizedProblem, llm: LanguageModel) -> str:
        prompt = self.prompts.fill("closed_book", problem=problem.question)
        return self.text_of(await llm(prompt, self.config.answer_tokens, "answer"))

    def longest_prompts(self) -> list[LongestPrompt]:
        c = self.config
        return [self.longest("closed_book", c.answer_tokens, "agent.answer_tokens", problem=c.problem_tokens)]
