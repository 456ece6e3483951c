"""Where an answer comes from, found by text match: the sections in whose reading its words entered the memory.

A word of the answer has a source if the memory holds it. Its source is the section after whose reading the memory held
it and has kept it since, with the sentence of that section that contains it. The words of the memory's sentences that
hold the answer are followed in the same way, so that a fact that leads to the answer has its source, too. Nothing here
is understood: a word that the model wrote from its own knowledge has a source if the text happens to contain it, and a
fact in other words than the document's has none.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.asking.sections import Place, Section
from pipeline.rewards.scoring import unicode_form

LONGEST = 300  # characters of a passage
MOST = 5  # sources of an answer
ALTERNATIVES = 3  # sections that are kept for one word, where sections are read independently of each other
# Scripts without blanks between words, of which two characters make a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{UNSPACED}]+|\d+(?:[.,:/]\d+)+|[^\W{UNSPACED}]+")
IS_UNSPACED = re.compile(f"[{UNSPACED}]")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
# Words without content of their own. Words of other languages count as content.
EMPTY = frozenset(
    """a about after all also am an and any are as at be because been before being between both but by can could did do
    does during each few for from further had has have having he her here hers him his how i if in into is it its just
    me more most my no nor not of off on once only or other our out over own per she should since so some such than that
    the their them then there these they this those through to too under until up us very was we were what when where
    which while who whom whose why will with would yes you your unknown none boxed""".split()
)


@dataclass(frozen=True)
class Source:
    """A section whose reading put words of the answer, or of the facts behind it, into the memory.

    Attributes:
        section: the section's number, from 1.
        place: where the passage is; without one, where the section begins.
        passage: the sentence with the words, at most `LONGEST` characters; None: the section does not contain them.
        words: the words that were followed, those of the answer first.
        is_answer: whether words of the answer itself are among them.
    """

    section: int
    place: Place
    passage: str | None
    words: tuple[str, ...]
    is_answer: bool


@dataclass(frozen=True)
class _Entry:
    """How a word entered the memory."""

    section: int
    place: Place
    passage: str | None


def words_of(text: str) -> list[str]:
    """The content words and numbers of a text in order, in a form that can be compared."""
    found: list[str] = []
    for run in WORD.findall(unicode_form("NFKC", text).casefold()):
        if not IS_UNSPACED.match(run):
            found += [] if run in EMPTY or (len(run) == 1 and run.isalpha()) else [run]
        else:
            found += [run[i : i + 2] for i in range(max(len(run) - 1, 1))]
    return found


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """The sentences of a text with their first characters; long ones in parts of at most `LONGEST` characters."""
    begin = 0
    for end in [*(found.start() for found in SENTENCE_END.finditer(text)), len(text)]:
        while begin < end:
            part = text[begin : min(begin + LONGEST, end)]
            if begin + LONGEST < end and (blank := part.rfind(" ", 1)) > LONGEST // 2:
                part = part[:blank]
            if bare := part.strip():
                yield begin + part.index(bare), bare
            begin += len(part)


class Trail:
    """Follows the words of the memory through a reading. It keeps the words of the present memory only.

    Args:
        question: the question; the memory's words are looked for near its words.
        independent: sections are read independently of each other, and all their memories are kept.
    """

    def __init__(self, question: str, independent: bool = False):
        self._question, self._independent = frozenset(words_of(question)), independent
        self._entries: dict[str, list[_Entry]] = {}
        self._memories: list[str] = []

    def read(self, section: Section, memory: str) -> None:
        """Note the memory that was written after a section was read. Sections come in their order if they depend."""
        present = list(dict.fromkeys(words_of(memory)))
        if self._independent:
            self._memories.append(memory)
            new = [word for word in present if len(self._entries.get(word, ())) < ALTERNATIVES]
        else:
            self._memories = [memory]
            self._entries = {word: self._entries[word] for word in present if word in self._entries}
            new = [word for word in present if word not in self._entries]
        if not new:
            return
        found = _best_passages(section, new, self._question.union(present))
        for word in new:
            entry = found.get(word) or _Entry(section.number, section.place(), None)
            self._entries.setdefault(word, []).append(entry)

    def sources(self, answer: str) -> tuple[Source, ...]:
        """The sources of an answer that was given from the last memory; empty if none was found."""
        wanted = _wanted(answer, self._question)
        held = [word for word in wanted if word in self._entries]
        behind: list[str] = []
        for memory in self._memories:
            for _, fact in sentences(memory):
                words = words_of(fact)
                if not set(held).isdisjoint(words):
                    behind += [word for word in words if word not in self._question and word in self._entries]
        followed = list(dict.fromkeys([*held, *behind]))
        together: defaultdict[_Entry, list[str]] = defaultdict(list)
        for word in followed:
            for entry in self._entries[word]:
                together[entry].append(word)
        return _ranked(together, frozenset(held))


def sources_in_text(sections: Iterable[Section], question: str, answer: str) -> tuple[Source, ...]:
    """The sentences of a document that contain the words of an answer, for an agent without a memory."""
    asked = frozenset(words_of(question))
    wanted = _wanted(answer, asked)
    best: dict[_Entry, list[str]] = {}
    for section in sections:
        for begin, sentence in sentences(section.text):
            words = set(words_of(sentence))
            if held := [word for word in wanted if word in words]:
                best[_Entry(section.number, section.place(begin), sentence)] = held + sorted(words & asked)
        ranked = sorted(best, key=lambda entry: -len(best[entry]))[:MOST]
        best = {entry: best[entry] for entry in ranked}
    return _ranked({entry: [w for w in words if w in wanted] for entry, words in best.items()}, frozenset(wanted))


def _wanted(answer: str, asked: frozenset[str]) -> list[str]:
    """The words of an answer to look for: without those of the question, unless it has no others."""
    words = list(dict.fromkeys(words_of(answer)))
    return [word for word in words if word not in asked] or words


def _best_passages(section: Section, wanted: list[str], near: frozenset[str]) -> dict[str, _Entry]:
    """For each wanted word that the section contains, the sentence with it that has the most words of `near`."""
    best: dict[str, tuple[int, int, str]] = {}
    looked_for = frozenset(wanted)
    for begin, sentence in sentences(section.text):
        words = set(words_of(sentence))
        if hits := words & looked_for:
            score = len(words & near)
            for word in hits:
                if word not in best or score > best[word][0]:
                    best[word] = (score, begin, sentence)
    return {word: _Entry(section.number, section.place(begin), sentence) for word, (_, begin, sentence) in best.items()}


def _ranked(together: dict[_Entry, list[str]], of_answer: frozenset[str]) -> tuple[Source, ...]:
    """The sources with the most words of the answer first, then in document order. A passage beats none."""

    def rank(entry: _Entry) -> tuple:
        of_this = together[entry]
        return (-len(of_answer.intersection(of_this)), entry.passage is None, -len(of_this), entry.section)

    chosen = sorted(together, key=rank)[:MOST]
    return tuple(
        Source(e.section, e.place, e.passage, tuple(together[e]), not of_answer.isdisjoint(together[e])) for e in chosen
    )
