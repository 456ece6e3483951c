"""The figures and tables of `make figures`, from the results of its steps."""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import stdev

from jobs.figures.recipe import SAMPLING_NAMES, SAMPLINGS, Line
from pipeline.evaluation.intervals import Interval, t_interval
from pipeline.evaluation.results import by_cell, length_label, question_interval, question_scores, read_results
from pipeline.evaluation.tables import escaped, markdown_lines, markdown_table, percent
from pipeline.run.history import History

TITLES = {
    "length": "Accuracy by document length: memory agent before and after RL, and a direct reader",
    "ablation": "Accuracy by document length after training on equally many tokens from the same model",
    "transfer": "Accuracy on untrained tasks, before and after RL",
    "layout": "Accuracy by document length after RL, with the paper's order of the prompt and with the section first",
}
POOLED = (
    "Intervals are over questions. A line over several training runs pools the questions of all runs; its intervals "
    "do not include the spread between training seeds, which has its own table in the file."
)
OVER_SEEDS = (
    "Intervals are Student's t over the training runs, each with questions of its own. Runs of equal means give an "
    "interval of zero width."
)
SPREAD = ("Runs", "Mean of the runs", "Standard deviation")  # columns
LAST = 10  # steps of training whose mean reward is the last one


def draw(name: str, lines: list[Line], folder: Path) -> tuple[str, list[Path]]:
    """Draw a figure from the results of its evaluations, and write its tables.

    In the first table, intervals are over questions. For a line over several training runs they pool the questions of
    all runs and do not include the spread between seeds. The second table has that spread, with intervals over the
    runs; the last has each run separately. The figure has intervals over questions, except `layout`: over the runs.

    Args:
        name: the figure's name.
        lines: the figure's lines.
        folder: the folder with the steps' run folders; receives the figure and the tables.

    Returns:
        The first table, and the figures' files.
    """
    rows = []
    for line in lines:
        for step in line.evaluations:
            for row in read_results(folder / step.name / "results.jsonl"):
                task = f"{row['set']}, " if name == "transfer" else ""
                row["set"] = f"{task}{SAMPLING_NAMES[line.sampling]}"
                rows.append(row | {"method": line.name, "run": step.model})
    runs = {line.name: [step.model for step in line.evaluations] for line in lines if len(line.evaluations) > 1}
    of_runs = [row for row in rows if row["method"] in runs]
    from pipeline.evaluation.plots import accuracy_figure  # imported late: it imports matplotlib

    counts_seeds = name == "layout"
    over = "training seeds" if counts_seeds else "questions, not over training seeds" if runs else "questions"
    accuracy_figure(
        {name: rows},
        folder / f"{name}.png",
        title=f"{TITLES[name]}, with 95% intervals over {over}",
        with_average=False,
        columns=len(SAMPLINGS),  # one row of panels per task
        interval=run_interval if counts_seeds else question_interval,
    )
    drawn = [folder / f"{name}.png"]
    table = f"# {TITLES[name]}\n\n{markdown_table(rows)}"
    parts = []
    if runs:
        table = table.replace("\n\n", f"\n\n{POOLED}\n\n", 1)
        parts += ["# Spread between training seeds", seed_spread(of_runs)]
    if name == "layout":
        parts += ["# Difference between the layouts", seed_differences(of_runs, *runs)]
        parts += ["# Reward in training", reward_table(runs, folder)]
        drawn.append(folder / f"{name}-reward.png")
        draw_rewards(runs, folder, drawn[-1])
    if runs:
        parts += ["# Each training seed", markdown_table([row | {"method": row["run"]} for row in of_runs]).rstrip()]
    text = "\n\n".join([table.rstrip(), *parts])
    (folder / f"{name}.md").write_text(f"{text}\n", encoding="utf-8")
    return table, drawn


def run_means(rows: list[dict], metric: str = "score") -> list[float]:
    """The mean over questions of each training run, in order of appearance. The rows must belong to one cell."""
    scores = [
        question_scores([row for row in rows if row["run"] == run], metric).values()
        for run in dict.fromkeys(row["run"] for row in rows)
    ]
    return [sum(of_run) / len(of_run) for of_run in scores]


def run_interval(rows: list[dict], metric: str) -> Interval:
    """The mean over training runs with its t interval, cut to the range of scores. The rows must belong to one cell."""
    interval = t_interval(run_means(rows, metric))
    return interval._replace(low=max(0.0, interval.low), high=min(1.0, interval.high))


def seed_spread(rows: list[dict]) -> str:
    """A Markdown table of the spread between the training runs of each line, in percent.

    Args:
        rows: rows of results.jsonl, with the line's name as method, and the run.

    Returns:
        One table row per set, length and line: the mean of each run, the mean of these means with its t interval, and
        their sample standard deviation (n - 1).
    """
    lines = [
        [escaped(name), length_label(length), escaped(line), *spread(run_means(group))]
        for (name, length, line), group in by_cell(rows).items()
    ]
    return f"{OVER_SEEDS}\n\n{markdown_lines(['Set', 'Length', 'Line', *SPREAD], lines)}"


def spread(means: list[float]) -> list[str]:
    """The table cells of some runs' means, in percent."""
    each = ", ".join(f"{100 * mean:.1f}" for mean in means)
    return [each, percent(t_interval(means)), f"{100 * stdev(means):.1f}"]


def seed_differences(rows: list[dict], first: str, second: str) -> str:
    """A Markdown table of what the second line has more than the first, paired by training seed, in percent.

    Args:
        rows: rows of results.jsonl, with the line's name as method, and the run. The runs of both lines are in the same
            order of seeds, and runs of one seed have the same questions.
        first: the line that is subtracted.
        second: the other line.
    """
    of_cells = by_cell(rows)
    lines = []
    for (name, length, line), group in of_cells.items():
        if line == second:
            differences = paired(run_means(of_cells[name, length, first]), run_means(group))
            lines.append([escaped(name), length_label(length), *spread(differences)])
    caption = f"{second} − {first}: each difference is between two runs of one training seed, on the same questions. "
    caption += "Intervals are Student's t over the seeds; equal differences give an interval of zero width."
    header = ["Set", "Length", "Differences", "Mean of the differences", SPREAD[-1]]
    return f"{caption}\n\n{markdown_lines(header, lines)}"


def paired(first: Iterable[float], second: Iterable[float]) -> list[float]:
    """The second values less the first."""
    return [b - a for a, b in zip(first, second, strict=True)]


def histories(runs: dict[str, list[str]], folder: Path) -> dict[str, list[History]]:
    """The history of rewards and trained tokens of each line's runs."""

    def history(run: str) -> History:
        with (folder / run / "metrics.jsonl").open(encoding="utf-8") as rows:
            return History(("reward", "tokens_trained"), map(json.loads, rows))

    return {name: [history(run) for run in of_line] for name, of_line in runs.items()}


def reward_table(runs: dict[str, list[str]], folder: Path) -> str:
    """A Markdown table of the runs' mean reward in training, in percent, with the tokens that they trained.

    Args:
        runs: the training runs of two lines, in the same order of seeds.
        folder: the folder with the run folders.
    """
    of_lines = histories(runs, folder)
    lines = []
    for what, steps in (("all steps", slice(None)), (f"last {LAST} steps", slice(-LAST, None))):
        means = {
            name: [sum(rewards) / len(rewards) for run in of_line if (rewards := run.values("reward")[steps])]
            for name, of_line in of_lines.items()
        }
        lines += [[what, escaped(name), *spread(of_line)] for name, of_line in means.items()]
        first, second = means
        lines.append([what, escaped(f"{second} − {first}"), *spread(paired(means[first], means[second]))])
    trained = {name: [sum(run.values("tokens_trained")) for run in of_line] for name, of_line in of_lines.items()}
    tokens = [f"{name} {', '.join(f'{of_run:,.0f}' for of_run in of_line)}" for name, of_line in trained.items()]
    table = markdown_lines(["Mean reward over", "Line", *SPREAD], lines)
    return f"{OVER_SEEDS}\n\n{table}\n\nResponse tokens trained by each run: {'; '.join(tokens)}."


def draw_rewards(runs: dict[str, list[str]], folder: Path, path: Path) -> None:
    """Draw the rewards of the lines' training runs over the steps."""
    from pipeline.run.training_plot import reward_figure  # imported late: it imports matplotlib

    reward_figure(histories(runs, folder), path)
