"""Scorers for tests, most of which go wrong; a problem's task names them where `MODULES` or `ARGUMENTS` allow it."""

import time

NAMES = ("raises", "times_out", "hangs", "returns_nan", "counts_letters", "often_equal", "half_are_right", "overflows")
MODULES = {name: f"{__name__}:{name}" for name in NAMES}  # scorer.modules of a configuration
ARGUMENTS = tuple(f"scorer.modules.{name}={named}" for name, named in MODULES.items())  # the same on a command line


def raises(answer, answers):
    raise ZeroDivisionError("this scorer always raises")


def times_out(answer, answers):
    raise TimeoutError("the judge did not answer")


def hangs(answer, answers):
    time.sleep(3600)


def returns_nan(answer, answers):
    return float("nan")


def counts_letters(answer, answers):
    """A reward that differs between random answers."""
    return (len(answer) % 5) / 4


def often_equal(answer, answers):
    """For the problems of half of the values all answers are right, so that their groups have equal rewards."""
    return 1.0 if sum(map(ord, answers[0])) % 2 else counts_letters(answer, answers)


def half_are_right(answer, answers):
    """Whatever was answered."""
    return float(sum(map(ord, answers[0])) % 2)


def overflows(answer, answers):
    """A number that float32 holds, and whose sum over a group it does not."""
    return 3e38
