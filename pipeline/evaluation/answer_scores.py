"""How right an answer is, by five metrics with names of their own.

They are kept apart because they answer different questions. Lenient containment that was reported as accuracy, and
that held in both directions, counted "The" as right for "the Beatles" and "I do not know" for "no". It is kept as
`sub_em`, the only metric in MemAgent's published tables.
"""

import re
import string
import unicodedata
from collections import Counter
from dataclasses import dataclass

from pipeline.rewards.scoring import LATEX_SPACING, boxed_match, last_box, unicode_form, values_found

METRICS = ("exact_match", "containment", "f1", "recall", "sub_em")
PRIMARY_METRIC = {"qa": "exact_match", "values": "recall"}  # of a task; any other task has a scorer of its own

ARTICLES = frozenset({"a", "an", "the"})
ARTICLE = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
UNDIVIDED = ("yes", "no", "noanswer")
# What stands between words without a blank: LaTeX commands and braces, tags, the em dash. Deleted like other
# punctuation, they would weld words together: \boxed{Paris} would read "boxedparis".
MARKUP = re.compile(r"\\[A-Za-z]+(?=\s*\{)|[{}—]|</?\w+>")


def answer_scores(answer: str, answers: tuple[str, ...], task: str = "qa") -> dict[str, float]:
    """The metrics of one answer, each in [0, 1].

    - exact_match: 1 if the last box equals a gold answer (`pipeline.rewards.scoring.boxed_match`).
    - containment: 1 if a gold answer occurs in the answer as a run of whole words. The whole text is searched, its
      reasoning too, however long: an answer that names many things contains the right one more easily.
    - f1: of the words of the last box wherever it stands, or of the whole answer if it has no box, against the best
      gold answer (SQuAD, arXiv 1606.05250). Yes, no and noanswer are right or wrong, as in HotpotQA's official script.
    - recall: the share of the wanted values that occur, as substrings in any case (RULER, arXiv 2404.06654).
    - sub_em: the metric of MemAgent's tables (`sub_em`).

    An exact match counts in full for containment and f1, too: it ignores blanks, which divide their words.

    Args:
        answer: the text of the answer; "" if there is none.
        answers: the gold answers; any one of them will do, but recall wants them all.
        task: of the question; `sub_em` wants all answers of the task "values".

    Raises:
        ValueError: there are no gold answers.
    """
    if not answers:
        raise ValueError("an answer cannot be scored without gold answers")
    exact_match = boxed_match(answer, answers)
    box = last_box(answer)
    whole = Readings(answer)
    last = whole if box is None else Readings(box)
    golds = [Gold.of(gold) for gold in answers]
    return {
        "exact_match": exact_match,
        "containment": max(exact_match, *(contained(gold, whole) for gold in golds)),
        "f1": max(exact_match, *(word_f1(last, gold) for gold in golds)),
        "recall": values_found(answer, answers),
        "sub_em": sub_em(box, answers, task),
    }


def sub_em(box: str | None, answers: tuple[str, ...], task: str = "qa") -> float:
    """The metric of MemAgent's tables: 1 if the box contains a gold answer, or is contained in one.

    For the task "values" it is the share of the wanted values that the box holds. Both are what the authors' scripts
    (github.com/BytedTsinghua-SIA/MemAgent, taskutils/memory_eval) call sub_em. Texts are normalised as by SQuAD's
    script and compared as runs of characters. Without a box, or with an empty one, nothing is right; but a box of
    nothing but an article, punctuation or blanks normalises to no text, which every gold answer contains. Their
    script compares with the first gold answer alone, this function with any.
    """
    if not box:
        return 0.0
    if task == "values":
        return values_found(box, answers)
    found, wanted = squad_text(box), [squad_text(gold) for gold in answers]
    return float(any(gold in found or found in gold for gold in wanted))


def squad_text(text: str) -> str:
    """As SQuAD's script normalises: lower case, ASCII punctuation deleted, articles dropped, single blanks."""
    return " ".join(ARTICLE.sub(" ", text.lower().translate(PUNCTUATION)).split())


def contained(gold: "Gold", answer: "Readings") -> float:
    """1 if the gold answer occurs in the answer as a run of whole words, else 0; an empty one never does."""
    return float(bool(gold.words.text) and f" {gold.words.text} " in f" {answer.like(gold).text} ")


def word_f1(prediction: "Readings", gold: "Gold") -> float:
    """Harmonic mean of the precision and the recall of words, counted as often as they occur."""
    wanted, found = gold.words, prediction.like(gold)
    if wanted.text != found.text and (wanted.text in UNDIVIDED or found.text in UNDIVIDED):
        return 0.0
    common = (wanted.counts & found.counts).total()
    return 2 * common / (wanted.number + found.number) if common else 0.0


@dataclass(frozen=True)
class Words:
    """The words of a text by one reading."""

    text: str  # with single blanks between them
    counts: Counter[str]
    number: int

    @classmethod
    def of(cls, text: str, articles: bool, punctuation: bool) -> "Words":
        read = words(text, articles, punctuation)
        return cls(" ".join(read), Counter(read), len(read))


@dataclass(frozen=True)
class Gold:
    """A gold answer as it is read. Articles, then punctuation, are kept if it has nothing else."""

    words: Words
    reading: tuple[bool, bool]  # articles, punctuation: whether they are kept

    @classmethod
    def of(cls, text: str) -> "Gold":
        for reading in ((False, False), (True, False), (True, True)):
            read = Words.of(text, *reading)
            if read.number:
                break
        return cls(read, reading)


class Readings:
    """An answer as it is compared with gold answers: each reading is worked out once, for the text may be long."""

    def __init__(self, text: str):
        self._text = text
        self._words: dict[tuple[bool, bool], Words] = {}

    def like(self, gold: Gold) -> Words:
        """The answer's words, read like those of the gold answer."""
        if gold.reading not in self._words:
            self._words[gold.reading] = Words.of(self._text, *gold.reading)
        return self._words[gold.reading]


def words(text: str, articles: bool = False, punctuation: bool = False) -> list[str]:
    """The words as SQuAD's script normalises them: lower case, punctuation deleted, articles dropped.

    Beyond that script: NFKC (é in one character or two, full-width digits), all of Unicode's punctuation as in MLQA's
    script (arXiv 1910.07475), and LaTeX and tags read as blanks. As there, "Hepatitis A" and "hepatitis" are the same,
    and a word is what blanks divide, so text in Chinese or Japanese has few.

    Args:
        articles: keep the articles.
        punctuation: keep the punctuation.
    """
    text = unicode_form("NFKC", MARKUP.sub(" ", LATEX_SPACING.sub(" ", text))).casefold()
    if not punctuation:
        deleted = {c for c in set(text) if c in string.punctuation or unicodedata.category(c).startswith("P")}
        text = text.translate({ord(c): None for c in deleted})
    return [word for word in text.split() if articles or word not in ARTICLES]
