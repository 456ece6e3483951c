"""The figure of a training run: reward and memory statistics over the steps, or the loss of fine-tuning. And the
reward of several runs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.evaluation.intervals import t_interval
from pipeline.plot_style import COLOURS, DPI
from pipeline.run.history import History
from pipeline.run.validation import score_curves

WINDOW = 10  # steps averaged by a line
PANEL = (7.0, 2.4)  # inches
PANELS = {
    "Reward": ("reward",),
    "What the memory did": ("memory_written", "memory_kept", "memory_answered", "memory_junk"),
    "Tokens of a memory": ("memory_tokens",),
}
FINE_TUNING_PANELS = {"Loss (nats per learned token)": ("loss",)}
COLOUR = {"loss": COLOURS[0]} | dict(zip(sum(PANELS.values(), ()), COLOURS, strict=False))


def training_figure(history: History, path: str | Path, validations: Sequence[dict] = ()) -> Figure:
    """Draw a run's curves and save them as PNG.

    The panels are the reward; the score of the validations, a line for each set and length with its 95% intervals; the
    shares of needed facts written, kept and used, with the share of junk; and the memory's length. For fine-tuning, the
    only panel is the loss. Dots are steps, lines are means over the last `WINDOW` steps. Metrics that no row has are
    left out.

    Args:
        history: the run's history, with the metrics `DRAWN`.
        path: the PNG to write.
        validations: the rows of validation.jsonl.

    Returns:
        The figure.

    Raises:
        ValueError: no step has any of these metrics.
    """
    known = PANELS if history.points("reward")[0] else FINE_TUNING_PANELS
    panels = {title: [name for name in names if history.points(name)[0]] for title, names in known.items()}
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        raise ValueError("there is nothing to draw")
    draws: list[tuple[str, Callable[[Axes], None]]] = [
        (title, partial(draw_panel, history=history, names=names)) for title, names in panels.items()
    ]
    # A resumed run may ask other questions than before: scores that do not compare make no line.
    validations = [row for row in validations if row["questions"] == validations[-1]["questions"]]
    if curves := score_curves(validations):
        draws.insert(1, ("Score on held-out questions", partial(draw_validations, curves=curves, rows=validations)))
    figure = Figure(figsize=(PANEL[0], PANEL[1] * len(draws) + 0.4), layout="constrained")
    all_axes = figure.subplots(len(draws), sharex=True, squeeze=False)[:, 0]
    for axes, (title, draw) in zip(all_axes, draws, strict=True):
        axes.set_title(title, loc="left", fontsize="medium")
        draw(axes)
    all_axes[-1].set_xlim(0, 1.02 * history.last_step)
    all_axes[-1].set_xlabel(f"step (dots); mean of the last {WINDOW} steps (lines)")
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.savefig(path, dpi=DPI, format="png")
    return figure


def reward_figure(of_lines: Mapping[str, Sequence[History]], path: str | Path) -> Figure:
    """Draw the reward of several lines, each the mean over training runs with the band of its t interval.

    A run counts with its running mean over the last `WINDOW` steps. Steps that one run of the line lacks are left out.

    Args:
        of_lines: the histories of at least two runs for each line.
        path: the PNG to write.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(PANEL[0], PANEL[1] + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for colour, (name, runs) in zip(COLOURS, of_lines.items(), strict=False):
        points = [run.points("reward") for run in runs]
        curves = [dict(zip(steps, running_means(rewards), strict=True)) for steps, rewards in points]
        steps = [step for step in curves[0] if all(step in curve for curve in curves)]
        intervals = [t_interval([curve[step] for curve in curves]) for step in steps]
        axes.plot(steps, [i.mean for i in intervals], color=colour, linewidth=1.6, label=name)
        low, high = [i.low for i in intervals], [i.high for i in intervals]
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_title("Reward: mean over runs, with the 95% t interval over runs", loc="left", fontsize="medium")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"step; each run counts with its mean of the last {WINDOW} steps")
    axes.set_ylim(0.0, 1.0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=DPI, format="png")
    return figure


def draw_validations(axes: Axes, curves: Mapping[str, Sequence[tuple[float, dict]]], rows: Sequence[dict]) -> None:
    """Draw the scores of validations: a line for each set and length, at the steps of the versions that answered.

    If there are more lines than colours, only the mean of all sets and lengths is drawn.
    """
    lowest, highest = 0.0, 1.0
    if len(curves) > len(COLOURS):
        axes.plot([row["step"] for row in rows], [row["score"] for row in rows], color=COLOURS[0], marker=".")
        curves = {}
    for colour, (label, points) in zip(COLOURS, curves.items(), strict=False):
        places, scores = [place for place, _ in points], [cell["score"] for _, cell in points]
        lows, highs = [cell["low"] for _, cell in points], [cell["high"] for _, cell in points]
        spread = [
            [max(0.0, score - low) for score, low in zip(scores, lows, strict=True)],
            [max(0.0, high - score) for score, high in zip(scores, highs, strict=True)],
        ]
        axes.errorbar(
            places, scores, spread, color=colour, linewidth=1.6, marker=".", capsize=2, label=label, clip_on=False
        )
        lowest, highest = min(lowest, *lows), max(highest, *highs)
    axes.grid(alpha=0.3)
    axes.set_ylim(lowest, highest)
    if len(curves) > 1:
        columns = min(len(curves), 2)  # names of sets are long
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, frameon=False, borderaxespad=0.0)


def draw_panel(axes: Axes, history: History, names: list[str]) -> None:
    """Draw the metrics of one panel, with a legend if there are several; shares get an axis from 0 to 1."""
    values: list[float] = []
    for name in names:
        xs, ys = history.points(name)
        values += ys
        axes.plot(xs, ys, ".", color=COLOUR[name], alpha=0.5, markersize=5, markeredgewidth=0, clip_on=False)
        label = name.removeprefix("memory_")
        axes.plot(xs, running_means(ys), color=COLOUR[name], linewidth=1.6, label=label, clip_on=False)
    axes.grid(alpha=0.3)
    if min(values) >= 0:
        axes.set_ylim(0.0, 1.0 if max(values) <= 1 else None)
    if len(names) > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(names), frameon=False, borderaxespad=0.0)


def running_means(values: Sequence[float]) -> list[float]:
    """The running mean over at most `WINDOW` values, each value included in its own mean."""
    windows = (values[max(0, end - WINDOW) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]
