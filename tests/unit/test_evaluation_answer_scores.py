"""The metrics of an answer: what each counts as right, and what it does not."""

import time
from collections import Counter

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pipeline.evaluation.answer_scores import METRICS, PRIMARY_METRIC, answer_scores, words
from pipeline.rewards.scoring import SCORERS, boxed_match, last_box, normalized

BEATLES = ("the Beatles",)
ALL, NONE = (1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0)


def scores(answer: str, *answers: str) -> tuple[float, ...]:
    """Exact match, containment, F1, recall."""
    return tuple(answer_scores(answer, answers)[metric] for metric in METRICS[:4])


def test_the_scores_have_exactly_the_names_of_the_metrics():
    assert tuple(answer_scores("", ("x",))) == METRICS == ("exact_match", "containment", "f1", "recall", "sub_em")


@pytest.mark.parametrize("answer", ["\\boxed{Paris}", "\\boxed{Rome}, no: \\boxed{ paris }", "**\\boxed{PARIS}**"])
def test_the_gold_answer_in_the_last_box_is_right_by_every_metric(answer):
    assert scores(answer, "Paris") == ALL


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", NONE),
        ("\\boxed{}", NONE),
        ("\\boxed{The}", NONE),
        ("The", NONE),
        ("It was the Beatles.", (0.0, 1.0, 0.5, 1.0)),  # found: it was beatles
        ("\\boxed{Beatles}", (0.0, 1.0, 1.0, 0.0)),  # the article matters to exact match and to RULER's substring
        ("The **Beatles**, I think", (0.0, 1.0, 0.5, 0.0)),
        ("The Beatle", NONE),
        ("beatlesmania", NONE),  # no whole word
        ("Beetles", NONE),
    ],
)
def test_a_part_of_the_gold_answer_is_not_the_gold_answer(answer, expected):
    assert scores(answer, *BEATLES) == pytest.approx(expected)


def test_a_gold_answer_of_nothing_but_an_article_or_punctuation_is_taken_as_it_is():
    assert scores("\\boxed{the Beatles}", "The") == pytest.approx((0.0, 1.0, 2 / 3, 1.0))
    assert scores("\\boxed{Beatles}", "The") == NONE
    assert scores("\\boxed{then}", "The") == (0.0, 0.0, 0.0, 1.0)
    assert scores("\\boxed{The}", "The") == scores("\\boxed{!}", "!") == scores("\\boxed{a}", "A") == ALL
    assert scores("It is: the.", "The")[1] == 1.0
    assert scores("Nothing at all.", "!") == NONE
    assert scores("", "!") == NONE


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("I do not know", "no", (0.0, 0.0, 0.0, 1.0)),  # RULER's recall is of substrings
        ("\\boxed{I do not know}", "no", (0.0, 0.0, 0.0, 1.0)),
        ("I do not know, no", "no", (0.0, 1.0, 0.0, 1.0)),
        ("\\boxed{yes, he did}", "yes", (0.0, 1.0, 0.0, 1.0)),
        ("\\boxed{yes}", "yes, he did", (0.0, 0.0, 0.0, 0.0)),
        ("\\boxed{Yes.}", "yes", (0.0, 1.0, 1.0, 1.0)),
        ("\\boxed{no}", "yes", NONE),
        ("\\boxed{noanswer}", "no", (0.0, 0.0, 0.0, 1.0)),
        ("", "no", NONE),
    ],
)
def test_yes_and_no_are_right_or_wrong(answer, gold, expected):
    assert scores(answer, gold) == expected


def test_f1_of_words_counts_each_as_often_as_it_occurs():
    # 2 words in common; precision 2/3, recall 2/4.
    assert scores("\\boxed{New New York}", "New York City Hall")[2] == pytest.approx(2 * (2 / 3) * (2 / 4) / (7 / 6))
    assert scores("\\boxed{New York}", "Boston", "York")[2] == pytest.approx(2 / 3)  # the best gold answer


def test_f1_is_of_the_box_and_only_without_one_of_the_whole_answer():
    assert scores("Paris, or rather \\boxed{Rome}", "Paris") == (0.0, 1.0, 0.0, 1.0)
    assert scores("Paris, or rather Rome", "Paris")[2] == pytest.approx(2 / 5)
    assert scores("\\boxed{Paris" + " " * 300 + "Rome", "Paris")[2] > 0.0  # not closed: no box
    assert scores("\\boxed{Paris} or \\boxed{Rome", "Paris")[2] == pytest.approx(2 / 4)  # paris or rome


def test_f1_reads_the_last_box_wherever_it_stands_and_exact_match_at_the_end_alone():
    far = "\\boxed{New York} " + "is what I have read. " * 20
    assert scores(far, "New York")[0] == 0.0 and scores(far, "New York")[2] == 1.0
    assert scores(far, "New York City")[2] == pytest.approx(0.8)
    assert scores("\\boxed{Rome} " + "or Paris " * 40, "Paris")[2] == 0.0


@pytest.mark.parametrize(
    ("boxed", "gold"),
    [
        ("Beyonc\u00e9", "Beyonce\u0301"),
        ("Beyonce\u0301", "Beyonc\u00e9"),
        ("１９８４", "1984"),
        ("Ｐａｒｉｓ！", "Paris"),
        ("“Paris”", "Paris"),
        ("ΟΔΟΣ", "οδος"),
        ("\\text{Paris}", "Paris"),
        ("\\textbf{New}\\quad York", "New York"),
        ("<answer>Paris</answer>", "Paris"),
        ("1,000", "1000"),
        ("U.S.A.", "USA"),
        ("1990–1995", "1990-1995"),
    ],
)
def test_containment_and_f1_see_through_unicode_punctuation_and_markup(boxed, gold):
    assert scores(f"So: \\boxed{{{boxed}}}", gold)[1:3] == (1.0, 1.0)
    assert scores(f"So {boxed}—or not", gold)[1] == 1.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("1000", "1"), ("1,000", "1"), ("1.5", "5"), ("twenty-one", "twenty"), ("no-one", "no"), ("York New", "New York")],
)
def test_a_part_of_a_number_or_of_a_compound_is_not_contained(answer, gold):
    assert scores(answer, gold)[1] == 0.0


def test_numbers_match_exactly_only_as_they_are_written():
    assert scores("\\boxed{1,000}", "1,000") == ALL
    assert scores("\\boxed{1\\,000}", "1000")[0] == 1.0  # a LaTeX thin space
    assert scores("\\boxed{1,000}", "1000")[0] == 0.0


def test_an_exact_match_is_full_marks_where_blanks_divide_the_words_otherwise():
    assert scores("\\boxed{NewYork}", "New York") == (1.0, 1.0, 1.0, 0.0)  # recall is RULER's: a substring or not


def test_braces_may_nest():
    assert scores("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}") == ALL
    assert scores("\\boxed{a {b} c} and } more", "a {b} c") == ALL


def test_recall_is_the_share_of_the_wanted_values_found_as_substrings():
    assert scores("12, 7 and NINETY.", "12", "ninety", "44", "55")[3] == 0.5
    assert scores("4455", "44", "55")[3] == 1.0
    assert scores("\\boxed{12}", "12", "7") == (1.0, 1.0, 1.0, 0.5)


def test_containment_searches_the_whole_of_a_long_answer():
    assert scores("Paris. " + "So it goes. " * 10_000, "Paris")[1] == 1.0


# What the authors' own script gives (commit 76b7a65 of their repository: extract_boxed_answer, then
# sub_exact_match_score; 0 where nothing is extracted).
@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("\\boxed{the Beatles}", "the Beatles", 1.0),
        ("\\boxed{the Beatles and others}", "the Beatles", 1.0),
        ("\\boxed{Beatle}", "the Beatles", 1.0),
        ("\\boxed{The}", "the Beatles", 1.0),  # it normalises to nothing, which is in everything
        ("\\boxed{a}", "Rome", 1.0),
        ("\\boxed{!}", "Paris", 1.0),
        ("\\boxed{ }", "Paris", 1.0),
        ("\\boxed{}", "Paris", 0.0),
        ("\\boxed{e}", "the Beatles", 1.0),
        ("\\boxed{I do not know}", "no", 1.0),
        ("\\boxed{anthem}", "them", 1.0),
        ("\\boxed{Rome}", "Paris", 0.0),
        ("Paris", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("\\boxed{Paris", "Paris", 0.0),
        ("\\boxed{Paris} or \\boxed{Rome", "Paris", 0.0),
        ("\\boxed{Paris} was what I \\boxed{Rome}", "Paris", 0.0),
        ("\\boxed{Paris}, as I have read. " + "x" * 400, "Paris", 1.0),  # wherever the box stands
        ("\\boxed{U.S.A.}", "USA", 1.0),
        ("\\boxed{1,000}", "1000", 1.0),
        ("\\boxed{1\\,000}", "1000", 1.0),
        ("\\boxed{\\text{Paris}}", "Paris", 1.0),
        ("\\boxed{\\frac{1}{2}}", "12", 1.0),
        ("\\boxed{“Paris”}", "Paris", 1.0),
        ("\\boxed{an apple a day}", "apple day", 1.0),
        ("\\boxed{Beyonce\u0301}", "Beyonc\u00e9", 0.0),  # no Unicode normalisation
        ("\\boxed{NewYork}", "New York", 0.0),
        ("\\boxed{York New}", "New York", 0.0),
    ],
)
def test_sub_em_is_the_authors_containment_in_either_direction(answer, gold, expected):
    assert answer_scores(answer, (gold,))["sub_em"] == expected


def test_sub_em_of_several_gold_answers_is_of_any_and_of_wanted_values_the_share_in_the_box():
    assert answer_scores("\\boxed{NYC}", ("New York", "NYC"))["sub_em"] == 1.0
    values = ("12", "ninety", "44", "55")
    assert answer_scores("I read 44, \\boxed{12 and Ninety}", values, "values")["sub_em"] == 0.5
    assert answer_scores("12, ninety, 44, 55", values, "values")["sub_em"] == 0.0  # no box


def test_without_gold_answers_there_is_nothing_to_score():
    with pytest.raises(ValueError, match="without gold answers"):
        answer_scores("Paris", ())


def test_the_primary_metric_of_a_task_is_what_its_scorer_measures():
    assert set(PRIMARY_METRIC) == set(SCORERS)
    for answer in ("\\boxed{12}", "12", "7", ""):
        for task, metric in PRIMARY_METRIC.items():
            assert answer_scores(answer, ("12", "7"))[metric] == SCORERS[task](answer, ("12", "7"))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
golds = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}\\"), min_size=1, max_size=60)


@settings(deadline=None)
@given(texts | golds.map(lambda text: f"\\boxed{{{text}}}"), st.lists(texts, min_size=1, max_size=3))
def test_every_score_is_in_0_to_1_and_an_exact_match_is_contained(answer, answers):
    found = answer_scores(answer, tuple(answers))
    assert all(0.0 <= score <= 1.0 for score in found.values())
    assert found["exact_match"] <= min(found["containment"], found["f1"])


def by_the_definition(answer: str, answers: tuple[str, ...]) -> tuple[float, float]:
    """Containment and F1, pair by pair, as they were written before readings were kept."""

    def alike(gold, text):
        for articles, punctuation in ((False, False), (True, False), (True, True)):
            wanted = words(gold, articles, punctuation)
            if wanted:
                break
        return wanted, words(text, articles, punctuation)

    def contained(gold):
        wanted, found = alike(gold, answer)
        return float(bool(wanted) and f" {' '.join(wanted)} " in f" {' '.join(found)} ")

    def word_f1(gold):
        wanted, found = alike(gold, answer if box is None else box)
        undivided = ("yes", "no", "noanswer")
        if wanted != found and (" ".join(wanted) in undivided or " ".join(found) in undivided):
            return 0.0
        common = (Counter(wanted) & Counter(found)).total()
        return 2 * common / (len(wanted) + len(found)) if common else 0.0

    exact_match, box = boxed_match(answer, answers), last_box(answer)
    return max(exact_match, *map(contained, answers)), max(exact_match, *map(word_f1, answers))


pieces = st.lists(
    st.sampled_from(["Paris", "paris", "the", "The", "a", "yes", "no", "!", "-", "é", "e\u0301", " ", "\\boxed{", "}"]),
    max_size=8,
).map("".join)


@settings(deadline=None)
@given(pieces | texts, st.lists(pieces | texts, min_size=1, max_size=4))
def test_containment_and_f1_of_many_gold_answers_are_those_of_each_pair(answer, answers):
    found = answer_scores(answer, tuple(answers))
    assert (found["containment"], found["f1"]) == by_the_definition(answer, tuple(answers))


@pytest.mark.parametrize(("answer", "golds"), [("lorem ipsum " * 400, 10_000), ("x " * 500_000, 200)])
def test_a_long_answer_is_read_once_whatever_the_number_of_gold_answers(answer, golds):
    begin = time.process_time()
    answer_scores(answer, tuple(f"gold answer {i}" for i in range(golds)), "values")
    assert time.process_time() - begin < 3


@settings(deadline=None)
@given(golds)
@example("The")
@example("!")
@example("ΑΣ")
@example("\u0338")
def test_any_gold_answer_in_a_box_is_right_by_every_metric(gold):
    assume(normalized(gold))  # a tilde alone is LaTeX spacing, which leaves nothing to be right
    assert scores(f"I have read it: \\boxed{{{gold}}}.", gold) == ALL


@settings(deadline=None)
@given(st.lists(st.sampled_from(["Paris", "12", "é", "Γάμμα", "don't"]), min_size=1, max_size=4).map(" ".join))
def test_any_words_are_contained_in_prose(gold):
    assert scores(f"I think that it is: {gold.upper()}, but who knows?", gold)[1] == 1.0
