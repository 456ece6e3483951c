"""The control that never sees the document: what the model knows, or guesses, from the question alone."""

from pipeline.agents.reader import Reader, TokenizedProblem
from pipeline.problems import Problem


class ClosedBookAgent(Reader):
    asks = ("closed_book",)

    def tokenize(self, problem: Problem) -> TokenizedProblem:
        return TokenizedProblem(self.encode_question(problem), document=None)

    async def run(self, problem: TokenizedProblem, llm) -> str:
        prompt = self.prompts.closed_book(problem.question)
        return self.text_of(await llm(prompt, self.config.answer_tokens, "answer"))
