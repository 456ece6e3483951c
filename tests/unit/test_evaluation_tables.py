"""The tables, parsed back."""

import csv
import io

from pipeline.evaluation.intervals import stratified_mean, wilson
from pipeline.evaluation.tables import csv_table, markdown_table
from tests.support.result_rows import row, rows_of


def sections(markdown: str) -> dict[str, tuple[list[dict[str, str]], str]]:
    """For each heading the table's lines by column, and all of its text."""
    found = {}
    for part in markdown.split("## ")[1:]:
        heading, _, text = part.partition("\n")
        lines = [
            [cell.strip().replace("\0", "|") for cell in line.strip("|").replace("\\|", "\0").split("|")]
            for line in text.splitlines()
            if line.startswith("|")
        ]
        found[heading] = ([dict(zip(lines[0], line, strict=True)) for line in lines[2:]], text)
    return found


def shown(interval) -> str:
    mean, low, high, _ = interval
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def test_a_set_is_a_table_of_methods_by_lengths():
    rows = (
        rows_of([1, 0, 1, 1], length=131072)
        + rows_of([1, 1, 1, 1], length=8192)
        + rows_of([0, 0, 0, 1], length=8192, method="direct")
    )
    lines, text = sections(markdown_table(rows))["niah"]
    assert lines == [
        {"Method": "memory", "8K": shown(wilson(4, 4)), "128K": shown(wilson(3, 4))},
        {"Method": "direct", "8K": shown(wilson(1, 4)), "128K": "–"},
    ]
    assert list(lines[0]) == ["Method", "8K", "128K"]
    assert "(exact_match)" in text and "n = 4." in text
    assert "No errors. No cut answers." in text


def test_methods_stay_in_order_though_the_first_lacks_the_first_length():
    rows = rows_of([1], length=16384) + rows_of([1], method="direct")
    assert [line["Method"] for line in sections(markdown_table(rows))["niah"][0]] == ["memory", "direct"]


def test_the_interval_looks_as_in_the_papers_table():
    assert "| 78.9 [71.0, 85.1] |" in markdown_table(rows_of([1] * 101 + [0] * 27))


def test_n_stands_in_each_cell_where_it_differs():
    lines, text = sections(markdown_table(rows_of([1] * 3) + rows_of([1] * 2, length=None)))["niah"]
    assert [lines[0]["all"][-7:], lines[0]["8K"][-7:]] == ["(n = 2)", "(n = 3)"]
    assert "n = 3." not in text


def test_errors_and_cut_answers_are_said_where_they_are():
    rows = rows_of([1, 1, 1]) + rows_of([1, 1], length=16384)
    rows += [row(0.0, id="q3", error="late"), row(0.0, id="q2", length=16384, cut=True)]
    rows += [row(0.0, id="q3", length=16384, error="late", cut=True)]
    _, text = sections(markdown_table(rows))["niah"]
    assert "Errors, counted as wrong: memory at 8K 1 of 4; memory at 16K 1 of 4." in text
    assert "Cut at their length limit, counted as wrong: memory at 16K 2 of 4." in text


def test_the_score_of_each_task_is_named():
    rows = rows_of([1], set="a", task="values") + rows_of([1], set="b", task="my.module:score")
    found = sections(markdown_table(rows))
    assert "(recall)" in found["a"][1] and "(my.module:score)" in found["b"][1]


def test_all_metrics_of_every_cell():
    rows = [
        row(1.0, f1=0.5, recall=0.25, sub_em=0.5),
        row(0.0, id="q1", containment=1.0, cut=True),
        row(0.0, id="q1", sample=1),
    ]
    lines, _ = sections(markdown_table(rows))["All metrics"]
    assert lines == [
        {
            "Set": "niah",
            "Length": "8K",
            "Method": "memory",
            "exact_match": "50.0",
            "containment": "75.0",
            "f1": "25.0",
            "recall": "12.5",
            "sub_em": "25.0",
            "n": "2",
            "Answers": "3",
            "Errors": "0",
            "Cut": "1",
        }
    ]


def test_what_the_memory_did_in_each_cell():
    traces = [
        {"written": [1, 1], "kept": [3, 4], "answered": [1, 1], "junk": [6, 24], "tokens": [24, 5]},
        {"written": [0, 1], "kept": [4, 4], "answered": [0, 0], "junk": [6, 6], "tokens": [6, 5]},
    ]
    rows = [row(1.0, id=f"q{i}") | {"memory_trace": trace} for i, trace in enumerate(traces)]
    rows += [row(0.0, id="q2")]  # of an older run: it does not say
    rows += [row(0.0, id="q3") | {"memory_trace": None}, row(1.0, method="direct") | {"memory_trace": None}]
    empty = dict.fromkeys(("written", "kept", "answered", "junk"), [0, 0])
    rows += [row(1.0, method="concat") | {"memory_trace": empty | {"tokens": [50, 4]}}]
    lines, text = sections(markdown_table(rows))["What the memory did"]
    of_cell = {"Set": "niah", "Length": "8K"}
    assert lines == [
        of_cell
        | {"Method": "memory", "Written": "50.0", "Kept": "87.5", "Answered": "100.0"}
        | {"Junk": "40.0", "Memory tokens": "3.0"},
        of_cell
        | {"Method": "concat", "Written": "–", "Kept": "–", "Answered": "–"}
        | {"Junk": "–", "Memory tokens": "12.5"},
    ]
    assert "Kept: " in text
    lines, text = sections(markdown_table(rows[-1:]))["What the memory did"]
    assert lines == [of_cell | {"Method": "concat", "Memory tokens": "12.5"}] and "Kept" not in text


def test_without_traces_nothing_is_said_of_the_memory():
    assert "What the memory did" not in markdown_table(rows_of([1, 0]))


def test_the_average_over_sets_says_over_how_many():
    a, b = [1, 0, 1, 1], [0, 1]
    rows = rows_of(a, set="a") + rows_of(b, set="b") + rows_of(a, set="a", length=None)
    lines, text = sections(markdown_table(rows))["Average over sets"]
    assert lines == [{"Method": "memory", "8K": shown(stratified_mean([a, b]))}]
    assert "n = 6 in 2 sets." in text
    rows += [r for name in "abc" for r in rows_of(b, set=name, length=16384)]
    lines, _ = sections(markdown_table(rows))["Average over sets"]
    assert [lines[0]["8K"].endswith("(n = 6 in 2 sets)"), lines[0]["16K"].endswith("(n = 6 in 3 sets)")] == [True, True]


def test_one_set_has_no_average_over_sets():
    assert "Average" not in markdown_table(rows_of([1, 0]))


def test_names_cannot_break_the_table():
    rows = rows_of([1], set="a|b\nc", method="x|y", length="l|m")
    found = sections(markdown_table(rows))
    assert found["a\\|b c"][0] == [{"Method": "x|y", "l|m": shown(wilson(1, 1))}]
    assert found["All metrics"][0][0]["Set"] == "a|b c"


def test_no_rows_are_no_results():
    assert markdown_table([]) == "No results.\n"
    assert len(csv_table([]).splitlines()) == 1


def test_the_csv_has_a_line_a_cell_and_metric():
    rows = rows_of([1, 0, 1], set='say "a", b') + rows_of([1], length=None, document_tokens=None)
    rows += [row(0.0, set='say "a", b', id="q3", error="late", document_tokens=None)]
    lines = list(csv.DictReader(io.StringIO(csv_table(rows))))
    assert len(lines) == 2 * 6
    assert [line["metric"] for line in lines[:6]] == ["score", "exact_match", "containment", "f1", "recall", "sub_em"]
    assert lines[0]["set"] == "niah" and lines[0]["length"] == lines[0]["document_tokens"] == ""
    last = lines[-1]
    assert (last["set"], last["length"], last["method"]) == ('say "a", b', "8192", "memory")
    assert (float(last["mean"]), float(last["low"]), float(last["high"])) == wilson(2, 4)[:3]
    assert [last[name] for name in ("questions", "errors", "cut", "document_tokens")] == ["4", "1", "0", "8000"]
    assert list(last)[:7] == ["set", "length", "method", "metric", "mean", "low", "high"]
