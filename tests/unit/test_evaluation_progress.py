"""What an evaluation says of how far it is, and how long the rest takes."""

import pytest

from pipeline.evaluation.questions import Question, Trial
from pipeline.evaluation.summary import Progress


def trial(number: int, length: int, method: str) -> Trial:
    return Trial(Question(number, "s", length, f"q{number}", size=100 * length), method, 0)


def row(tokens: int, error: str | None = None) -> dict:
    return {"score": 1.0, "error": error, "prompt_tokens": tokens, "response_tokens": 0}


@pytest.fixture
def asked() -> dict[tuple, Trial]:
    """Two questions of each of two lengths, by two methods."""
    return {(m, n, i): trial(i, n, m) for m in ("memory", "direct") for n in (1, 10) for i in (0, 1)}


def test_the_tokens_that_are_left_are_those_of_like_questions(asked):
    progress = Progress(asked.values())
    assert progress.total == 8 and progress.tokens_left() is None
    progress.add(row(50), asked["memory", 1, 0])
    assert progress.tokens_left() is None  # nothing is known of the other method
    progress.add(row(20), asked["direct", 1, 0])
    # One more of each kind, and two of the long ones, of which only the method is known: about ten times as many.
    assert progress.tokens_left() == pytest.approx(50 + 20 + 2 * 50 * 1001 / 101 + 2 * 20 * 1001 / 101)
    progress.add(row(25), asked["direct", 10, 0])  # its window is full
    assert progress.tokens_left() == pytest.approx(50 + 20 + 2 * 50 * 1001 / 101 + 25)


def test_what_is_under_way_counts(asked):
    progress = Progress(asked.values())
    for (method, length, number), one in asked.items():
        if number == 0:
            progress.add(row(100 * length if method == "memory" else 20), one)
    progress.begins()  # those were there before
    assert progress.tokens_left() == pytest.approx(100 + 1000 + 20 + 20)
    assert progress.line(570, 10.0) == "question 4/8  score 1.000  tokens/s 57  10 s left"
    progress.add(row(100), asked["memory", 1, 1])
    assert progress.line(570, 10.0).endswith("tokens/s 57  10 s left")


def test_nothing_is_told_before_it_means_something(asked):
    progress = Progress(asked.values())
    assert progress.line(0, 6.0) == "question 0/8  tokens/s 0"
    progress.add(row(50), asked["memory", 1, 0])
    assert "left" not in progress.line(500, 60.0)  # of direct nothing is known
    progress.add(row(0, error="no"), asked["direct", 1, 0])
    assert "left" not in progress.line(500, 60.0) and "errors 1" in progress.line(500, 60.0)
    progress.add(row(50), asked["direct", 1, 1])
    assert "left" not in progress.line(500, 2.0) and "left" in progress.line(500, 6.0)


def test_at_the_end_nothing_is_left(asked):
    progress = Progress(asked.values())
    for one in asked.values():
        progress.add(row(10), one)
    assert progress.tokens_left() == 0 and "left" not in progress.line(80, 60.0)
