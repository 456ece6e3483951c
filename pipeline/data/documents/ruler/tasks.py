"""The thirteen RULER tasks by name, and the function that makes a problem of any of them."""

import random
from dataclasses import dataclass

from pipeline.data.documents.ruler.answering import question_sample
from pipeline.data.documents.ruler.counting import coded_words_sample, common_words_sample
from pipeline.data.documents.ruler.fitting import CountTokens
from pipeline.data.documents.ruler.needles import NEEDLE_TASKS, needle_sample
from pipeline.data.documents.ruler.questions import QUESTION_FORMATS, QuestionSet
from pipeline.data.documents.ruler.sample import Sample
from pipeline.data.documents.ruler.tracing import tracing_sample
from pipeline.errors import DataError
from pipeline.problems import Problem

RULER_TASKS = (*NEEDLE_TASKS, "vt", "cwe", "fwe", *QUESTION_FORMATS)


@dataclass(frozen=True)
class RulerSources:
    """A RULER task's inputs besides its random numbers, loaded once and shared by all samples.

    `essay` holds the sentences from `load_essay`, for tasks with an essay haystack; `questions` the result of
    `load_questions`, for qa_1 or qa_2.
    """

    essay: tuple[str, ...] | None = None
    questions: QuestionSet | None = None


def ruler_problem(
    task: str, seed: int, index: int, tokens: int, count_tokens: CountTokens, sources: RulerSources
) -> Problem:
    """Problem number `index` of the series `seed`, with a document of 0.99 × `tokens` to `tokens` tokens.

    It depends only on the arguments. The problem's `task`, the scorer's name, is "qa" for question answering and
    "values" for the rest. `metadata` holds `set` (the RULER task), `length` (the wanted tokens), `tokens` (the measured
    ones) and, except for cwe and fwe, `needles`: what answers the question, each with its `depth` by characters, 0 at
    the beginning of the document and 1 at its end. The niah tasks also have `needed`, `needed_values` and `hops`, by
    which pipeline/agents/memory_trace.py follows the needles through memories. The same index asks the same qa question
    at every length.

    Raises:
        DataError: there is no such RULER task; its source is missing; `tokens` is too small (the message says how many
            it needs); or the source is too small for `tokens`.
    """
    rng = random.Random(f"{task}/{seed}/{index}/{tokens}")
    sample = _sample(task, seed, index, rng, tokens, count_tokens, sources)
    metadata = {"set": task, "length": tokens, "tokens": sample.document.tokens}
    if sample.needles:
        metadata["needles"] = list(sample.needles)  # a list, as when read back from a file
    if sample.needed:
        needed, values = map(list, zip(*sample.needed, strict=True))
        metadata |= {"needed": needed, "needed_values": values, "hops": 1}
    return Problem(
        id="-".join(map(str, (task, tokens, seed, index, *sample.name))),
        question=sample.question,
        answers=sample.answers,
        document=sample.document.text,
        task="qa" if task in QUESTION_FORMATS else "values",
        metadata=metadata,
    )


def _sample(task, seed, index, rng, tokens, count_tokens, sources) -> Sample:
    if task in NEEDLE_TASKS:
        return needle_sample(task, rng, tokens, count_tokens, sources.essay)
    if task == "vt":
        return tracing_sample(rng, tokens, count_tokens)
    if task == "cwe":
        return common_words_sample(rng, tokens, count_tokens)
    if task == "fwe":
        return coded_words_sample(rng, tokens, count_tokens)
    if task in QUESTION_FORMATS:
        return question_sample(task, seed, index, rng, tokens, count_tokens, sources.questions)
    raise DataError(f"there is no RULER task {task!r}; there are {', '.join(RULER_TASKS)}")
