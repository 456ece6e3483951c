"""Question answering (qa_1, qa_2): a question's gold paragraphs at random places among others from the same file."""

import random
from collections.abc import Sequence
from functools import lru_cache

from pipeline.data.documents.hotpotqa_json import Paragraph
from pipeline.data.documents.ruler.fitting import CountTokens, TooFewUnits, fit
from pipeline.data.documents.ruler.haystack import pieces
from pipeline.data.documents.ruler.questions import QUESTION_FORMATS, Question, QuestionSet
from pipeline.data.documents.ruler.sample import Sample
from pipeline.errors import DataError

INTRODUCTION = "Answer the question from the given documents."


def question_sample(
    task: str,
    seed: int,
    index: int,
    rng: random.Random,
    tokens: int,
    count_tokens: CountTokens,
    source: QuestionSet | None,
) -> Sample:
    """Question number `index` of the series `seed`, over paragraphs that are written as "Document i:", title, text.

    Paragraphs that resemble the gold ones are used first, then any others. The choice and the order of all are drawn
    for each sample. A paragraph that is not gold may be cut. After the last question of the file, the first one
    follows. `needles` are the gold paragraphs: {"document": i, "depth"}.

    Raises:
        DataError: there are no questions, or another RULER task's; `tokens` is too small; or there are too few
            paragraphs.
    """
    if source is None:
        raise DataError(f"{task} needs questions: give a {QUESTION_FORMATS[task]} JSON file as `questions=`")
    if source.task != task:
        raise DataError(f"`questions=` must be read for {task}, but {source.path} was read for {source.task}")
    order = _question_order(f"{task}/{seed}", len(source.questions))
    question = source.questions[order[index % len(order)]]
    gold = [source.paragraphs[number] for number in question.gold]
    others = [source.paragraphs[number] for number in _other_paragraphs(rng, question, source)]
    # One place per paragraph, gold ones first, independent of how many others fit.
    places = [rng.random() for _ in range(len(gold) + len(others))]

    def documents(units: int, part: Sequence[str]) -> list[str]:
        texts = [_titled(paragraph) for paragraph in gold + others[:units]] + ["".join(part)] * bool(part)
        ordered = sorted(range(len(texts)), key=places.__getitem__)
        return [f"Document {i}:\n{texts[number]}" for i, number in enumerate(ordered, 1)]

    def build(units: int, part: Sequence[str]) -> str:
        return "\n\n".join(documents(units, part))

    def cut(units: int) -> list[str]:
        """The words of one more paragraph, then those of the next ones, for a gap with no room for a heading."""
        first, *following = others[units : units + 3]
        words = pieces(f"{first.title}\n" if first.title else "", first.text)
        return words + [word for paragraph in following for word in pieces(" ", paragraph.text)]

    try:
        fitted = fit(task, build, cut, tokens, count_tokens, len(others))
    except TooFewUnits as error:
        where = f"the paragraphs are those of {source.path}"
        raise DataError(f"{error}; {where}: give a larger file, or ask for fewer tokens") from None
    parts = documents(fitted.units, fitted.part)
    numbers = [1 + sum(other < place for other in places[: len(parts)]) for place in places[: len(gold)]]
    needles = tuple(
        {"document": number, "depth": len("\n\n".join([*parts[: number - 1], ""])) / len(fitted.text)}
        for number in sorted(numbers)
    )
    asked = f"{INTRODUCTION} {question.question}"
    return Sample(asked, question.answers, fitted, needles, (question.id,))


@lru_cache(maxsize=8)
def _question_order(seed: str, count: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).sample(range(count), count))


def _other_paragraphs(rng: random.Random, question: Question, source: QuestionSet) -> list[int]:
    """All paragraphs except gold ones: near ones first, then those that share no title with gold or near ones."""
    near = rng.sample(question.near, len(question.near))
    own = {*question.gold, *near}
    titles = {source.paragraphs[number].title for number in own} - {""}
    numbers = rng.sample(range(len(source.paragraphs)), len(source.paragraphs))
    return near + [n for n in numbers if n not in own and source.paragraphs[n].title not in titles]


def _titled(paragraph: Paragraph) -> str:
    return f"{paragraph.title}\n{paragraph.text}" if paragraph.title else paragraph.text
