"""Rewards: one function a task, from the answer's text and the problem's answers to a number in [0, 1].

Formulas of MemAgent (arXiv 2507.02259, section 3): exact match of the last box for questions with one answer,
the share of the wanted values found for tasks that ask for several.
"""

import importlib
import re
import unicodedata
from collections.abc import Callable

import numpy as np

Scorer = Callable[[str, tuple[str, ...]], float]

LONGEST_RUN = 30  # combining marks
BOX_WINDOW = 300  # characters at the end of the answer in which the box is looked for
BRACE = re.compile("[{}]")
LATEX_SPACING = re.compile(r"\\[,;:! ]|\\quad|\\qquad|~")


def last_box(text: str) -> str | None:
    """The content of the last \\boxed{…} of a text; braces may nest. None if there is none, or the last is not closed:
    then an earlier one is not what the answer ends with."""
    start = text.rfind("\\boxed{")
    if start == -1:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for brace in BRACE.finditer(text, begin):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[begin : brace.start()]
    return None


def normalized(text: str) -> str:
    """Lower case, without LaTeX spacing and blanks; an é is the same in one character and in two."""
    return "".join(LATEX_SPACING.sub("", unicode_form("NFC", text)).lower().split())


def boxed_match(answer: str, answers: tuple[str, ...]) -> float:
    """1 if the last box equals any of the answers after normalisation, else 0. An empty box is never right.

    The box has to stand within the answer's last 300 characters, as in MemAgent's reward.
    """
    box = normalized(last_box(answer[-BOX_WINDOW:]) or "")
    return float(box != "" and box in {normalized(gold) for gold in answers})


def values_found(answer: str, answers: tuple[str, ...]) -> float:
    """The share of the wanted values that occur in the answer, in any case (RULER, arXiv 2404.06654)."""
    text = spaced(answer)
    return sum(spaced(gold) in text for gold in answers) / len(answers)


def spaced(text: str) -> str:
    """Lower case, with one blank wherever there are some."""
    return " ".join(unicode_form("NFC", text).lower().split())


def unicode_form(form: str, text: str) -> str:
    """`unicodedata.normalize`, in linear time.

    That function sorts each run of combining marks in the square of its length: seconds for one of 40,000. So a run is
    broken after every 30 marks by a joiner (U+034F), as in Unicode's Stream-Safe Text Format (UAX #15, section 13).
    No writing system needs more, so all other text comes out the same.
    """
    marks = "".join(re.escape(c) for c in set(text) if not c.isascii() and _is_mark(c))
    if marks and len(text) > LONGEST_RUN:
        text = re.sub(f"([{marks}]{{{LONGEST_RUN}}})(?=[{marks}])", "\\1\u034f", text)
    return unicodedata.normalize(form, text)


def _is_mark(character: str) -> bool:
    return all(map(unicodedata.combining, unicodedata.normalize("NFKD", character)))


class BadReward(ValueError):
    """A scorer returned something that is not a finite number."""


def reward(task: str, answer: str, answers: tuple[str, ...]) -> float:
    """What the scorer of a task gives an answer.

    Raises:
        ValueError: no such scorer.
        BadReward: it returned NaN, infinity or no number.
        Exception: whatever a user's own scorer raises.
    """
    value = scorer_for(task)(answer, answers)
    if isinstance(value, (int, float, np.number)) and np.isfinite(value):
        return float(value)
    raise BadReward(f"the scorer of task {task!r} returned {value!r}, not a finite number")


SCORERS: dict[str, Scorer] = {"qa": boxed_match, "values": values_found}


def scorer_for(task: str) -> Scorer:
    """The scorer that a task names: one of `SCORERS`, or "module:function" for a user's own.

    Raises:
        ValueError: no such scorer.
    """
    if task in SCORERS:
        return SCORERS[task]
    module, _, name = task.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        known = ", ".join(sorted(SCORERS))
        raise ValueError(
            f"no scorer for the task {task!r}; known are {known}, or name one as module:function"
        ) from None
