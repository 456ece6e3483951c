"""Rewards: one function a task, from the answer's text and the problem's answers to a number in [0, 1].

Formulas of MemAgent (arXiv 2507.02259, section 3): exact match of the last box for questions with one answer,
the share of the wanted values found for tasks that ask for several.
"""

import contextlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from pipeline.errors import ConfigError
from pipeline.named_code import load_named

Scorer = Callable[[str, tuple[str, ...]], float]

NO_MODULES: Mapping[str, str] = {}
LONGEST_RUN = 30  # combining marks
LARGEST = float(np.finfo(np.float32).max)
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


def unicode_form(form: Literal["NFC", "NFD", "NFKC", "NFKD"], text: str) -> str:
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
    """A scorer returned something other than finite numbers."""


def reward(task: str, answer: str, answers: tuple[str, ...], modules: Mapping[str, str] = NO_MODULES) -> float:
    """What the scorer of a task gives an answer.

    Args:
        task: name of the scorer, as `scorer_for` takes it.
        answer: of the agent.
        answers: of the problem.
        modules: scorer.modules of the configuration.

    Raises:
        ConfigError: no such scorer.
        BadReward: it returned NaN, infinity or no number.
        Exception: whatever a user's own scorer raises.
    """
    return finite(scorer_for(task, modules)(answer, answers), f"the scorer of task {task!r}")


def finite(value: object, who: str) -> float:
    """A reward as a number. Raises `BadReward`, which names `who` returned it, if it is none or not finite in float32,
    in which rewards travel."""
    if isinstance(value, (int, float, np.bool_, np.integer, np.floating)):
        with contextlib.suppress(OverflowError):  # of an int
            if abs(number := float(value)) <= LARGEST:  # NaN is not
                return number
    raise BadReward(f"{who} returned {value!r}, not a finite number")


SCORERS: dict[str, Scorer] = {"qa": boxed_match, "values": values_found}


def scorer_for(task: str, modules: Mapping[str, str] = NO_MODULES) -> Callable:
    """The scorer of a task: one of `SCORERS`, or the function that `modules` has under this name; of answers, or
    of whole episodes (pipeline/rewards/episode_scoring.py).

    A task comes from a row of data, so it is looked up and never imported.

    Raises:
        ConfigError: no such scorer, or `modules` names no function.
    """
    if task in SCORERS:
        return SCORERS[task]
    if task not in modules:
        raise ConfigError(f"no scorer for the task {task!r}; there are {', '.join([*SCORERS, *modules])}")
    try:
        scorer = load_named(modules[task])
    except ConfigError as error:
        raise ConfigError(f"scorer.modules.{task}: {error}") from None
    if not callable(scorer):
        raise ConfigError(f"scorer.modules.{task}={modules[task]} is no function")
    return scorer


def check_scorers(modules: Mapping[str, str]) -> None:
    """Load every scorer that the configuration names.

    Raises:
        ConfigError: one line for each name that cannot be used.
    """
    wrong = []
    for name in modules:
        try:
            if name in SCORERS:
                wrong.append(f"scorer.modules.{name}: the name of a built-in scorer; choose another one")
            scorer_for(name, modules)
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(wrong))
