"""Train a memory agent: `python -m jobs.train preset=<name> key=value … [--dry-run]`.

Runs on the cluster that RAY_ADDRESS names (inside a Ray job: the job's cluster). Without RAY_ADDRESS it joins your
cluster on this machine, or starts Ray.
`--dry-run` starts nothing: it prints the resolved configuration and the plan, and reports what is wrong.
Prints one line per step and leaves a run folder (README.md, "What a run leaves").
"""

import contextlib
import functools
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

from jobs.support.driver import (
    EXIT_STATUS,
    asks_for_help,
    show_help,
    start_actor,
    start_ray,
    stop_ray,
    summary_of,
    then_stop_ray,
)
from jobs.support.evaluation import check as check_evaluation_job
from jobs.support.inputs import (
    check_layers,
    check_model,
    check_samples,
    model_config,
    model_settings,
    whole_data_paths,
    whole_path,
    whole_template,
)
from jobs.support.run_evaluation import evaluate_run, evaluation_of, is_evaluated
from jobs.support.run_folder import RunFolder, check_earlier, check_unused, leave_interrupted, run_folder
from jobs.support.stop_signals import StopSignals
from jobs.view import write_run_page
from pipeline.config import CONFIGS, config_yaml
from pipeline.data.documents.passages import document_text
from pipeline.data.rows import row_rules
from pipeline.data.sample_files import SampleFiles
from pipeline.errors import BadRow, ConfigError, DataError
from pipeline.learning.device_memory import Architecture, architecture_of, built_architecture
from pipeline.learning.objectives import check_loss
from pipeline.rewards.advantages import estimator_for
from pipeline.rewards.scoring import check_scorers
from pipeline.rules import check_data_given
from pipeline.run.checkpoints import checkpoints_of
from pipeline.run.config import TrainingConfig, load_training_config
from pipeline.run.history import RunTotals
from pipeline.run.metric_names import is_taken
from pipeline.run.plan import plan_text
from pipeline.run.report import run_summary
from pipeline.run.rules import check_config
from pipeline.weights.transport import check_transport

NAMESPACE = "palimpsest"  # Ray namespace of the coordinators, where another driver finds them
CHARACTERS_OF_A_TOKEN = 4.5  # rough average for English
DOCUMENTS_LOOKED_AT = 16


def main(arguments: list[str]) -> int:
    """Run the job; return the exit status: 0 completed, 1 failed, 2 wrong configuration, 130 interrupted."""
    if asks_for_help(arguments):
        return show_help(__doc__, TrainingConfig)
    dry_run = "--dry-run" in arguments
    try:
        config = load_training_config([a for a in arguments if a != "--dry-run"])
        check_config(config)
        if dry_run:
            print(config_yaml(config), plan_text(config, architecture(config), document_tokens(config)), sep="\n")
        check_files(config)
        check_scorers(config.scorer.modules)
        check_transport(config.train.weight_transport)
        estimator_for(config.objective.advantage)
        check_loss(config.objective, is_taken)
        check_model(config, [config.train.method])
        check_layers(config.learner, model_settings(config.model))
        if is_evaluated(config):
            check_evaluation_job(evaluation_of(config, config.model.path))
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    return 0 if dry_run else train(config)


def check_files(config: TrainingConfig) -> None:
    """Check that the input files exist.

    Raises:
        ConfigError: a path is not set or does not exist.
    """
    check_data_given(config)
    if config.data.source == "file":
        check_samples(config.data.path)
    if config.train.evaluate_every and config.validation.data.source == "file":
        check_samples(config.validation.data.path, "validation.data.path")


def document_tokens(config: TrainingConfig) -> int | None:
    """Estimated tokens of a typical document of the data, for the plan; None if unknown."""
    if config.data.source != "file" or not config.data.path:
        return None
    try:
        source = SampleFiles.open(config.data.path, row_rules(config))
        texts = [
            document_text(source.sample(i), config.agent.document_characters)
            for i in range(min(len(source), DOCUMENTS_LOOKED_AT))
        ]
    except (BadRow, DataError, OSError):
        return None  # the run itself reports what is wrong with the data
    return round(median(map(len, texts)) / CHARACTERS_OF_A_TOKEN)


def architecture(config: TrainingConfig) -> Architecture | None:
    """The model's architecture, for the plan; None if unknown. Those of the presets' models need no network."""
    known = replace(config.model, path=str(CONFIGS / "models" / Path(config.model.path).name))
    for model in (config.model, known) if Path(config.model.path).exists() else (known, config.model):
        with contextlib.suppress(Exception):  # any exception, for a malformed file; check_model reports it
            return architecture_of(model_settings(model)) or built_architecture(model_config(model))
    return None


def train(config: TrainingConfig) -> int:
    # Actors may have another working directory.
    config.model.path = whole_path(config.model.path)
    config.agent.prompt_template = whole_template(config.agent.prompt_template)
    whole_data_paths(config.data)
    whole_data_paths(config.validation.data)
    try:
        folder = run_folder(config, in_job=start_ray())
        with StopSignals() as signals:
            summary = run_of(config, folder, signals)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("· interrupted before the run began", flush=True)
        return EXIT_STATUS["interrupted"]
    if summary["error"]:
        print(summary["error"], file=sys.stderr)
    print(f"· {summary['status']}; summary in {folder / 'summary.json'}", flush=True)
    status = EXIT_STATUS.get(summary["status"], 1)
    if is_evaluated(config) and summary["status"] == "completed":
        try:
            status = evaluate_run(config, folder, summary["checkpoint"])
        except (ConfigError, OSError) as error:
            print(f"the evaluation failed: {error}", file=sys.stderr)
            status = 1
        except KeyboardInterrupt:
            status = EXIT_STATUS["interrupted"]
    stop_ray()
    write_run_page(folder)
    return status


def run_of(config: TrainingConfig, folder: Path, signals: StopSignals) -> dict:
    """Run the training, or follow it if it is already running; return its summary.

    Raises:
        ConfigError: the run folder or the checkpoint folder belongs to another run, or its run cannot be resumed.
        KeyboardInterrupt: a signal came before the run began.
    """
    if coordinator := running_coordinator(config, folder):
        return end_of(coordinator, config, folder, signals)

    from actors.coordinator import Coordinator

    place = RunFolder(folder, signals)
    place.call(check_unused, config, folder)  # fail before waiting for a lease
    with place:
        signals.add(lambda: leave_interrupted(folder, run_summary(config, "interrupted", RunTotals())))
        place.call(check_unused, config, folder)
        place.call(check_earlier, config, folder)
        place.call(checkpoints_of(config, folder, place.lease.run).claim, config.resume == "auto")
        place.save_config(config)
        print(f"· run folder {folder}", flush=True)
        if signals.asked:
            raise KeyboardInterrupt
        named = {"name": str(folder), "namespace": NAMESPACE, "lifetime": "detached"}
        coordinator = start_actor(Coordinator, config, str(folder), place.lease, **named)
        return end_of(coordinator, config, folder, signals)


def end_of(coordinator, config: TrainingConfig, folder: Path, signals: StopSignals) -> dict:
    """Follow a coordinator to its end; return the summary, which is also in summary.json."""
    import ray

    lost = functools.partial(run_summary, config, "failed", RunTotals())
    summary = summary_of(coordinator, signals, folder, lambda error: lost(error=error))
    ray.kill(coordinator)
    return summary


def running_coordinator(config: TrainingConfig, folder: Path):
    """The coordinator of this run if it is still running after its driver died; None if the run must be started.

    Raises:
        ConfigError: a run of this name is running with another configuration.
    """
    import ray

    try:
        coordinator = ray.get_actor(str(folder), namespace=NAMESPACE)
    except ValueError:
        return None
    if config_yaml(replace(config, resume="")) != config_yaml(
        replace(ray.get(coordinator.settings.remote()), resume="")
    ):
        raise ConfigError(f"{folder.name} is running with another configuration; stop it, or choose another run.name")
    print(f"· {folder.name} is running: following it", flush=True)
    return coordinator


if __name__ == "__main__":
    sys.exit(then_stop_ray(main, sys.argv[1:]))
