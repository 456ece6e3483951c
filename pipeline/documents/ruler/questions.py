"""The questions of SQuAD's JSON (qa_1) and of HotpotQA's (qa_2), with the paragraphs to hide their answers among."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.problems import BadRow, DataError, Quarantine, checked_rows, text_field

QUESTION_FORMATS = {"qa_1": "SQuAD", "qa_2": "HotpotQA"}


@dataclass(frozen=True)
class Paragraph:
    title: str
    text: str


@dataclass(frozen=True)
class Question:
    """`gold` and `near` are numbers of paragraphs: those that hold the answer, and those that resemble them.

    The latter are the same article's in SQuAD and the others of the question's own ten in HotpotQA.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    near: tuple[int, ...]


@dataclass(frozen=True)
class QuestionSet:
    """All of the file `path`, read for `task`. No paragraph comes twice; those of SQuAD have an empty title."""

    task: str
    path: str
    paragraphs: tuple[Paragraph, ...]
    questions: tuple[Question, ...]


def load_questions(task: str, path: str | Path, quarantine: Quarantine) -> QuestionSet:
    """Read the questions of `task`, qa_1 or qa_2; malformed ones go to `quarantine` with the reason.

    So do SQuAD 2's unanswerable ones, but these do not count as bad: the file is as it should be.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: no such task, the file has another format, too many rows were bad, or there was none.
    """
    if task not in QUESTION_FORMATS:
        raise DataError(f"{task!r} has no questions to read; {' and '.join(QUESTION_FORMATS)} have")
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}); {task} reads {QUESTION_FORMATS[task]}'s format") from None
    numbers: dict[Paragraph, int] = {}  # each paragraph's, in the order of the file
    if task == "qa_1":
        questions = _squad_questions(content, path, numbers, quarantine)
    else:
        questions = _hotpotqa_questions(content, path, numbers, quarantine)
    if not questions:
        raise DataError(f"{path} holds no question that {task} can ask; the reasons are in {quarantine.path}")
    return QuestionSet(task, str(path), tuple(numbers), questions)


def _squad_questions(
    content: object, path: Path, numbers: dict[Paragraph, int], quarantine: Quarantine
) -> tuple[Question, ...]:
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list) or not all(
        isinstance(article, dict) and isinstance(article.get("paragraphs"), list) for article in articles
    ):
        raise DataError(
            f'{path} is not in SQuAD\'s format, {{"data": [{{"paragraphs": [{{"context", "qas"}}, …]}}, …]}}'
        )
    unanswerable = Quarantine(quarantine.path, max_share=1.0)
    places: dict[str, tuple[int, tuple[int, ...]]] = {}  # a row's own paragraph and those of its article

    def rows() -> Iterator[tuple[str, object]]:
        for a, article in enumerate(articles):
            own = [_context_number(paragraph, numbers) for paragraph in article["paragraphs"]]
            article_numbers = tuple(dict.fromkeys(number for number in own if number is not None))
            for p, paragraph in enumerate(article["paragraphs"]):
                place = f"{path.name}:data[{a}].paragraphs[{p}]"
                if own[p] is None or not isinstance(paragraph.get("qas"), list):
                    yield place, paragraph
                    continue
                for q, row in enumerate(paragraph["qas"]):
                    row_id = f"{place}.qas[{q}]"
                    if isinstance(row, dict) and row.get("is_impossible"):
                        unanswerable.add(row_id, "the question has no answer ('is_impossible')", row)
                        continue
                    places[row_id] = own[p], article_numbers
                    yield row_id, row

    def question(row_id: str, row: object) -> Question:
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
    """The number of a SQuAD paragraph's text, a new one for a new text; None when there is no text."""
    try:
        return numbers.setdefault(Paragraph("", text_field(paragraph, "context").strip()), len(numbers))
    except BadRow:
        return None


def _hotpotqa_questions(
    content: object, path: Path, numbers: dict[Paragraph, int], quarantine: Quarantine
) -> tuple[Question, ...]:
    if not isinstance(content, list):
        raise DataError(f"{path} is not in HotpotQA's format, a list of questions")

    def question(row_id: str, row: object) -> Question:
        text, answer = text_field(row, "question"), text_field(row, "answer")
        own = _titled_paragraphs(row)
        facts = row.get("supporting_facts", [])
        if not isinstance(facts, list) or not all(isinstance(f, list) and f and isinstance(f[0], str) for f in facts):
            raise BadRow("'supporting_facts' must be a list of [title, sentence number]")
        # Without them any paragraph may be needed.
        gold_titles = {fact[0].strip() for fact in facts} or set(own)
        if absent := gold_titles - set(own):
            raise BadRow(f"'supporting_facts' names {', '.join(sorted(absent))}, which 'context' does not hold")
        places = {title: numbers.setdefault(paragraph, len(numbers)) for title, paragraph in own.items()}
        gold = tuple(number for title, number in places.items() if title in gold_titles)
        near = tuple(number for title, number in places.items() if title not in gold_titles)
        return Question(str(row.get("_id", row_id)), text, (answer,), gold, near)

    rows = ((f"{path.name}:{number}", row) for number, row in enumerate(content, 1))
    return tuple(checked_rows(rows, question, quarantine))


def _titled_paragraphs(row: dict) -> dict[str, Paragraph]:
    """A HotpotQA question's own paragraphs that have text, by title; raises `BadRow`."""
    context = row.get("context")
    if not isinstance(context, list) or not context:
        raise BadRow("'context' must be a list of one or more [title, [sentence, …]]")
    own: dict[str, Paragraph] = {}
    for entry in context:
        match entry:
            case [str(title), [*sentences]] if title.strip() and all(isinstance(s, str) for s in sentences):
                if text := "".join(sentences).strip():  # sentences bring their own blanks
                    own[title.strip()] = Paragraph(title.strip(), text)
            case _:
                raise BadRow("every entry of 'context' must be [title, [sentence, …]]")
    if not own:
        raise BadRow("no paragraph of 'context' holds text")
    return own
