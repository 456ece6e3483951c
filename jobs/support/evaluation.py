"""Run an evaluation from its configuration to its summary: used by `jobs.evaluate`, training runs and filters."""

import functools
import sys
from collections import Counter
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf

from jobs.support.driver import start_actor, start_ray, summary_of
from jobs.support.inputs import check_model, check_samples, whole_data_paths, whole_path, whole_template
from jobs.support.progress import JobProgress
from jobs.support.run_folder import RunFolder, configuration_of, leave_interrupted, run_folder
from jobs.support.stop_signals import StopSignals
from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluationConfig, check_evaluation, check_same
from pipeline.evaluation.summary import evaluation_summary
from pipeline.lease import is_unused
from pipeline.rewards.scoring import check_scorers
from pipeline.rules import check_data_given


def check(config: EvaluationConfig) -> None:
    """Check a configuration with its files and its model. Raises `ConfigError` if the evaluation cannot work."""
    check_evaluation(config)
    check_data_given(config)
    if config.data.source == "file":
        check_samples(config.data.path)
    check_scorers(config.scorer.modules)
    check_model(config, config.evaluate.methods)


def evaluate(config: EvaluationConfig) -> tuple[dict, Path]:
    """Run or resume the evaluation; return its summary and its run folder.

    Raises:
        ConfigError: the run folder holds something else or cannot be used.
        KeyboardInterrupt: interrupted before the evaluation began.
    """
    from actors.evaluator import Evaluator

    # Actors may have another working directory.
    config.model.path = whole_path(config.model.path)
    config.agent.prompt_template = whole_template(config.agent.prompt_template)
    whole_data_paths(config.data)
    folder = run_folder(config, in_job=start_ray())
    nothing = functools.partial(evaluation_summary, config, rows=[], failures=Counter())
    with StopSignals() as signals:
        place = RunFolder(folder, signals)
        place.call(check_folder, config, folder)  # fail before waiting for a lease
        with place, JobProgress() as progress:
            signals.add(lambda: leave_interrupted(folder, nothing(status="interrupted", error=None)))
            place.call(check_folder, config, folder)
            place.save_config(config)
            progress.say(f"run folder {folder}")
            evaluator = start_actor(Evaluator, config, str(folder), place.lease)
            summary = summary_of(
                evaluator, signals, folder, lambda error: nothing(status="failed", error=error), progress.line
            )
    if summary["error"]:
        print(summary["error"], file=sys.stderr)
    return summary, folder


def check_folder(config: EvaluationConfig, folder: Path) -> None:
    """Check that the folder is unused or holds an evaluation of the same configuration, which is then resumed.

    Raises:
        ConfigError: the folder holds something else.
    """
    before, results = folder / "config.yaml", folder / "results.jsonl"
    if before.exists() and results.exists() and results.stat().st_size:
        check_same(configuration_of(before), cast(dict, OmegaConf.to_container(OmegaConf.structured(config))))
    elif not before.exists() and not is_unused(folder):
        raise ConfigError(f"the run folder {folder} is not empty and holds no evaluation; choose another run.name")
