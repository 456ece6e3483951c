"""The main figure: score against document length, one line per run and method."""

from collections import Counter
from itertools import count
from math import ceil, floor, log2
from pathlib import Path
from statistics import median
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pipeline.evaluation.results import (
    Cell,
    IntervalOf,
    average_cells,
    cells,
    length_label,
    method_order,
    question_interval,
)
from pipeline.evaluation.tables import printable
from pipeline.plot_style import COLOURS, DPI

COLUMNS = 4
PANEL = (3.6, 3.0)  # inches
NARROWEST = 5.0  # inches, so that long names fit
TITLE_CHARACTERS = 10  # in an inch
MOST_TICKS = 6
MOST_PANELS = 64
SPREAD = 0.06  # octaves between the points of a set with one length, which would otherwise overlap
# Eight markers and seven colours: a pair of both repeats only after 56 lines.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLES = ("-", "--", ":", "-.")

Line = tuple[str, str]  # run, method


def accuracy_figure(
    runs: dict[str, list[dict]],
    path: str | Path,
    title: str = "Score by document length, with 95% intervals",
    with_average: bool = True,
    columns: int = COLUMNS,
    interval: IntervalOf = question_interval,
) -> Figure:
    """Draw the score against the median document length, one panel per set, and save the figure as PNG.

    If sets share lengths, a last panel shows their average: over the largest group of sets that some length has in
    full. Lengths and runs that lack one of these sets are left out of it. A cell with neither document tokens nor a
    length is drawn at the median position of its set.

    Args:
        runs: the rows of each run, by run name. With a single run, lines are labelled by method alone.
        path: the PNG to write.
        title: the figure's title; a long one has several lines.
        with_average: whether to draw the panel of averages.
        columns: the largest number of panels in a row.
        interval: computes a point and its interval from a cell's rows; averages have intervals over questions.

    Returns:
        The figure.

    Raises:
        ValueError: there are no rows, or more than `MOST_PANELS` sets.
    """
    of_runs = {name: cells(rows, interval=interval) for name, rows in runs.items()}
    panels: dict[str, dict[Line, list[Cell]]] = {}
    for name in sorted({cell.set for of_run in of_runs.values() for cell in of_run}):
        panels[name] = by_line({run: [c for c in of_run if c.set == name] for run, of_run in of_runs.items()})
    if not panels:
        raise ValueError("there are no results to draw")
    if len(panels) > MOST_PANELS:
        raise ValueError(f"{len(panels)} sets are too many for one figure, which has room for {MOST_PANELS}")
    averages = {run: average_cells(rows) if with_average else [] for run, rows in runs.items()}
    # Means over different sets do not compare: a line must not bend just because one set lacks the longer documents.
    often = Counter(cell.sets for of_run in averages.values() for cell in of_run)
    most = max(often, key=lambda sets: (len(sets), often[sets]), default=())
    comparable = by_line({run: [c for c in of_run if c.sets == most] for run, of_run in averages.items()})
    titles = [*panels, *([f"average of {len(most)} sets"] if comparable else [])]
    of_panels = [*panels.values(), *([comparable] if comparable else [])]

    lines = [(run, method) for run, rows in runs.items() for method in method_order(rows)]
    labels = {line: line[1] if len(runs) == 1 else f"{line[0]} · {line[1]}" for line in lines}
    columns = min(columns, len(titles))
    panel_rows = ceil(len(titles) / columns)
    legend_rows = ceil(len(lines) / columns)
    size = (max(PANEL[0] * columns, NARROWEST), PANEL[1] * panel_rows + 0.5 + 0.25 * legend_rows)
    figure = Figure(figsize=size, layout="constrained")
    handles: dict[Line, ErrorbarContainer] = {}
    for place, heading, of_panel in zip(count(1), titles, of_panels, strict=False):
        axes = figure.add_subplot(panel_rows, columns, place)
        handles |= draw_panel(axes, plain(heading), of_panel, lines)
        if (place - 1) % columns == 0:
            axes.set_ylabel("score")
        if place > len(titles) - columns:
            axes.set_xlabel("document length (tokens)")
    figure.suptitle(fill(title, int(TITLE_CHARACTERS * size[0])))
    figure.legend(  # type: ignore[call-overload]  # which does not know ErrorbarContainer
        [handles[line] for line in lines],
        [plain(labels[line]) for line in lines],
        loc="outside lower center",
        ncols=min(len(lines), columns),
        frameon=False,
    )
    figure.savefig(path, dpi=DPI, format="png")
    return figure


def by_line(of_runs: dict[str, list[Cell]]) -> dict[Line, list[Cell]]:
    """The cells by run and method."""
    lines: dict[Line, list[Cell]] = {}
    for run, of_run in of_runs.items():
        for cell in of_run:
            lines.setdefault((run, cell.method), []).append(cell)
    return lines


def draw_panel(axes: Axes, title: str, of_panel: dict[Line, list[Cell]], lines: list[Line]) -> dict:
    """Draw the lines of one set. A line's index among all `lines` determines its colour and marker.

    Returns:
        The legend handle of each line.
    """
    known = [tokens for of_line in of_panel.values() for cell in of_line if (tokens := place_of(cell)) is not None]
    elsewhere = median(known) if known else 1.0
    single = len({cell.length for of_line in of_panel.values() for cell in of_line}) == 1
    handles: dict[Line, ErrorbarContainer] = {}
    places: list[float] = []
    for number, line in enumerate(line for line in lines if line in of_panel):
        shift = 2 ** (SPREAD * (number - (len(of_panel) - 1) / 2)) if single else 1.0
        points = sorted((shift * (place_of(cell) or elsewhere), cell.interval) for cell in of_panel[line])
        xs, intervals = zip(*points, strict=True)
        style = lines.index(line)
        handles[line] = axes.errorbar(
            xs,
            [i.mean for i in intervals],
            yerr=[[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]],
            color=COLOURS[style % len(COLOURS)],
            marker=MARKERS[style % len(MARKERS)],
            linestyle=STYLES[style // len(COLOURS) % len(STYLES)],
            markersize=5,
            linewidth=1.4,
            elinewidth=0.9,
            capsize=2.5,
            clip_on=False,  # draw markers at 0 and 1 whole
        )
        places += xs
    axes.set_title(title)
    axes.set_ylim(0.0, 1.0)
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    lowest, highest = log2(min(places)), log2(max(places))
    # Points of one length stand between two ticks; several need none beyond their ends.
    first, last = (floor(lowest), ceil(highest)) if single else (round(lowest), round(highest))
    axes.set_xlim(2 ** (min(first, lowest) - 0.4), 2 ** (max(last, highest) + 0.4))
    step = ceil((last - first + 1) / MOST_TICKS)
    axes.xaxis.set_major_locator(FixedLocator([2.0**power for power in range(first, last + 1, step)] if known else []))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: length_label(int(tokens))))
    axes.xaxis.set_minor_locator(NullLocator())
    return handles


def place_of(cell: Cell) -> float | None:
    """The cell's position on the x axis: its median document tokens, else its length; None if it has neither."""
    for tokens in (cell.document_tokens, cell.length):
        if isinstance(tokens, (int, float)) and tokens >= 1:
            return float(tokens)
    return None


def plain(text: str) -> str:
    """The text on one line, with dollar signs escaped: matplotlib would read them as mathematics."""
    return printable(text).replace("$", r"\$")
