"""Answer questions and score the answers: `python -m jobs.evaluate preset=<name> data.path=… key=value …`.

    python -m jobs.evaluate --compare runs/a runs/b …    # several in one figure, their differences in a table

Runs on the cluster that RAY_ADDRESS names (inside a Ray job: the job's cluster), else on a Ray of its own. The same
command with the same run.name takes an interrupted evaluation up. README.md, "Evaluate", tells what it leaves.
"""

import functools
import sys
from collections import Counter
from pathlib import Path

from omegaconf import OmegaConf

from jobs.support.driver import (
    EXIT_STATUS,
    RunFolder,
    StopSignals,
    check_model,
    check_samples,
    configuration_of,
    follow,
    leave_interrupted,
    leave_summary,
    run_folder,
    show_help,
    start_ray,
    whole_data_paths,
    whole_path,
    whole_template,
)
from jobs.support.progress import JobProgress
from pipeline.config import ConfigError, config_yaml, load_config
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.config import EvaluationConfig, check_evaluation, check_same
from pipeline.evaluation.results import read_results
from pipeline.evaluation.summary import evaluation_summary
from pipeline.lease import is_unused
from pipeline.rewards.scoring import check_scorers
from pipeline.rules import check_data_given


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 completed, 1 failed, 2 wrong configuration, 130 interrupted."""
    if "--help" in arguments:
        return show_help(__doc__, EvaluationConfig)
    if arguments[:1] == ["--compare"]:
        return compare_runs(arguments[1:])
    dry_run = "--dry-run" in arguments
    try:
        config = load_config([a for a in arguments if a != "--dry-run"], EvaluationConfig)
        if dry_run:
            print(config_yaml(config))
        check(config)
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
        if (table := folder / "table.md").exists():  # what could not be made, the evaluator has said
            print(table.read_text(encoding="utf-8"))
        print(f"· answers {folder / 'results.jsonl'}")
        for what, name in (("table", "table.md"), ("table", "table.csv"), ("figure", "accuracy.png")):
            if (folder / name).exists():
                print(f"· {what} {folder / name}")
    if summary["status"] == "interrupted":
        print(f"· interrupted; the same command with run.name={config.run.name} goes on")
    else:
        print(f"· {summary['status']}; summary in {folder / 'summary.json'}")
    return EXIT_STATUS.get(summary["status"], 1)


def check(config: EvaluationConfig) -> None:
    """Raises `ConfigError` if the evaluation cannot work."""
    check_evaluation(config)
    check_data_given(config)
    if config.data.source == "file":
        check_samples(config.data.path)
    check_scorers(config.scorer.modules)
    check_model(config, config.evaluate.methods)


def evaluate(config: EvaluationConfig) -> tuple[dict, Path]:
    """Run the evaluation, or the rest of it; return its summary and its folder.

    Raises:
        ConfigError: the folder holds something else.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from actors.evaluator import Evaluator

    # The actors may stand elsewhere.
    config.model.path = whole_path(config.model.path)
    config.agent.prompt_template = whole_template(config.agent.prompt_template)
    whole_data_paths(config.data)
    folder = run_folder(config, in_job=start_ray())
    nothing = functools.partial(evaluation_summary, config, rows=[], failures=Counter())
    with StopSignals() as signals:
        place = RunFolder(folder, signals)
        place.call(check_folder, config, folder)  # before a lease is waited for
        with place, JobProgress() as progress:
            signals.add(lambda: leave_interrupted(folder, nothing(status="interrupted", error=None)))
            place.call(check_folder, config, folder)
            place.save_config(config)
            progress.say(f"run folder {folder}")
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
            evaluator = Evaluator.options(scheduling_strategy=here).remote(config, str(folder), place.lease)
            summary = follow(evaluator, signals, progress.line)
            if isinstance(summary, str):
                summary = nothing(status="failed", error=summary)
                leave_summary(folder, summary)
    if summary["error"]:
        print(summary["error"], file=sys.stderr)
    return summary, folder


def check_folder(config: EvaluationConfig, folder: Path) -> None:
    """The folder is new, or has an evaluation of the same configuration to be resumed.

    Raises:
        ConfigError: it has something else.
    """
    before, results = folder / "config.yaml", folder / "results.jsonl"
    if before.exists() and results.exists() and results.stat().st_size:
        check_same(configuration_of(before), OmegaConf.to_container(OmegaConf.structured(config)))
    elif not before.exists() and not is_unused(folder):
        raise ConfigError(f"the run folder {folder} is not empty and no evaluation; choose another run.name")


def compare_runs(folders: list[str]) -> int:
    """Draw the evaluations in `folders` into one figure, and compare each with the first, question by question."""
    if len(folders) < 2:
        print("name two folders of evaluations or more: --compare runs/a runs/b", file=sys.stderr)
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
    from pipeline.evaluation.plots import accuracy_figure  # imported late: it brings matplotlib

    output = Path(folders[0]).parent / f"compare-{'-'.join(Path(folder).name for folder in folders)}"
    output.mkdir(exist_ok=True)
    (output / "comparison.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    accuracy_figure(runs, output / "accuracy.png")
    print("\n\n".join(tables))
    print(f"· table {output / 'comparison.md'}\n· figure {output / 'accuracy.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
