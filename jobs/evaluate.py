"""Answer questions and score the answers: `python -m jobs.evaluate preset=<name> data.path=… key=value … [--dry-run]`.

    python -m jobs.evaluate --compare runs/a runs/b …    # several in one figure, their differences in a table

Runs on the cluster that RAY_ADDRESS names (inside a Ray job: the job's cluster). Without RAY_ADDRESS it joins your
cluster on this machine, or starts Ray.
The same command with the same run.name resumes an interrupted evaluation. docs/evaluation.md says what it leaves.
"""

import sys
from pathlib import Path

from jobs.support.driver import EXIT_STATUS, asks_for_help, show_help, then_stop_ray
from jobs.support.evaluation import check, evaluate
from pipeline.asking.config import unlike_training
from pipeline.config import config_yaml, load_config
from pipeline.errors import ConfigError
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.results import read_results


def main(arguments: list[str]) -> int:
    """Run the job; return the exit status: 0 completed, 1 failed, 2 wrong configuration, 130 interrupted."""
    if asks_for_help(arguments):
        return show_help(__doc__, EvaluationConfig)
    if arguments[:1] == ["--compare"]:
        return compare_runs(arguments[1:])
    dry_run = "--dry-run" in arguments
    try:
        config = load_config([a for a in arguments if a != "--dry-run"], EvaluationConfig)
        if dry_run:
            print(config_yaml(config))
        check(config)
        if others := unlike_training(config.model.path, config.agent):
            print(f"· the model was trained with {' '.join(others)}; this evaluation has other settings")
        if dry_run:
            return 0
        summary, folder = evaluate(config)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("· interrupted before the evaluation began", flush=True)
        return EXIT_STATUS["interrupted"]
    if summary["answers"]:
        if (table := folder / "table.md").exists():  # if it could not be made, the evaluator has said so
            print(table.read_text(encoding="utf-8"))
        print(f"· answers {folder / 'results.jsonl'}")
        for what, name in (("table", "table.md"), ("table", "table.csv"), ("figure", "accuracy.png")):
            if (folder / name).exists():
                print(f"· {what} {folder / name}")
    if summary["status"] == "interrupted":
        print(f"· interrupted; the same command with run.name={config.run.name} resumes it")
    else:
        print(f"· {summary['status']}; summary in {folder / 'summary.json'}")
    return EXIT_STATUS.get(summary["status"], 1)


def compare_runs(folders: list[str]) -> int:
    """Draw the evaluations in `folders` in one figure, and compare each with the first, paired by question.

    Returns:
        The exit status: 0, 1 if the comparison cannot be written, or 2 if the folders cannot be compared.
    """
    if len(folders) < 2:
        print("name at least two run folders of evaluations: --compare runs/a runs/b", file=sys.stderr)
        return 2
    names = [Path(folder).name for folder in folders]
    if len(set(names)) < len(names):
        names = folders
    try:
        runs = {name: read_results(Path(folder) / "results.jsonl") for name, folder in zip(names, folders, strict=True)}
        first, *others = names
        tables = [compare(runs[first], runs[other], first, other) for other in others]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    from pipeline.evaluation.plots import accuracy_figure  # imported late: it imports matplotlib

    output = Path(folders[0]).parent / f"compare-{'-'.join(Path(folder).name for folder in folders)}"
    print("\n\n".join(tables))
    try:
        output.mkdir(exist_ok=True)
        (output / "comparison.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
        print(f"· table {output / 'comparison.md'}")
        accuracy_figure(runs, output / "accuracy.png")
        print(f"· figure {output / 'accuracy.png'}")
    except ValueError as error:  # too many sets
        print(f"· no figure: {error}")
    except OSError as error:
        print(f"the comparison cannot be written: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(then_stop_ray(main, sys.argv[1:]))
