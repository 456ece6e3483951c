"""The steps of the figures: every one with arguments that its job takes."""

from jobs.figures.recipe import (
    FiguresConfig,
    all_steps,
)
from pipeline.config import load_config
from pipeline.evaluation.config import EvaluationConfig, check_evaluation
from pipeline.fine_tuning.config import FineTuningConfig, check_fine_tuning
from pipeline.run.config import load_training_config

CONFIG = FiguresConfig(seeds=[0, 1], chunks=[8, 2048])
SCHEMAS = {"jobs.fine_tune": FineTuningConfig, "jobs.evaluate": EvaluationConfig}


def test_every_step_is_run_once_and_its_arguments_are_sound():
    steps = all_steps(CONFIG)
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        inputs = ["model.path=somewhere"] if step.model else []
        inputs += ["data.path=successes.jsonl"] if step.data else []
        arguments = [*step.arguments, *inputs, f"run.name={step.name}"]
        if step.job == "jobs.train":
            assert load_training_config(arguments).train.evaluation == "none"
        else:
            config = load_config(arguments, SCHEMAS[step.job])
            (check_evaluation if step.job == "jobs.evaluate" else check_fine_tuning)(config)
