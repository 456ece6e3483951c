"""Scorers for tests, most of which go wrong; named by the task of a problem as module:function."""

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


def often_equal(answer, answers):
    """For the problems of half of the values all answers are right, so that their groups have equal rewards."""
    return 1.0 if sum(map(ord, answers[0])) % 2 else counts_letters(answer, answers)


def half_are_right(answer, answers):
    """Whatever was answered."""
    return float(sum(map(ord, answers[0])) % 2)
