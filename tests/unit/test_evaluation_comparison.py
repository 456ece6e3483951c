"""Two runs compared on the questions that both answered."""

from pathlib import Path

import pytest

from jobs.evaluate import compare_runs
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.intervals import paired_difference
from pipeline.evaluation.plots import MOST_PANELS
from tests.support.result_rows import row, rows_of
from tests.support.run_folders import write_lines


def lines_of(markdown: str) -> list[list[str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    return lines[2:]


def test_a_line_pairs_the_questions_of_a_cell():
    a, b = [1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0]
    text = compare(rows_of(a), rows_of(b)[::-1], "trained", "base")
    (line,) = lines_of(text)
    mean, low, high, _ = paired_difference(a, b).interval
    assert line[:6] == ["niah", "8K", "memory", "7", "85.7", "0.0"]
    assert line[6] == f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert line[7:] == ["6", "0", f"{2 / 2**6:.2g}"]
    assert "| trained − base | only trained better | only base better | p |" in text


def test_samples_are_averaged_before_questions_are_paired():
    a = [row(score, id=id, sample=s) for id in ("q0", "q1") for s, score in enumerate([1.0, 0.0, 0.0, 1.0])]
    (line,) = lines_of(compare(a, rows_of([1, 0]), "a", "b"))
    assert line[3:6] == ["2", "50.0", "50.0"] and line[7:] == ["1", "1", "1"]


def test_what_one_run_lacks_is_counted_and_said():
    a = rows_of([1, 1, 1]) + rows_of([1, 1], length=16384) + rows_of([1], method="direct")
    b = rows_of([0, 0, 0, 0, 0])[1:] + rows_of([1], set="other")
    text = compare(a, b, "a", "b")
    assert [line[3] for line in lines_of(text)] == ["2"]
    assert "- niah, 8K, memory: questions left out because one run lacks them: 1 only in a, 2 only in b." in text
    assert "- niah, 16K, memory: only in a, 2 questions." in text
    assert "- niah, 8K, direct: only in a, 1 questions." in text
    assert "- other, 8K, memory: only in b, 1 questions." in text


def test_errors_count_as_wrong_and_are_said():
    a = rows_of([1, 1]) + [row(0.0, id="q2", error="late"), row(0.0, id="q9", error="late")]
    text = compare(a, rows_of([1, 1]) + [row(1.0, id="q2", cut=True)], "a", "b")
    assert lines_of(text)[0][4:6] == ["66.7", "100.0"]
    assert "- a: 1 errors and 0 cut (both counted as wrong), of 3 answers." in text
    assert "- b: 0 errors and 1 cut (both counted as wrong), of 3 answers." in text


def test_a_tiny_p_value_is_a_bound():
    assert lines_of(compare(rows_of([1] * 50), rows_of([0] * 50), "a", "b"))[0][-1] == "<0.0001"


def test_runs_without_a_common_question_do_not_compare():
    with pytest.raises(ValueError, match="no question in common: a has niah, 8K, memory; b has niah, 8K, direct"):
        compare(rows_of([1]), rows_of([1], method="direct"), "a", "b")
    with pytest.raises(ValueError, match="no question in common"):
        compare([row(id="q0")], [row(id="q1")], "a", "b")
    with pytest.raises(ValueError, match="b has no rows"):
        compare([row()], [], "a", "b")


@pytest.mark.parametrize("change", [{"question": "Who?"}, {"answers": ["y"]}])
def test_the_same_id_for_different_questions_is_an_error(change):
    with pytest.raises(ValueError, match="niah, 8K, memory: question 'q0' is not the same in both runs"):
        compare([row()], [row() | change], "a", "b")


def test_names_cannot_break_the_table():
    (line,) = lines_of(compare(rows_of([1], set="x|y"), rows_of([1], set="x|y"), "a|1", "b").replace("\\|", "/"))
    assert len(line) == 10 and line[0] == "x/y"


def write_runs(folder: Path, sets: int) -> list[str]:
    """Two evaluations with one question in each of `sets` sets; return their folders."""
    folders = [folder / name for name in ("a", "b")]
    for run in folders:
        write_lines(run / "results.jsonl", [row(set=f"set {number}") for number in range(sets)])
    return list(map(str, folders))


def test_more_sets_than_a_figure_has_room_for_are_compared_in_the_table(tmp_path, capsys):
    assert compare_runs(write_runs(tmp_path, sets=MOST_PANELS + 1)) == 0
    written = {path.name for path in (tmp_path / "compare-a-b").iterdir()}
    printed = capsys.readouterr().out.splitlines()
    assert written == {"comparison.md"} and any(line.startswith("| set 64 |") for line in printed)
    assert "· no figure: 65 sets are too many for one figure, which has room for 64" in printed


def test_a_comparison_that_cannot_be_written_is_printed(tmp_path, capsys):
    folders = write_runs(tmp_path, sets=1)
    (tmp_path / "compare-a-b").touch()
    assert compare_runs(folders) == 1
    out, err = capsys.readouterr()
    assert "| set 0 |" in out and "File exists" in err and len(err.splitlines()) == 1
