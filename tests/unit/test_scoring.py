"""Rewards: what counts as right."""

import time
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.evaluation.answer_scores import answer_scores
from pipeline.rewards.scoring import (
    BOX_WINDOW,
    LONGEST_RUN,
    boxed_match,
    check_scorers,
    last_box,
    reward,
    scorer_for,
    unicode_form,
    values_found,
)
from tests.support.bad_scorers import counts_letters


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("The answer is \\boxed{Paris}.", "Paris"),
        ("\\boxed{Rome}, no: \\boxed{Paris}", "Paris"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{a {b} c} and } more", "a {b} c"),
        ("\\boxed{\\boxed{Paris}}", "Paris"),  # the last one to begin
        ("\\boxed{Paris} or \\boxed{Rome", None),  # an unclosed last box is no box, and no earlier one is the last
        ("\\boxed{Paris} or \\boxed{Rome {Italy}", None),
        ("\\boxed{Paris} or \\boxed{Rome} {", "Rome"),
        ("\\boxed{Paris}, put into \\boxed.", "Paris"),
        ("\\boxed{Paris}" + "." * 10_000, "Paris"),
        ("\\boxed{}", ""),
        ("\\boxed{Paris", None),
        ("Paris", None),
        ("", None),
        ("boxed{Paris}", None),
    ],
)
def test_the_last_box_is_the_answer(answer, box):
    assert last_box(answer) == box


def test_an_exact_match_stands_in_the_last_300_characters():
    box = "\\boxed{Paris}"
    assert boxed_match(box + "." * (BOX_WINDOW - len(box)), ("Paris",)) == 1.0
    assert boxed_match(box + "." * (BOX_WINDOW - len(box) + 1), ("Paris",)) == 0.0


def test_a_right_box_before_an_unclosed_one_is_not_right():
    assert boxed_match("\\boxed{Paris} or \\boxed{Rome", ("Paris",)) == 0.0
    # Where the tail begins within a box, its braces are no others'.
    assert boxed_match("\\boxed{" + "x" * BOX_WINDOW + "} \\boxed{Paris}", ("Paris",)) == 1.0


def test_a_long_text_of_braces_is_read_in_no_time():
    text = "\\boxed{" * 100_000
    begin = time.perf_counter()
    assert last_box(text) is None and last_box("\\boxed{" + "{}" * 500_000 + "}") == "{}" * 500_000
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(
    ("boxed", "gold"),
    [
        ("PARIS", "Paris"),
        (" New   York\n", "New York"),
        ("New\\ York\\,City\\!", "New York City"),
        ("1\\;000\\:km~x", "1000 km x"),
        ("10\\quad m\\qquad", "10 m"),
        ("Γάμμα", "γάμμα"),
        ("Beyonce\u0301", "Beyoncé"),
    ],
)
def test_case_blanks_and_latex_spacing_do_not_matter(boxed, gold):
    assert boxed_match(f"\\boxed{{{boxed}}}", (gold,)) == 1.0


@pytest.mark.parametrize("answer", ["\\boxed{The}", "\\boxed{the Beatles and others}", "\\boxed{}", "the Beatles", ""])
def test_only_the_whole_answer_in_a_box_is_right(answer):
    assert boxed_match(answer, ("the Beatles",)) == 0.0


def test_I_do_not_know_is_not_no():
    assert boxed_match("\\boxed{I do not know}", ("no",)) == 0.0


def test_any_of_the_gold_answers_will_do():
    assert boxed_match("\\boxed{NYC}", ("New York City", "NYC")) == 1.0


def test_the_share_of_wanted_values_that_are_found():
    assert values_found("I read 12, 7 and Ninety.", ("12", "ninety", "44", "55")) == 0.5
    assert values_found("nothing", ("12",)) == 0.0
    assert values_found("12 7", ("12", "7")) == 1.0


@pytest.mark.parametrize(("answer", "value"), [("the attic", "heat"), ("page 1234 567", "1234567"), ("x y", "xy")])
def test_a_value_does_not_begin_in_one_word_and_end_in_the_next(answer, value):
    assert values_found(answer, (value,)) == 0.0


def test_a_value_of_several_words_is_found_whatever_blanks_are_between_them():
    assert values_found("in New\n  York", ("new york",)) == 1.0


def test_an_empty_box_is_never_right():
    assert boxed_match("\\boxed{}", ("~",)) == boxed_match("\\boxed{ }", ("\\quad",)) == 0.0


MARKS = [
    "\u0301",
    "\u0316",
    "\u0f73",
    "\uff9e",
    "\u3099",
]  # the third is a starter that is made of marks, the fourth too


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(MARKS), max_size=LONGEST_RUN))
@example("a" + "\u0301\u0316" * 15)
@example("a" + "\u0301" * 30 + "b" + "\u0316" * 30 + "\u0e33")
def test_ordinary_text_is_normalised_as_by_unicodedata(text):
    for form in ("NFC", "NFKC"):
        assert unicode_form(form, text) == unicodedata.normalize(form, text)
        assert unicode_form(form, text * 50 + "x") == unicodedata.normalize(form, text * 50 + "x") or has_long_run(text)


def has_long_run(text: str) -> bool:
    """Whether all of it is marks, so that it is a long run when it is repeated; or its ends are."""
    starters = [i for i, c in enumerate(text) if not all(map(unicodedata.combining, unicodedata.normalize("NFKD", c)))]
    return not starters or starters[0] + len(text) - 1 - starters[-1] > LONGEST_RUN


@pytest.mark.parametrize("marks", ["\u0301\u0316", "\u0f73", "\u0315\u0300\u0345"])
def test_thousands_of_combining_marks_are_scored_in_no_time(marks):
    answer = "Paris" + marks * 20_000
    begin = time.perf_counter()
    assert boxed_match(f"\\boxed{{{answer}}}", (answer,)) == 0.0  # no box within 300 characters
    assert values_found(answer, (answer, "Rome")) == 0.5
    assert answer_scores(f"\\boxed{{{answer}}}", (answer,))["f1"] == 1.0
    assert time.perf_counter() - begin < 2


def test_a_task_names_its_scorer():
    assert scorer_for("qa") is boxed_match
    assert scorer_for("values") is values_found


def test_a_scorer_of_ones_own_has_a_name_in_the_configuration():
    modules = {"mine": "tests.support.bad_scorers:counts_letters"}
    check_scorers(modules)
    assert scorer_for("mine", modules) is counts_letters
    assert reward("mine", "four", (), modules) == counts_letters("four", ())


@pytest.mark.parametrize(
    "task", ["quiz", "pipeline.rewards.scoring:values_found", "tests.support.bad_scorers:raises", "os:system", ":x", ""]
)
def test_a_task_is_looked_up_and_never_imported(task):
    with pytest.raises(ConfigError, match="no scorer for the task .* qa, values, mine"):
        scorer_for(task, {"mine": "tests.support.bad_scorers:raises"})


def test_all_scorers_that_cannot_be_used_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        check_scorers({"qa": "a:b", "away": "no_such_module:score", "path": "math:pi", "spelled": "a.b.c"})
    for line in (
        "scorer.modules.qa: the name of a built-in scorer",
        "scorer.modules.away: 'no_such_module:score' cannot be loaded: ModuleNotFoundError",
        "scorer.modules.path=math:pi is no function",
        "scorer.modules.spelled: 'a.b.c' is not spelled module:name",
    ):
        assert line in str(error.value)
