"""Five metrics of an answer's correctness.

Each has its own name because they measure different things. Lenient containment, tested in both directions and
reported as accuracy, counted "The" as right for "the Beatles" and "I do not know" for "no". It is kept as `sub_em`,
the only metric in MemAgent's published tables.
"""

import re
import string
import unicodedata
from collections import Counter
from dataclasses import dataclass

from pipeline.rewards.scoring import LATEX_SPACING, boxed_match, last_box, unicode_form, values_found

METRICS = ("exact_match", "containment", "f1", "recall", "sub_em")
PRIMARY_METRIC = {"qa": "exact_match", "values": "recall"}  # by task; any other task is a user's scorer

ARTICLES = frozenset({"a", "an", "the"})
ARTICLE = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
UNDIVIDED = ("yes", "no", "noanswer")
# Markup that separates words without a blank: LaTeX commands and braces, tags, the em dash. Deleting it like other
# punctuation would join words: \boxed{Paris} would read "boxedparis".
MARKUP = re.compile(r"\\[A-Za-z]+(?=\s*\{)|[{}—]|</?\w+>")


def answer_scores(answer: str, answers: tuple[str, ...], task: str = "qa") -> dict[str, float]:
    """All metrics of one answer, each in [0, 1].

    - exact_match: 1 if the last box equals a gold answer (`pipeline.rewards.scoring.boxed_match`).
    - containment: 1 if a gold answer occurs in the answer as a run of whole words. The whole text is searched,
      reasoning included, so an answer that names many things is more likely to contain the right one.
    - f1: word F1 of the last box, or of the whole answer if it has no box, against the best gold answer (SQuAD, arXiv
      1606.05250). "yes", "no" and "noanswer" are all or nothing, as in HotpotQA's official script.
    - recall: the share of the gold answers that occur as substrings, ignoring case (RULER, arXiv 2404.06654).
    - sub_em: the metric of MemAgent's tables (`sub_em`).

    An exact match also gives containment and f1 of 1: exact_match ignores blanks, which separate words for the others.

    Args:
        answer: the answer's text; "" if there is none.
        answers: the gold answers; any one of them suffices, but recall requires all.
        task: the scorer's name; for "values", `sub_em` requires all gold answers.

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

    For the task "values" it is the share of the gold answers that the box contains. The authors' scripts
    (github.com/BytedTsinghua-SIA/MemAgent, taskutils/memory_eval) call both sub_em. Texts are normalised as in SQuAD's
    script and compared as substrings. A missing or empty box scores 0. A box that holds only articles, punctuation or
    blanks normalises to the empty text, which every gold answer contains. The authors' script compares with the first
    gold answer only; this function compares with all.
    """
    if not box:
        return 0.0
    if task == "values":
        return values_found(box, answers)
    found, wanted = squad_text(box), [squad_text(gold) for gold in answers]
    return float(any(gold in found or found in gold for gold in wanted))


def squad_text(text: str) -> str:
    """Normalise as SQuAD's script: lower case, ASCII punctuation deleted, articles dropped, single blanks."""
    return " ".join(ARTICLE.sub(" ", text.lower().translate(PUNCTUATION)).split())


def contained(gold: "Gold", answer: "Readings") -> float:
    """1 if the gold answer occurs in the answer as a run of whole words, else 0; an empty one never does."""
    return float(bool(gold.words.text) and f" {gold.words.text} " in f" {answer.like(gold).text} ")


def word_f1(prediction: "Readings", gold: "Gold") -> float:
    """F1, the harmonic mean of precision and recall, over words counted with repetitions."""
    wanted, found = gold.words, prediction.like(gold)
    if wanted.text != found.text and (wanted.text in UNDIVIDED or found.text in UNDIVIDED):
        return 0.0
    common = (wanted.counts & found.counts).total()
    return 2 * common / (wanted.number + found.number) if common else 0.0


@dataclass(frozen=True)
class Words:
    """The words of a text under one reading: whether articles and punctuation are kept."""

    text: str  # the words, separated by single blanks
    counts: Counter[str]
    number: int

    @classmethod
    def of(cls, text: str, articles: bool, punctuation: bool) -> "Words":
        read = words(text, articles, punctuation)
        return cls(" ".join(read), Counter(read), len(read))


@dataclass(frozen=True)
class Gold:
    """A gold answer's words. Articles, then punctuation, are kept only if nothing else is left."""

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
    """An answer's words under each reading, each computed once since the text may be long."""

    def __init__(self, text: str):
        self._text = text
        self._words: dict[tuple[bool, bool], Words] = {}

    def like(self, gold: Gold) -> Words:
        """The answer's words under the gold answer's reading."""
        if gold.reading not in self._words:
            self._words[gold.reading] = Words.of(self._text, *gold.reading)
        return self._words[gold.reading]


def words(text: str, articles: bool = False, punctuation: bool = False) -> list[str]:
    """The text's words, normalised as in SQuAD's script: lower case, punctuation deleted, articles dropped.

    Additions to that script: NFKC (é as one character or two, full-width digits), all Unicode punctuation as in MLQA's
    script (arXiv 1910.07475), and LaTeX and tags as blanks. As in that script, "Hepatitis A" equals "hepatitis", and
    words are separated by blanks, so Chinese or Japanese text has few words.

    Args:
        text: the text.
        articles: whether to keep articles.
        punctuation: whether to keep punctuation.
    """
    text = unicode_form("NFKC", MARKUP.sub(" ", LATEX_SPACING.sub(" ", text))).casefold()
    if not punctuation:
        deleted = {c for c in set(text) if c in string.punctuation or unicodedata.category(c).startswith("P")}
        text = text.translate({ord(c): None for c in deleted})
    return [word for word in text.split() if articles or word not in ARTICLES]
