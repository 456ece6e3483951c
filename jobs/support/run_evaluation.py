"""The evaluation of a training run: the model before and after it (`train.evaluation`)."""

from dataclasses import replace
from pathlib import Path

from jobs.support.driver import EXIT_STATUS
from jobs.support.evaluation import evaluate
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.results import read_results
from pipeline.files import copy_folder, join
from pipeline.run.checkpoints import MODEL
from pipeline.run.config import TrainingConfig

# Keys of `agent` that an evaluation has from its run.
FOLLOWING = ("prompt_template", "problem_tokens", "chunk_tokens", "memory_tokens", "answer_tokens")


def is_evaluated(config: TrainingConfig) -> bool:
    """Whether an evaluation follows the run."""
    return config.train.evaluation.strip().lower() not in ("", "none")


def evaluate_run(config: TrainingConfig, folder: Path, checkpoint: str) -> int:
    """Evaluate a run's first and last model, and compare them.

    Args:
        config: the run's configuration; `train.evaluation` has the arguments of the evaluation.
        folder: the run folder; its subfolder `evaluation/` gets the two evaluations (before-RL and
            after-RL-<step>), accuracy.png and accuracy.md.
        checkpoint: the checkpoint of the last weight version.

    Returns:
        The exit status.
    """
    from pipeline.evaluation.plots import accuracy_figure  # imported late: it imports matplotlib

    folder, step, trained = folder / "evaluation", Path(checkpoint).name, join(checkpoint, MODEL)
    if "://" in trained:  # vLLM and transformers read local folders
        trained = str(local_copy(trained, folder / f"model-{step}"))
    # The run may go on with more steps: its later model has results of its own.
    models = {"before RL": (config.model.path, "before-RL"), "after RL": (trained, f"after-RL-{step}")}
    rows = {}
    for name, (model, run_name) in models.items():
        print(f"· evaluating the model {name}", flush=True)
        evaluation = evaluation_of(config, model)
        evaluation.run.folder, evaluation.run.name = str(folder), run_name
        summary, place = evaluate(evaluation)
        if summary["status"] != "completed":
            print(f"· the evaluation: {summary['status']}; summary in {place / 'summary.json'}", flush=True)
            return EXIT_STATUS.get(summary["status"], 1)
        rows[name] = read_results(place / "results.jsonl")
    table = compare(rows["after RL"], rows["before RL"], "after RL", "before RL")
    (folder / "accuracy.md").write_text(table, encoding="utf-8")
    print(table, f"· table {folder / 'accuracy.md'}", sep="\n", flush=True)
    try:
        accuracy_figure(rows, folder / "accuracy.png")
        print(f"· figure {folder / 'accuracy.png'}", flush=True)
    except ValueError as error:  # too many sets
        print(f"· no figure: {error}", flush=True)
    return 0


def local_copy(source: str, target: Path) -> Path:
    """Copy a folder of an object store unless `target` is there, which is then complete; return `target`.

    An evaluation resumes only with the very files that it began with, by their times of modification.
    """
    if not target.exists():
        partial = target.with_name(f"{target.name}.partial")
        copy_folder(source, partial)
        partial.rename(target)
    return target


def evaluation_of(config: TrainingConfig, model: str) -> EvaluationConfig:
    """The configuration of `train.evaluation` for `model`, with the run's seed and wandb section.

    It also uses the run's method, prompt template, lengths (the agent reads as it was trained) and scorers, whatever
    the presets say, unless the arguments in `train.evaluation` name others. Its window holds the run's conversations.

    Raises:
        ConfigError: `train.evaluation` is not a valid configuration.
    """
    arguments = config.train.evaluation.split()
    try:
        evaluation = load_config([*arguments, f"model.path={model}"], EvaluationConfig)
    except ConfigError as error:
        raise ConfigError(f"train.evaluation={config.train.evaluation!r}: {error}") from None
    evaluation.model, evaluation.wandb = replace(config.model, path=model), config.wandb
    evaluation.run.seed = config.run.seed
    named = {argument.partition("=")[0] for argument in arguments}
    if "evaluate.methods" not in named:
        evaluation.evaluate.methods = [config.train.method]
    for name in FOLLOWING:
        if f"agent.{name}" not in named:
            setattr(evaluation.agent, name, getattr(config.agent, name))
    if "agent.window" not in named:
        evaluation.agent.window = max(evaluation.agent.window, config.agent.window)
    evaluation.scorer.modules = config.scorer.modules | evaluation.scorer.modules
    return evaluation
