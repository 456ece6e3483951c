"""Scorers that go wrong, for tests; named by the task of a problem as module:function."""

import time


def raises(answer, answers):
    raise ZeroDivisionError("this scorer always raises")


def hangs(answer, answers):
    time.sleep(3600)


def returns_nan(answer, answers):
    return float("nan")


def counts_letters(answer, answers):
    """A reward that differs between random answers."""
    return (len(answer) % 5) / 4
