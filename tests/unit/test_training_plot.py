"""The figure of a training run: looked at as an object, and saved."""

import pytest

from pipeline.plot_style import COLOURS
from pipeline.run.history import DRAWN, History
from pipeline.run.training_plot import FINE_TUNING_PANELS, PANELS, WINDOW, reward_figure, training_figure

MEMORY = {"memory_written": 0.8, "memory_kept": 0.9, "memory_answered": None, "memory_junk": 0.1, "memory_tokens": 6.0}


def rows_of(rewards: list[float], **fields) -> list[dict]:
    return [{"step": step, "reward": reward} | fields for step, reward in enumerate(rewards, 1)]


def test_dots_are_steps_and_lines_the_means_of_the_last_steps(tmp_path):
    rewards = [0.0, 1.0] * WINDOW + [1.0]
    figure = training_figure(History(DRAWN, rows_of(rewards)), tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    (axes,) = figure.axes
    dots, line = axes.lines
    assert dots.get_xdata().tolist() == line.get_xdata().tolist() == list(range(1, 2 * WINDOW + 2))
    assert dots.get_ydata().tolist() == rewards
    means = line.get_ydata().tolist()
    assert means[:4] == pytest.approx([0.0, 0.5, 1 / 3, 0.5]) and means[-2:] == pytest.approx([0.5, 0.6])
    assert axes.get_ylim() == (0.0, 1.0)


def test_what_is_known_of_the_memory_is_drawn(tmp_path):
    rows = rows_of([0.5] * 3) + [{"step": 4, "reward": 0.5} | MEMORY, {"step": 5, "reward": 0.5} | MEMORY]
    reward, shares, tokens = training_figure(History(DRAWN, rows), tmp_path / "a.png").axes
    assert len(reward.lines) == 2 and reward.get_legend() is None
    assert [text.get_text() for text in shares.get_legend().get_texts()] == ["written", "kept", "junk"]
    assert [line.get_ydata().tolist() for line in shares.lines[::2]] == [[0.8] * 2, [0.9] * 2, [0.1] * 2]
    assert shares.lines[0].get_xdata().tolist() == [4, 5] and shares.get_ylim() == (0.0, 1.0)
    assert tokens.get_ylim()[0] == 0.0 and tokens.lines[0].get_ydata().tolist() == [6.0, 6.0]
    colours = [line.get_color() for axes in (reward, shares, tokens) for line in axes.lines[::2]]
    assert len(set(colours)) == len(colours) == 5


def validation(step: int, *scores: float, newer: float = 0.0, sets: tuple[str, ...] = ("a", "a")) -> dict:
    """A validation after a roll-back that made versions eight ahead of steps."""
    cells = [
        {"set": name, "length": length, "score": score, "low": score - 0.1, "high": score + 0.2}
        | {"version_mean": step + 8 + newer}
        for name, length, score in zip(sets, (144, 8192), scores, strict=False)
    ]
    about = {"step": step, "version": step + 8, "questions": "digest", "score": sum(scores) / len(scores)}
    return about | {"cells": cells}


def test_validations_are_a_line_for_each_length_over_the_versions_that_answered(tmp_path):
    rows = [validation(0, 0.2, 0.1), validation(4, 0.6, 0.5, newer=1.5)]
    figure = training_figure(History(DRAWN, rows_of([0.5] * 6)), tmp_path / "a.png", rows)
    reward, scores = figure.axes
    assert reward.get_title(loc="left") == "Reward" and scores.get_title(loc="left").startswith("Score")
    assert [text.get_text() for text in scores.get_legend().get_texts()] == ["144", "8K"]
    short, long = scores.containers
    assert short.lines[0].get_xydata().tolist() == [[0, 0.2], [5.5, 0.6]]
    assert long.lines[0].get_ydata().tolist() == [0.1, 0.5]
    (bars,) = short.lines[2]
    assert bars.get_segments()[1][:, 1].tolist() == pytest.approx([0.5, 0.8])


def test_lines_of_several_sets_name_them(tmp_path):
    rows = [validation(0, 0.2, 0.1, sets=("a", "b"))]
    _, scores = training_figure(History(DRAWN, rows_of([0.5])), tmp_path / "a.png", rows).axes
    assert [text.get_text() for text in scores.get_legend().get_texts()] == ["a 144", "b 8K"]


def test_long_names_of_many_lines_leave_room_for_the_scores(tmp_path, recwarn):
    names = ("facts_1_held_out", "facts_2_held_out", "niah_multikey_1", "niah_multiquery")
    row = validation(0, 0.2)
    row["cells"] = [row["cells"][0] | {"set": name} for name in names]
    reward, scores = training_figure(History(DRAWN, rows_of([0.5])), tmp_path / "a.png", [row]).axes
    assert scores.get_position().height > 0.5 * reward.get_position().height
    assert not recwarn.list


def test_scores_of_other_questions_make_no_line(tmp_path):
    rows = [validation(0, 0.9, 0.9) | {"questions": "others"}, validation(4, 0.2, 0.1)]
    _, scores = training_figure(History(DRAWN, rows_of([0.5] * 6)), tmp_path / "a.png", rows).axes
    assert [container.lines[0].get_xdata().tolist() for container in scores.containers] == [[4], [4]]


def test_scores_outside_zero_and_one_have_an_axis_of_their_own(tmp_path):
    _, scores = training_figure(History(DRAWN, rows_of([0.5])), tmp_path / "a.png", [validation(0, -2.0, 3.0)]).axes
    assert scores.get_ylim() == (-2.1, 3.2)


def test_more_lines_than_colours_become_their_mean(tmp_path):
    row = validation(0, *[0.25] * 2)
    row["cells"] = [row["cells"][0] | {"length": length} for length in range(len(COLOURS) + 1)]
    _, scores = training_figure(History(DRAWN, rows_of([0.5])), tmp_path / "a.png", [row, row | {"step": 4}]).axes
    (line,) = scores.lines
    assert line.get_xydata().tolist() == [[0, 0.25], [4, 0.25]] and scores.get_legend() is None


def test_rewards_below_zero_have_an_axis_of_their_own(tmp_path):
    (axes,) = training_figure(History(DRAWN, rows_of([-0.5, 0.5])), tmp_path / "a.png").axes
    assert axes.get_ylim()[0] < -0.5


def test_of_supervised_fine_tuning_the_loss_is_drawn(tmp_path):
    (axes,) = training_figure(
        History(DRAWN, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]), tmp_path / "a.png"
    ).axes
    assert axes.get_title(loc="left").startswith("Loss")
    assert axes.lines[0].get_ydata().tolist() == [2.0, 1.0]


def test_nothing_to_draw_is_an_error(tmp_path):
    for rows in ([], [{"step": 1}]):
        with pytest.raises(ValueError, match="nothing to draw"):
            training_figure(History(DRAWN, rows), tmp_path / "a.png")


def test_what_is_kept_for_the_figure_is_what_it_draws():
    assert sorted(DRAWN) == sorted(sum((*PANELS.values(), *FINE_TUNING_PANELS.values()), ()))


def test_rewards_of_several_runs_are_a_mean_with_a_band(tmp_path):
    def run(*rewards: float) -> History:
        return History(("reward",), rows_of(list(rewards)))

    short = History(("reward",), [{"step": 1, "reward": 0.0}, {"step": 3, "reward": 1.0}])  # step 2 was not written
    figure = reward_figure({"a": [run(0.0, 1.0), run(0.2, 0.2)], "b": [run(0.5, 0.5, 0.5), short]}, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    (axes,) = figure.axes
    first, second = axes.lines
    assert first.get_xydata().tolist() == [[1, pytest.approx(0.1)], [2, pytest.approx((0.5 + 0.2) / 2)]]
    assert second.get_xdata().tolist() == [1, 3]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert max(band) == pytest.approx(0.35 + 12.706 * 0.15, abs=1e-3)  # at step 2: 0.5 and 0.2
