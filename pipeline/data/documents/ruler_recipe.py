"""RULER tasks as sources of samples."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.documents.ruler import RulerSources, load_essay, load_questions, ruler_problem
from pipeline.data.quarantine import Quarantine
from pipeline.problems import Problem
from pipeline.text import encode_text, load_tokenizer


@dataclass(frozen=True)
class RulerRecipe:
    """The first `count` problems of a RULER task's series `seed` at one length.

    This is a `SampleSource` (pipeline/data/samples.py). `essay` and `questions` are the paths of the task's sources,
    empty if it has none; they and the tokenizer are loaded once per process. Malformed questions in the file are
    skipped here: the job counts them when it checks the file (pipeline/data/recipes.py).
    """

    task: str
    seed: int
    tokens: int
    tokenizer: str
    count: int
    essay: str = ""
    questions: str = ""
    trust_remote_code: bool = False  # of the tokenizer

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> Problem:
        """Raises `DataError` as `ruler_problem` does."""
        sources = RulerSources(
            essay=_essay(self.essay) if self.essay else None,
            questions=_questions(self.task, self.questions) if self.questions else None,
        )
        tokenizer = load_tokenizer(self.tokenizer, self.trust_remote_code)
        return ruler_problem(
            self.task, self.seed, index, self.tokens, lambda text: len(encode_text(tokenizer, text)), sources
        )

    def row(self, index: int) -> tuple[str, object]:
        raise LookupError("no problem of a RULER task is bad: its source is usable as a whole or not at all")


@functools.lru_cache(maxsize=1)
def _essay(path: str):
    return load_essay(path)


@functools.lru_cache(maxsize=2)
def _questions(task: str, path: str):
    return load_questions(task, path, Quarantine(Path(os.devnull), max_share=1.0))
