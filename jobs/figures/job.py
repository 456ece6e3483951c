"""The figures of the embedded model: `python -m jobs.figures [key=value …] [--dry-run]` (`make figures`).

Trains the model in several ways with several seeds, evaluates all models, and draws accuracy against length, the
ablation, the transfer to other tasks, and the comparison of prompt layouts, each as a PNG and a table with intervals.
It takes hours on two cores; after an interruption, the same command resumes. `only=[layout]` makes one of them.
`at_once=4` runs four steps at the same time. `--dry-run` lists the steps.
The configuration is `FiguresConfig` (jobs/figures/recipe.py).
"""

import sys
from pathlib import Path

from jobs.figures.drawing import draw
from jobs.figures.recipe import (
    FiguresConfig,
    all_steps,
    check_figures,
    figures,
    steps_of,
)
from jobs.support.driver import asks_for_help, show_help
from jobs.support.progress import JobProgress
from jobs.support.run_folder import RunFolder
from jobs.support.steps import check_steps, is_done, list_steps, run_steps
from pipeline.config import load_config
from pipeline.errors import ConfigError


def main(arguments: list[str]) -> int:
    """Run the job; return the exit status: 0 completed, 1 a step failed, 2 wrong configuration, 130 interrupted."""
    if asks_for_help(arguments):
        return show_help(__doc__, FiguresConfig)
    dry_run = "--dry-run" in arguments
    try:
        config = load_config([a for a in arguments if a != "--dry-run"], FiguresConfig)
        check_figures(config)
        steps, folder = all_steps(config), Path(config.folder).resolve()
        check_steps(steps, folder)
        return list_steps(steps, folder) if dry_run else make_figures(config)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("· interrupted; the same command resumes", flush=True)
        return 130


def make_figures(config: FiguresConfig) -> int:
    """Run the steps that are not done and draw the figures; return the exit status.

    Raises:
        ConfigError: another process makes them in this folder, or it cannot be written.
    """
    folder = Path(config.folder).resolve()
    with RunFolder(folder):
        if config.at_once > 1:
            print(f"· {config.at_once} steps at once; their output is in {folder}/*.log", flush=True)
        for name, lines in figures(config).items():
            missing = [step for step in steps_of(lines, config) if not is_done(step, folder)]
            with JobProgress() as progress:
                progress.say(f"figure {name}: {len(missing)} steps")
                status = run_steps(missing, folder, config.at_once, progress)
            if status != 0:
                return status
            table, drawn = draw(name, lines, folder)
            print(table)
            for path in drawn:
                print(f"· figure {path}")
            print(f"· table {folder / name}.md", flush=True)
    return 0
