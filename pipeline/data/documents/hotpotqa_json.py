"""HotpotQA's own JSON (hotpotqa.github.io): a list of questions, each with its paragraphs, two of them gold."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ijson

from pipeline.data.rows import text_field
from pipeline.errors import BadRow, DataError
from pipeline.files import open_input

DEEPEST = 64  # levels of nested lists and objects; Python cannot write deeper ones back as JSON


@dataclass(frozen=True)
class Paragraph:
    title: str
    text: str


@dataclass(frozen=True)
class HotpotqaQuestion:
    """A row of HotpotQA's JSON. `gold` holds the numbers of the paragraphs that its supporting facts name, in order."""

    id: str
    question: str
    answer: str
    paragraphs: tuple[Paragraph, ...]
    gold: tuple[int, ...]


def own_paragraphs(row: object) -> tuple[Paragraph, ...]:
    """The paragraphs of a question's context, except those without text.

    Raises:
        BadRow: the row is not an object, or its context is not in HotpotQA's format or holds no text.
    """
    if not isinstance(row, dict):
        raise BadRow(f"the row is a {type(row).__name__}, not an object")
    context = row.get("context")
    if not isinstance(context, list) or not context:
        raise BadRow("'context' must be a list of one or more [title, [sentence, …]]")
    own = tuple(paragraph for entry in context if (paragraph := _paragraph(entry)).text)
    if not own:
        raise BadRow("no paragraph of 'context' holds text")
    return own


def hotpotqa_question(row: dict, row_id: str, own: tuple[Paragraph, ...]) -> HotpotqaQuestion:
    """Check one row of HotpotQA's JSON; `own` are its `own_paragraphs`, `row_id` is its id if it has none.

    Raises:
        BadRow: a field is missing or of the wrong type, or a supporting fact is in none of the paragraphs.
    """
    facts = row.get("supporting_facts", [])
    if not isinstance(facts, list) or not all(isinstance(f, list) and f and isinstance(f[0], str) for f in facts):
        raise BadRow("'supporting_facts' must be a list of [title, sentence number]")
    titles = [paragraph.title for paragraph in own]
    gold = list(dict.fromkeys(fact[0].strip() for fact in facts))
    if absent := set(gold) - set(titles):
        raise BadRow(f"'supporting_facts' names {', '.join(sorted(absent))}, which 'context' does not hold")
    return HotpotqaQuestion(
        id=question_id(row, row_id),
        question=text_field(row, "question"),
        answer=text_field(row, "answer"),
        paragraphs=own,
        gold=tuple(titles.index(title) for title in gold),
    )


def question_id(row: object, row_id: str) -> str:
    """The id of a row, malformed or not; `row_id` if it has none."""
    return str(row.get("_id", row_id)) if isinstance(row, dict) else row_id


def _paragraph(entry: object) -> Paragraph:
    match entry:
        case [str(title), [*sentences]] if title.strip() and all(isinstance(s, str) for s in sentences):
            # Sentences include their blanks.
            paragraph = Paragraph(title.strip(), "".join(map(str, sentences)).strip())
            text_field({"context": paragraph.title + paragraph.text}, "context")  # raises if it is not valid Unicode
            return paragraph
    raise BadRow("every entry of 'context' must be [title, [sentence, …]]")


def read_questions(path: str | Path) -> Iterator[Any]:
    """Yield the rows of HotpotQA's JSON, unchecked.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is not a JSON list.
    """
    expected = "expected a JSON list of questions, the format of hotpot_train_v1.1.json"
    with open_input(path) as file:
        if not file.read(4096).lstrip().startswith(b"["):
            raise DataError(f"{path} does not begin with '['; {expected}")
    return read_json(path, expected, listed=True)


def read_json(path: str | Path, expected: str, listed: bool = False) -> Iterator[object]:
    """Yield the content of a JSON file; if `listed`, the entries of its list one by one.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not JSON, or holds absurd numbers or nesting; the message ends in `expected`.
    """
    with open_input(path) as file:
        # Not ijson.items: its memory grows with the square of the depth.
        events = ijson.basic_parse(file, use_float=True)
        builder, depth = ijson.ObjectBuilder(), 0
        try:
            if listed:
                next(events)
            for event, value in events:
                depth -= event in ("end_array", "end_map")
                if depth < 0:  # the end of the list
                    continue
                builder.event(event, value)
                depth += event in ("start_array", "start_map")
                if depth > DEEPEST:
                    raise DataError(f"{path} holds lists or objects nested deeper than {DEEPEST}; {expected}")
                if depth == 0:
                    yield builder.value
                    builder = ijson.ObjectBuilder()
        except ijson.JSONError as error:
            raise DataError(f"{path} is not JSON ({' '.join(str(error).split())}); {expected}") from None
