"""The figure: looked at as an object, and saved."""

import numpy as np
import pytest

from pipeline.evaluation.intervals import Interval, wilson
from pipeline.evaluation.plots import accuracy_figure
from tests.support.result_rows import rows_of


def graded(scores: list[float], **fields) -> list[dict]:
    """The same scores at 8K, 64K and 1M tokens."""
    return [r for n in (2**13, 2**16, 2**20) for r in rows_of(scores, length=n, document_tokens=n, **fields)]


def drawn(axes) -> list[np.ndarray]:
    """The points of each line of a panel, as (x, y)."""
    return [container.lines[0].get_xydata() for container in axes.containers]


def labels(figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_one_run_has_a_line_a_method_at_the_median_document_lengths(tmp_path):
    rows = graded([1, 1, 0, 1]) + graded([0, 0, 0, 1], method="direct")
    path = tmp_path / "accuracy.png"
    figure = accuracy_figure({"trained": rows}, path)
    (axes,) = figure.axes
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    memory, direct = drawn(axes)
    assert memory.tolist() == [[2**13, 0.75], [2**16, 0.75], [2**20, 0.75]]
    assert direct[:, 1].tolist() == [0.25] * 3
    assert labels(figure) == ["memory", "direct"]
    assert axes.get_ylim() == (0.0, 1.0) and axes.get_xscale() == "log"
    assert axes.get_title() == "niah" and axes.get_ylabel() and axes.get_xlabel()


def test_error_bars_are_the_intervals(tmp_path):
    (axes,) = accuracy_figure({"run": rows_of([1, 0, 0, 1, 1])}, tmp_path / "a.png").axes
    (bars,) = axes.containers[0].lines[2]
    (segment,) = bars.get_segments()
    assert segment[:, 1] == pytest.approx(wilson(3, 5)[1:3])


def test_the_axis_is_labelled_in_binary_units(tmp_path):
    (axes,) = accuracy_figure({"run": graded([1, 0])}, tmp_path / "a.png").axes
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks[0] == "8K" and 3 <= len(ticks) <= 6 and ticks[-1] in ("512K", "1M")


def test_several_runs_are_told_apart_by_label_colour_and_marker(tmp_path):
    runs = {f"run {i}": graded([1, 0], method="memory") + graded([0, 0], method="direct") for i in range(6)}
    figure = accuracy_figure(runs, tmp_path / "a.png")
    assert labels(figure)[:3] == ["run 0 · memory", "run 0 · direct", "run 1 · memory"]
    lines = [container.lines[0] for container in figure.axes[0].containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(lines) == 12


def test_several_sets_have_a_panel_each_and_one_for_their_average(tmp_path):
    rows = [r for i in range(5) for r in graded([1, 1, i % 2], set=f"set {i}")]
    figure = accuracy_figure({"run": rows}, tmp_path / "a.png")
    assert [axes.get_title() for axes in figure.axes] == [*(f"set {i}" for i in range(5)), "average of 5 sets"]
    assert drawn(figure.axes[-1])[0][:, 1] == pytest.approx([(3 * 2 / 3 + 2 * 1) / 5] * 3)
    assert len({round(axes.get_position().y0, 3) for axes in figure.axes}) == 2  # four in a row


def test_the_average_leaves_out_lengths_that_a_set_lacks(tmp_path):
    rows = graded([1, 0], set="a") + graded([1, 1], set="b") + rows_of([0, 0], set="c", length=2**13)
    shorter = rows_of([1], set="a", length=2**13) + rows_of([1], set="b", length=2**13)
    figure = accuracy_figure({"long": rows, "short": shorter}, tmp_path / "a.png")
    average = figure.axes[-1]
    assert average.get_title() == "average of 3 sets"
    assert [points[:, 1].tolist() for points in drawn(average)] == [[0.5]]
    assert labels(figure) == ["long · memory", "short · memory"]


def test_sets_without_common_lengths_have_no_average(tmp_path):
    rows = rows_of([1], set="a") + rows_of([1], set="b", length=None)
    assert len(accuracy_figure({"run": rows}, tmp_path / "a.png").axes) == 2


def test_a_line_keeps_its_look_in_every_panel(tmp_path):
    rows = graded([1], set="a") + graded([1], set="b", method="direct") + graded([0], set="b")
    first, second, _ = accuracy_figure({"run": rows}, tmp_path / "a.png").axes
    colours = [[container.lines[0].get_color() for container in axes.containers] for axes in (first, second)]
    assert colours[0][0] in colours[1] and len(set(colours[1])) == 2


def test_points_of_a_single_length_stand_side_by_side(tmp_path):
    rows = [r for method in ("a", "b", "c") for r in rows_of([1, 0], method=method, document_tokens=9000)]
    (axes,) = accuracy_figure({"run": rows}, tmp_path / "a.png").axes
    xs = [points[0, 0] for points in drawn(axes)]
    assert xs == sorted(set(xs)) and xs == pytest.approx([9000] * 3, rel=0.1)


def test_unknown_document_lengths_fall_back_on_the_length_and_then_on_the_sets_others(tmp_path):
    rows = graded([1, 0]) + rows_of([1], length=2**18, document_tokens=None)
    rows += rows_of([0], length=None, method="no document", document_tokens=None)
    memory, without = drawn(accuracy_figure({"run": rows}, tmp_path / "a.png").axes[0])
    assert memory[:, 0].tolist() == [2**13, 2**16, 2**18, 2**20]
    assert 2**13 <= without[0, 0] <= 2**20
    (axes,) = accuracy_figure({"run": rows_of([1], length=None, document_tokens=0)}, tmp_path / "b.png").axes
    assert len(drawn(axes)) == 1 and list(axes.get_xticks()) == []


def test_names_with_dollar_signs_are_no_mathematics(tmp_path):
    figure = accuracy_figure({"run": rows_of([1], set="$\\frac$", method="$x_$")}, tmp_path / "a.png")
    assert labels(figure) == [r"\$x_\$"]


@pytest.mark.parametrize("runs", [{}, {"run": []}])
def test_nothing_cannot_be_drawn(runs, tmp_path):
    with pytest.raises(ValueError, match="no results to draw"):
        accuracy_figure(runs, tmp_path / "a.png")


def test_title_and_legend_fit_into_the_narrowest_figure(tmp_path):
    runs = {f"a-rather-long-name-of-a-run-{i}": graded([1, 0]) for i in range(4)}
    figure = accuracy_figure(runs, tmp_path / "a.png")
    figure.draw_without_rendering()
    for part in (figure._suptitle, *figure.legends, *figure.axes):
        box = part.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1 and 0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_a_long_title_is_broken_into_lines(tmp_path):
    figure = accuracy_figure({"run": graded([1, 0])}, tmp_path / "a.png", title="Accuracy by document length " * 6)
    figure.draw_without_rendering()
    box = figure._suptitle.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1 and box.y0 > figure.axes[0].get_window_extent().y1


def test_an_interval_of_ones_own_is_drawn(tmp_path):
    rows = rows_of([1, 0, 0, 1])
    figure = accuracy_figure({"run": rows}, tmp_path / "a.png", interval=lambda *_: Interval(0.4, 0.3, 0.8, 2))
    assert drawn(figure.axes[0])[0][0, 1] == 0.4
    (bars,) = figure.axes[0].containers[0].lines[2]
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([0.3, 0.8])
