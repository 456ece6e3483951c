"""Turns HotpotQA's own JSON (hotpotqa.github.io) into samples over documents of any number of paragraphs.

A question brings its own paragraphs, two of them gold. They are hidden among random others. The others and the order
of all are drawn for each question from (seed, question id): neither depends on the questions around it, and no two
questions share a shuffle.

One pass over the questions writes all paragraphs to a passage file and a small row per question to another file
(`build_passages`). From these two files any worker can make any sample (`HotpotqaRecipe`), by reference: a sample is a
list of row numbers.
"""

import functools
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.data.documents.hotpotqa_json import (
    HotpotqaQuestion,
    Paragraph,
    hotpotqa_question,
    own_paragraphs,
    question_id,
    read_questions,
)
from pipeline.data.documents.passages import (
    PASSAGES,
    SCHEMA,
    PassageFile,
    TableWriter,
    open_passages,
    passage,
    passage_text,
    read_arrow,
    read_passages,
    table_writer,
)
from pipeline.data.filtered_sets import check_all_there
from pipeline.data.quarantine import Quarantine, checked_rows
from pipeline.errors import BadRow, DataError
from pipeline.files import exists, join
from pipeline.problems import Problem
from pipeline.text import encode_text, load_tokenizer

QUESTIONS = "questions.arrow"  # a column of JSON: any row is found at once, and it is not taken for a sample file
QUESTIONS_SCHEMA = pa.schema([("question", pa.large_string())])
# `drawable`: the paragraph may be another question's distractor. Of all paragraphs with the same title, one is.
PASSAGES_SCHEMA = pa.schema([*SCHEMA, ("drawable", pa.bool_())])


def build_passages(
    questions: str, distractors: str, folder: str, quarantine: Quarantine, only: set[str] | None = None
) -> None:
    """Read the questions once, in order, and write `passages.arrow` and `questions.arrow` into `folder`.

    The passages are those of the file `distractors` (pipeline/data/documents/passages.py has its formats), then each
    question's own paragraphs. A document's other paragraphs are drawn from the distractors, or, if that path is empty,
    from all questions' own paragraphs, including those of malformed questions. A malformed question is kept with its
    reason and its row; a malformed distractor goes to `quarantine`.

    `only` holds the ids of the wanted questions. The other questions only lend their paragraphs, so a question has the
    same document with and without `only`. If several wanted questions share an id, the filter judged the first; the
    others are malformed.

    Memory does not grow with the number of questions, but with the number of different titles to draw from: about
    270 bytes per title. Both files are written whole or not at all.

    Raises:
        FileNotFoundError: a file is missing.
        DataError: a file has another format, there are no questions, a question in `only` is missing, or too many
            distractors were bad.
    """
    missing, found = set(only or ()), set()
    drawable: dict[str, int] = {}  # title: row
    with (
        table_writer(join(folder, QUESTIONS), QUESTIONS_SCHEMA) as rows,
        table_writer(join(folder, PASSAGES), PASSAGES_SCHEMA) as passages,
    ):
        for paragraph in _distractors(distractors, quarantine) if distractors else ():
            _add(passages, paragraph, drawable)
        name = questions.rpartition("/")[2]
        for number, row in enumerate(read_questions(questions), 1):
            row_id = f"{name}:{number}"
            this = question_id(row, row_id)
            wanted = only is None or this in only
            missing.discard(this)
            try:
                own = own_paragraphs(row)
                first = passages.rows
                if wanted or not distractors:
                    for paragraph in own:
                        _add(passages, paragraph, None if distractors else drawable)
                entry = _small_row(row, hotpotqa_question(row, row_id, own), first, drawable) if wanted else None
                if only is not None and this in found:
                    raise BadRow(f"the id {this!r} occurs twice")
                if only is not None and wanted:
                    found.add(this)
            except BadRow as error:
                entry = {"id": row_id, "error": str(error), "row": row}
            if wanted:
                rows.add(json.dumps(entry))
        check_all_there(missing, only or set(), questions)
        if not rows.rows:
            raise DataError(f"{questions} holds no questions")
    # Forget the previous files of these names.
    _opened.cache_clear()
    open_passages.cache_clear()


def is_built(folder: str) -> bool:
    return exists(join(folder, QUESTIONS)) and exists(join(folder, PASSAGES))


@dataclass(frozen=True)
class HotpotqaRecipe:
    """The questions of a folder that `build_passages` wrote, as a `SampleSource` (pipeline/data/samples.py).

    A document has `documents` paragraphs, or, if `tokens` is given, as many as fit in that many tokens of the tokenizer
    at the path `tokenizer`: the next paragraph drawn would exceed them. No two paragraphs have the same title, except
    that a question's own may. A shorter document's paragraphs are among those of a longer one; their order is drawn
    separately for each length.

    `metadata` holds `gold_titles`; `gold_documents`, their numbers in the document, from 1, in the same order; `set`;
    `length` (paragraphs or tokens, as asked for); `documents`; the question's `type` and `level`.
    """

    folder: str
    documents: int = 0
    tokens: int = 0
    tokenizer: str = ""
    seed: int = 0
    task: str = "qa"
    set_name: str = "hotpotqa"
    trust_remote_code: bool = False  # of the tokenizer

    def __len__(self) -> int:
        return len(_opened(self.folder).questions)

    def sample(self, index: int) -> Problem:
        """Sample number `index`.

        Raises:
            BadRow: the question is malformed, or its own paragraphs exceed the document's length.
            DataError: there are too few paragraphs to draw from.
        """
        opened = _opened(self.folder)
        question = opened.question(index)
        if "error" in question:
            raise BadRow(question["error"])
        others = opened.draw(f"{self.seed}/{question['id']}", question["excluded"])
        rows = self._within_tokens(opened, question, others) if self.tokens else self._counted(question, others)
        gold = question["gold"]
        metadata = {
            "gold_titles": [opened.passages.title(row) for row in gold],
            "gold_documents": [rows.index(row) + 1 for row in gold],
            "set": self.set_name,
            "length": self.tokens or self.documents,
            "documents": len(rows),
        }
        return Problem(
            id=question["id"],
            question=question["question"],
            answers=(question["answer"],),
            task=self.task,
            metadata=metadata | {name: question[name] for name in ("type", "level") if name in question},
            passages=tuple(rows),
            passage_file=PASSAGES,
        )

    def row(self, index: int) -> tuple[str, object]:
        opened = _opened(self.folder)
        question = opened.question(index)
        if "error" in question:
            return question["id"], question["row"]
        own = [[opened.passages.title(row), [opened.passages.text(row)]] for row in _own_rows(question)]
        return question["id"], {"_id": question["id"], "question": question["question"], "context": own}

    def _counted(self, question: dict, others: Iterator[int]) -> list[int]:
        own = _own_rows(question)
        if len(own) > self.documents:
            raise BadRow(f"the question brings {len(own)} paragraphs, more than documents={self.documents}")
        drawn = list(itertools.islice(others, self.documents - len(own)))
        if len(own) + len(drawn) < self.documents:
            raise self._too_few(f"documents={self.documents}", len(own) + len(drawn))
        return self._placed(question, [*own, *drawn])

    def _within_tokens(self, opened: "_Opened", question: dict, others: Iterator[int]) -> list[int]:
        own, passages = _own_rows(question), opened.passages
        tokenizer = load_tokenizer(self.tokenizer, self.trust_remote_code)
        # Guess from single paragraphs, each with the text that follows it: the tokenizer may join that with the
        # paragraph's end, so the whole text may have a different number of tokens.
        follows = "Document"
        drawn, tokens = [], 0
        for number, row in enumerate(itertools.chain(own, others), 1):
            text = passage_text(number, passages.title(row), passages.text(row))
            tokens += len(encode_text(tokenizer, f"{text}\n\n{follows}")) - len(encode_text(tokenizer, follows))
            if number > len(own):
                drawn.append(row)
                if tokens > self.tokens:
                    break
        guess = max(0, len(drawn) - 1)

        @functools.cache
        def fits(count: int) -> bool:
            drawn.extend(itertools.islice(others, max(0, count - len(drawn))))
            if count > len(drawn):
                return False
            text = passages.document(self._placed(question, [*own, *drawn[:count]]))
            return len(encode_text(tokenizer, text)) <= self.tokens

        count = last_that_fits(fits, guess)
        if count < 0:
            raise BadRow(f"the question's own {len(own)} paragraphs are longer than tokens={self.tokens}")
        if count == len(drawn):
            raise self._too_few(f"tokens={self.tokens}", len(own) + len(drawn))
        return self._placed(question, [*own, *drawn[:count]])

    def _placed(self, question: dict, rows: list[int]) -> list[int]:
        """The rows, shuffled in place in an order of this question and length."""
        length = f"{self.tokens} tokens" if self.tokens else f"{self.documents} documents"
        random.Random(f"{self.seed}/{question['id']}/{length}").shuffle(rows)
        return rows

    def _too_few(self, wanted: str, there: int) -> DataError:
        return DataError(
            f"{join(self.folder, PASSAGES)}: a question has {there} paragraphs with different titles, its own and all "
            f"others, too few for {wanted}; give more paragraphs in distractors or ask for fewer"
        )


def last_that_fits(fits: Callable[[int], bool], guess: int) -> int:
    """A number n ≥ 0 near `guess` with fits(n) and not fits(n + 1); -1 if no number up to there fits.

    The number of tries grows with the logarithm of the guess's error.
    """
    step = 1
    if fits(guess):
        low = guess
        while fits(low + step):
            low, step = low + step, 2 * step
        high = low + step
    else:
        high = guess
        while high >= step and not fits(high - step):
            high, step = high - step, 2 * step
        low = max(high - step, -1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class _Opened:
    """A folder's files, in memory that the node's processes share, and the rows that may be drawn (int32 [N])."""

    questions: pa.ChunkedArray
    passages: PassageFile
    drawable: np.ndarray

    def question(self, index: int) -> dict:
        return json.loads(self.questions[index].as_py())

    def draw(self, seed: str, excluded: Sequence[int]) -> Iterator[int]:
        """Yield all drawable rows except the excluded ones, in random order.

        This is a Fisher-Yates shuffle, done only as far as rows are taken: fewer rows are a prefix of more rows.
        """
        draw, left_out = random.Random(seed), set(excluded)
        moved: dict[int, int] = {}
        total = len(self.drawable)
        for place in range(total):
            other = place + int(draw.random() * (total - place))
            row = int(self.drawable[moved.get(other, other)])
            moved[other] = moved.pop(place, place)
            if row not in left_out:
                yield row


@functools.lru_cache(maxsize=4)
def _opened(folder: str) -> _Opened:
    passages, questions = open_passages(join(folder, PASSAGES)), read_arrow(join(folder, QUESTIONS))
    for name, table, schema in ((PASSAGES, passages.table, PASSAGES_SCHEMA), (QUESTIONS, questions, QUESTIONS_SCHEMA)):
        if not table.schema.equals(schema):
            raise DataError(f"{join(folder, name)} was not written by jobs.prepare; remove {folder}")
    drawable = np.flatnonzero(passages.table.column("drawable").to_numpy()).astype(np.int32)
    return _Opened(questions.column("question"), passages, drawable)


def _own_rows(question: dict) -> list[int]:
    first, count = question["own"]
    return list(range(first, first + count))


def _add(passages: TableWriter, paragraph: Paragraph, drawable: dict[str, int] | None) -> None:
    """Write a passage. If `drawable` is given, the first passage of each title may be drawn."""
    new = drawable is not None and paragraph.title not in drawable
    row = passages.add(paragraph.title, paragraph.text, new)
    if drawable is not None and new:
        drawable[paragraph.title] = row


def _small_row(row: dict, question: HotpotqaQuestion, first: int, drawable: dict[str, int]) -> dict:
    """The row kept for a question whose paragraphs begin at row `first` of the passages."""
    own = question.paragraphs
    return {
        "id": question.id,
        "question": question.question,
        "answer": question.answer,
        **{name: row[name] for name in ("type", "level") if name in row},
        "own": [first, len(own)],
        "gold": [first + number for number in question.gold],
        "excluded": sorted({drawable[p.title] for p in own if p.title in drawable}),
    }


def _distractors(path: str, quarantine: Quarantine) -> Iterator[Paragraph]:
    try:
        yield from checked_rows(read_passages(path), _distractor, quarantine)
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(path) else f"{path}: {error}") from None


def _distractor(place: str, row: object) -> Paragraph:
    title, text = passage(row)
    if not title.strip() or not text.strip():
        raise BadRow("a distractor needs a title and a text")
    return Paragraph(title.strip(), text.strip())
