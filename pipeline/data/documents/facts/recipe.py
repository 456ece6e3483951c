"""Hidden facts as sources of samples."""

import functools
from dataclasses import dataclass

from pipeline.data.documents.facts.problem import hidden_facts_problem
from pipeline.data.documents.facts.relations import relations_of
from pipeline.data.documents.ruler import load_essay
from pipeline.problems import Problem
from pipeline.text import load_tokenizer, token_starts


@dataclass(frozen=True)
class FactsRecipe:
    """The first `count` problems of the series `seed` with this number of hops at one length.

    This is a `SampleSource` (pipeline/data/samples.py). Prose and tokenizer are loaded once per process.
    """

    seed: int
    tokens: int
    hops: int
    forms: str
    prose: str
    chunk_tokens: int
    tokenizer: str
    count: int
    trust_remote_code: bool = False  # of the tokenizer

    @property
    def set_name(self) -> str:
        return f"facts_{self.hops}" + ("" if self.forms == "trained" else f"_{self.forms}")

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> Problem:
        """Raises `DataError` as `hidden_facts_problem` does."""
        tokenizer = load_tokenizer(self.tokenizer, self.trust_remote_code)
        return hidden_facts_problem(
            *(self.seed, index, self.tokens, self.hops, relations_of(self.forms), _prose(self.prose)),
            *(self.chunk_tokens, functools.partial(token_starts, tokenizer), self.set_name),
        )

    def row(self, index: int) -> tuple[str, object]:
        raise LookupError("no problem of hidden facts is bad: its prose is usable as a whole or not at all")


@functools.lru_cache(maxsize=2)
def _prose(path: str) -> tuple[str, ...]:
    return load_essay(path)
