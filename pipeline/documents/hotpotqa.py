"""HotpotQA's own JSON (hotpotqa.github.io) to problems over documents of any number of paragraphs.

A question brings its own paragraphs, two of them gold. They are hidden among random others, each written as
"Document i:", its title and its text. Which others, and where everything stands, is drawn anew for each question
from (seed, question id): neither depends on the rows around it, and no two questions share a shuffle.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ijson

from pipeline.problems import BadRow, DataError, Problem, Quarantine, checked_rows, decode_line, text_field


@dataclass(frozen=True)
class Paragraph:
    title: str
    text: str


def hotpotqa_problems(
    path: str | Path,
    distractors: str | Path | None,
    documents: int,
    task: str,
    seed: int,
    quarantine: Quarantine,
) -> Iterator[Problem]:
    """Yield the questions in `path` as problems with `documents` paragraphs each; bad rows go to `quarantine`.

    The questions are read one at a time, the paragraphs to choose from are held in memory: those of the file
    `distractors`, JSON lines of {"title": …, "text": …}, or without it those of all questions. A paragraph with a title
    that the question's own paragraphs have is never added. `metadata` holds the question's `type` and `level` and, in
    the same order, `gold_titles` and `gold_documents`, the numbers i that they got.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a file has another format, there are too few paragraphs, or too many rows were bad.
    """
    path = Path(path)
    source = Path(distractors) if distractors else path
    pool = {p.title: p for p in (_read_distractors(source) if distractors else _read_own_paragraphs(path))}
    titles = list(pool)

    def problem(row_id: str, row: object) -> Problem:
        question, answer, own = text_field(row, "question"), text_field(row, "answer"), _own_paragraphs(row)
        problem_id = str(row.get("_id", row_id))
        if len(own) > documents:
            raise BadRow(f"the question brings {len(own)} paragraphs, more than data.documents={documents}")
        rng = random.Random(f"{seed}/{problem_id}")
        others = _draw(rng, titles, {p.title for p in own}, documents - len(own))
        if others is None:
            raise DataError(
                f"{source}: {len(titles)} paragraphs with different titles are too few for data.documents={documents}; "
                "give more of them in data.distractors or ask for fewer"
            )
        paragraphs = own + [pool[title] for title in others]
        rng.shuffle(paragraphs)
        text = "\n\n".join(f"Document {i}:\n{p.title}\n{p.text}" for i, p in enumerate(paragraphs, 1))
        gold = _gold_titles(row, own)
        numbers = {p.title: i for i, p in enumerate(paragraphs, 1)}
        metadata = {"gold_titles": gold, "gold_documents": [numbers[title] for title in gold]}
        metadata |= {name: row[name] for name in ("type", "level") if name in row}
        return Problem(problem_id, question, (answer,), text, task, metadata)

    rows = ((f"{path.name}:{number}", row) for number, row in enumerate(_read_questions(path), 1))
    yield from checked_rows(rows, problem, quarantine)


def _draw(rng: random.Random, titles: list[str], taken: set[str], count: int) -> list[str] | None:
    """Draw `count` different titles that are not in `taken`; None when there are not enough."""
    # At most len(taken) of the drawn ones fall away, so that many more are enough.
    drawn = rng.sample(titles, min(len(titles), count + len(taken)))
    free = [title for title in drawn if title not in taken]
    return free[:count] if len(free) >= count else None


def _own_paragraphs(row: object) -> list[Paragraph]:
    """The question's own paragraphs; raises `BadRow`."""
    context = row.get("context") if isinstance(row, dict) else None
    if not isinstance(context, list) or not context:
        raise BadRow("'context' must be a list of one or more [title, [sentence, …]]")
    return [_paragraph(entry) for entry in context]


def _paragraph(entry: object) -> Paragraph:
    match entry:
        case [str(title), [*sentences]] if title.strip() and all(isinstance(s, str) for s in sentences):
            return Paragraph(title.strip(), "".join(sentences).strip())  # sentences bring their own blanks
    raise BadRow("every entry of 'context' must be [title, [sentence, …]]")


def _gold_titles(row: dict, own: list[Paragraph]) -> list[str]:
    facts = row.get("supporting_facts", [])
    if not isinstance(facts, list) or not all(isinstance(f, list) and f and isinstance(f[0], str) for f in facts):
        raise BadRow("'supporting_facts' must be a list of [title, sentence number]")
    gold = list(dict.fromkeys(fact[0].strip() for fact in facts))
    if absent := set(gold) - {p.title for p in own if p.text}:
        raise BadRow(f"'supporting_facts' names {', '.join(sorted(absent))}, which 'context' does not hold")
    return gold


def _read_questions(path: Path) -> Iterator[object]:
    expected = "expected a JSON list of questions, the format of hotpot_train_v1.1.json"
    with path.open("rb") as file:
        if not file.read(4096).lstrip().startswith(b"["):
            raise DataError(f"{path} does not begin with '['; {expected}")
        file.seek(0)
        try:
            yield from ijson.items(file, "item", use_float=True)
        except ijson.JSONError as error:
            raise DataError(f"{path} is not JSON ({' '.join(str(error).split())}); {expected}") from None


def _read_own_paragraphs(path: Path) -> Iterator[Paragraph]:
    """The paragraphs of all questions. Bad rows are passed over: they are counted when they are read as questions."""
    for row in _read_questions(path):
        try:
            paragraphs = _own_paragraphs(row)
        except BadRow:
            continue
        yield from (p for p in paragraphs if p.text)


def _read_distractors(path: Path) -> Iterator[Paragraph]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = decode_line(line)
                paragraph = Paragraph(text_field(row, "title").strip(), text_field(row, "text").strip())
            except BadRow as error:
                expected = 'expected a line like {"title": "…", "text": "…"}'
                raise DataError(f"{path}:{number}: {error}; {expected}") from None
            yield paragraph
