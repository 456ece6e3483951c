"""Rewards: one function per task maps the answer's text and the gold answers to a number in [0, 1].

The formulas are MemAgent's (arXiv 2507.02259, section 3): exact match of the last box for questions with one answer,
the share of gold answers found for tasks that ask for several values.
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
LONGEST_RUN = 30  # combining marks in a row
LARGEST = float(np.finfo(np.float32).max)
BOX_WINDOW = 300  # characters at the end of the answer that are searched for the box
BRACE = re.compile("[{}]")
LATEX_SPACING = re.compile(r"\\[,;:! ]|\\quad|\\qquad|~")


def last_box(text: str) -> str | None:
    """The content of the last \\boxed{…} of a text; braces may nest.

    None if there is none or the last is not closed; an earlier box is not the final answer.
    """
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
    """Normalize a text for comparison: NFC (é is one character), lower case, no LaTeX spacing, no whitespace."""
    return "".join(LATEX_SPACING.sub("", unicode_form("NFC", text)).lower().split())


def boxed_match(answer: str, answers: tuple[str, ...]) -> float:
    """1 if the last box equals any gold answer after normalization, else 0. An empty box is never right.

    The box must lie within the answer's last 300 characters, as in MemAgent's reward.
    """
    box = normalized(last_box(answer[-BOX_WINDOW:]) or "")
    return float(box != "" and box in {normalized(gold) for gold in answers})


def values_found(answer: str, answers: tuple[str, ...]) -> float:
    """The share of gold answers that occur in the answer, ignoring case (RULER, arXiv 2404.06654)."""
    text = spaced(answer)
    return sum(spaced(gold) in text for gold in answers) / len(answers)


def spaced(text: str) -> str:
    """Normalize a text for search: NFC, lower case, each run of whitespace one space."""
    return " ".join(unicode_form("NFC", text).lower().split())


def unicode_form(form: Literal["NFC", "NFD", "NFKC", "NFKD"], text: str) -> str:
    """`unicodedata.normalize` in linear time.

    `unicodedata.normalize` sorts each run of combining marks in quadratic time: seconds for 40,000 marks. So a joiner
    (U+034F) is inserted after every 30 marks of a run, as in Unicode's Stream-Safe Text Format (UAX #15, section 13).
    No writing system needs longer runs, so other text is not affected.
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
    """Score an answer with the scorer of a task.

    Args:
        task: the scorer's name, as in `scorer_for`.
        answer: the agent's answer.
        answers: the gold answers.
        modules: scorer.modules of the configuration.

    Raises:
        ConfigError: there is no such scorer.
        BadReward: the scorer returned NaN, infinity, or something other than a number.
        Exception: any error of a user's own scorer.
    """
    return finite(scorer_for(task, modules)(answer, answers), f"the scorer of task {task!r}")


def finite(value: object, who: str) -> float:
    """Return a reward as a float. Raises `BadReward`, naming `who` returned it, if it is not a finite float32."""
    if isinstance(value, (int, float, np.bool_, np.integer, np.floating)):
        with contextlib.suppress(OverflowError):  # of an int
            if abs(number := float(value)) <= LARGEST:  # NaN is not
                return number
    raise BadReward(f"{who} returned {value!r}, not a finite number")


# The built-in scorers. One of whole episodes, or in another module, is named as `module:function`.
SCORERS: dict[str, Scorer | str] = {"qa": boxed_match, "values": values_found}


def scorer_for(task: str, modules: Mapping[str, str] = NO_MODULES) -> Callable:
    """Return the scorer of a task: one of `SCORERS`, or the function that `modules` has under this name.

    It scores answers, or whole episodes (pipeline/rewards/episode_scoring.py). A task's name comes from a row of data,
    so it is only looked up, never imported.

    Raises:
        ConfigError: there is no such scorer, or its entry in `modules` is not a function.
    """
    named = SCORERS.get(task) or modules.get(task)
    if named is None:
        raise ConfigError(f"no scorer for the task {task!r}; there are {', '.join([*SCORERS, *modules])}")
    if not isinstance(named, str):
        return named
    try:
        scorer = load_named(named)
    except ConfigError as error:
        raise ConfigError(f"scorer.modules.{task}: {error}") from None
    if not callable(scorer):
        raise ConfigError(f"scorer.modules.{task}={named} is no function")
    return scorer


def check_scorers(modules: Mapping[str, str]) -> None:
    """Check that every scorer named in the configuration can be loaded.

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
