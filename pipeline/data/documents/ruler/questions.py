"""The questions of SQuAD's JSON (qa_1) and of HotpotQA's (qa_2), with the paragraphs to hide their answers among."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.documents.hotpotqa_json import (
    Paragraph,
    hotpotqa_question,
    own_paragraphs,
    read_json,
    read_questions,
)
from pipeline.data.quarantine import Quarantine, checked_rows
from pipeline.data.rows import text_field
from pipeline.errors import BadRow, DataError

QUESTION_FORMATS = {"qa_1": "SQuAD", "qa_2": "HotpotQA"}


@dataclass(frozen=True)
class Question:
    """`gold` and `near` are paragraph numbers: the paragraphs that hold the answer, and those that resemble them.

    Near paragraphs are the rest of the same article in SQuAD, and the rest of the question's own ten in HotpotQA.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    near: tuple[int, ...]


@dataclass(frozen=True)
class QuestionSet:
    """The content of the file `path`, read for `task`. No paragraph occurs twice; SQuAD's have an empty title."""

    task: str
    path: str
    paragraphs: tuple[Paragraph, ...]
    questions: tuple[Question, ...]


def load_questions(task: str, path: str | Path, quarantine: Quarantine) -> QuestionSet:
    """Read the questions of the RULER task `task`, qa_1 or qa_2; malformed ones go to `quarantine` with the reason.

    SQuAD 2's unanswerable questions go there too, but do not count as bad: the file is as it should be.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the task has no questions, the file has another format, too many rows were bad, or no question is
            left.
    """
    if task not in QUESTION_FORMATS:
        raise DataError(f"{task!r} has no questions to read; {' and '.join(QUESTION_FORMATS)} have")
    path = str(path)
    numbers: dict[Paragraph, int] = {}  # each paragraph's number, in file order
    read = _squad_questions if task == "qa_1" else _hotpotqa_questions
    questions = read(path, numbers, quarantine)
    if not questions:
        raise DataError(f"{path} holds no question that {task} can ask; the reasons are in {quarantine.path}")
    return QuestionSet(task, path, tuple(numbers), questions)


def _squad_questions(path: str, numbers: dict[Paragraph, int], quarantine: Quarantine) -> tuple[Question, ...]:
    content = next(read_json(path, "qa_1 reads SQuAD's format"))
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list) or not all(
        isinstance(article, dict) and isinstance(article.get("paragraphs"), list) for article in articles
    ):
        raise DataError(
            f'{path} is not in SQuAD\'s format, {{"data": [{{"paragraphs": [{{"context", "qas"}}, …]}}, …]}}'
        )
    unanswerable = Quarantine(quarantine.path, max_share=1.0)
    places: dict[str, tuple[int, tuple[int, ...]]] = {}  # a row's own paragraph, and its article's

    def rows() -> Iterator[tuple[str, object]]:
        for a, article in enumerate(articles):
            own = [_context_number(paragraph, numbers) for paragraph in article["paragraphs"]]
            article_numbers = tuple(dict.fromkeys(number for number in own if number is not None))
            for p, paragraph in enumerate(article["paragraphs"]):
                place = f"{_name(path)}:data[{a}].paragraphs[{p}]"
                number = own[p]
                if number is None or not isinstance(paragraph.get("qas"), list):
                    yield place, paragraph
                    continue
                for q, row in enumerate(paragraph["qas"]):
                    row_id = f"{place}.qas[{q}]"
                    if isinstance(row, dict) and row.get("is_impossible"):
                        unanswerable.add(row_id, "the question has no answer ('is_impossible')", row)
                        continue
                    places[row_id] = number, article_numbers
                    yield row_id, row

    def question(row_id: str, row: Any) -> Question:
        if row_id not in places:
            raise BadRow("a paragraph must have the text 'context' and the list 'qas'")
        text = text_field(row, "question")
        answers = row.get("answers")
        if not isinstance(answers, list) or not answers:
            raise BadRow("'answers' must be a list of one or more {\"text\": …}")
        answers = tuple(dict.fromkeys(text_field(answer, "text") for answer in answers))
        gold, article = places[row_id]
        return Question(str(row.get("id", row_id)), text, answers, (gold,), tuple(n for n in article if n != gold))

    return tuple(checked_rows(rows(), question, quarantine))


def _context_number(paragraph: object, numbers: dict[Paragraph, int]) -> int | None:
    """The number of a SQuAD paragraph; a new text gets a new number. None if there is no text."""
    try:
        return numbers.setdefault(Paragraph("", text_field(paragraph, "context").strip()), len(numbers))
    except BadRow:
        return None


def _hotpotqa_questions(path: str, numbers: dict[Paragraph, int], quarantine: Quarantine) -> tuple[Question, ...]:
    def question(row_id: str, row: Any) -> Question:
        read = hotpotqa_question(row, row_id, own_paragraphs(row))
        own = [numbers.setdefault(paragraph, len(numbers)) for paragraph in read.paragraphs]
        gold = {own[number] for number in read.gold} or set(own)  # without supporting facts, any may be needed
        different = tuple(dict.fromkeys(own))
        near = tuple(number for number in different if number not in gold)
        return Question(read.id, read.question, (read.answer,), tuple(n for n in different if n in gold), near)

    rows = ((f"{_name(path)}:{number}", row) for number, row in enumerate(read_questions(path), 1))
    return tuple(checked_rows(rows, question, quarantine))


def _name(path: str) -> str:
    return path.rpartition("/")[2]
