"""Compare two runs on the questions that both answered."""

from pipeline.evaluation.intervals import paired_difference
from pipeline.evaluation.results import Length, by_cell, counts, length_label, question_scores
from pipeline.evaluation.tables import escaped, markdown_lines, percent

SMALLEST_P = 1e-4


def compare(rows_a: list[dict], rows_b: list[dict], name_a: str, name_b: str) -> str:
    """A Markdown table that compares each set, length and method of both runs, paired by question.

    The samples of a question are averaged first. Questions and cells that only one run has are counted below the table.

    Args:
        rows_a: the first run's rows, as `read_results` returns them.
        rows_b: the second run's rows.
        name_a: the first run's name in the table.
        name_b: the second run's name in the table.

    Raises:
        ValueError: the runs share no question, or asked different questions under one id.
    """
    cells_a, cells_b = by_cell(rows_a), by_cell(rows_b)
    a, b = escaped(name_a), escaped(name_b)
    lines, notes = [], []
    paired_a, paired_b = [], []
    for key in cells_a:
        if key not in cells_b:
            continue
        check_same_questions(key, cells_a[key], cells_b[key])
        scores_a, scores_b = question_scores(cells_a[key]), question_scores(cells_b[key])
        both = [question for question in scores_a if question in scores_b]
        if len(both) < len(scores_a) or len(both) < len(scores_b):
            alone = f"{len(scores_a) - len(both)} only in {a}, {len(scores_b) - len(both)} only in {b}"
            notes.append(f"{place(key)}: questions left out because one run lacks them: {alone}")
        if not both:
            continue
        paired_a += [row for row in cells_a[key] if row["id"] in scores_b]
        paired_b += [row for row in cells_b[key] if row["id"] in scores_a]
        lines.append(line(key, [scores_a[question] for question in both], [scores_b[question] for question in both]))
    for name, own, other in ((a, cells_a, cells_b), (b, cells_b, cells_a)):
        notes += [
            f"{place(key)}: only in {name}, {len(question_scores(own[key]))} questions"
            for key in own
            if key not in other
        ]
    if not lines:
        raise ValueError(
            f"{name_a} and {name_b} have no question in common: {name_a} has {described(cells_a)}; "
            f"{name_b} has {described(cells_b)}"
        )
    notes += [faults(a, paired_a), faults(b, paired_b)]
    header = ["Set", "Length", "Method", "n", a, b, f"{a} − {b}", f"only {a} better", f"only {b} better", "p"]
    caption = (
        "Score in percent over the n questions of both runs; the difference with its 95% interval over questions; "
        "p of the exact two-sided sign test (McNemar's), not corrected for the number of lines."
    )
    return "\n\n".join([caption, markdown_lines(header, lines), "\n".join(f"- {note}." for note in notes)]) + "\n"


def line(key: tuple[str, Length, str], a: list[float], b: list[float]) -> list[str]:
    """The table line of one cell, from both runs' scores on the same questions."""
    difference = paired_difference(a, b)
    name, length, method = key
    return [
        escaped(name),
        escaped(length_label(length)),
        escaped(method),
        str(len(a)),
        f"{100 * sum(a) / len(a):.1f}",
        f"{100 * sum(b) / len(b):.1f}",
        percent(difference.interval),
        str(difference.only_a),
        str(difference.only_b),
        f"{difference.p_value:.2g}" if difference.p_value >= SMALLEST_P else f"<{SMALLEST_P}",
    ]


def check_same_questions(key: tuple[str, Length, str], rows_a: list[dict], rows_b: list[dict]) -> None:
    """Raise a ValueError if one id stands for different questions, which must not be paired."""
    asked = {row["id"]: (row["question"], list(row["answers"])) for row in rows_a}
    for row in rows_b:
        if row["id"] in asked and asked[row["id"]] != (row["question"], list(row["answers"])):
            raise ValueError(
                f"{place(key)}: question {row['id']!r} is not the same in both runs, or has other answers; "
                "runs compare only on the same data"
            )


def place(key: tuple[str, Length, str]) -> str:
    name, length, method = key
    return f"{escaped(name)}, {escaped(length_label(length))}, {escaped(method)}"


def faults(name: str, rows: list[dict]) -> str:
    """The run's numbers of errors and cut answers on the paired questions."""
    errors, cut = counts(rows)
    return f"{name}: {errors} errors and {cut} cut (both counted as wrong), of {len(rows)} answers"


def described(cells: dict[tuple[str, Length, str], list[dict]]) -> str:
    return " | ".join(place(key) for key in cells) or "no rows"
