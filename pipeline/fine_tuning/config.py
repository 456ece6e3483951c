"""The configuration of fine-tuning, and the checks before it starts."""

from dataclasses import dataclass, field

from pipeline.errors import ConfigError
from pipeline.fine_tuning.demonstrations import CURRICULA, TEMPLATES
from pipeline.learning.rules import learner_rules
from pipeline.rules import check_rules, job_rules, one_of, positive, resume_rule
from pipeline.sections import JobConfig, LearnerSection, TrainedModelSection

SOURCES = ("file", "demonstrations")


@dataclass
class FineTuningData:
    source: str = "file"  # file (conversations), or demonstrations (made in the tiny language)
    path: str = ""  # file: conversations as JSON lines or parquet, or a folder of such files
    max_bad_share: float = 0.05  # stop the run if more than this share of the rows is quarantined
    curriculum: str = "reading"  # demonstrations: reading, careful or direct
    prompt_template: str = "tiny"  # demonstrations: tiny or tiny_chunk_first


@dataclass
class FineTuneSection:
    steps: int = 1000  # optimizer steps; the learning-rate schedule and the curriculum span all of them
    stop_after: int = 0  # stop early after this many steps, with the model unfinished; 0: run all steps
    tokens_per_step: int = 65536  # approximate tokens of prompts and responses per step
    max_tokens: int = 8192  # most tokens of a conversation; longer ones are quarantined
    from_scratch: bool = False  # start from random weights (run.seed) with the architecture of model.path
    checkpoint_every: int = 500  # steps between checkpoints; the last step always has one
    keep_last: int = 3  # newest checkpoints to keep
    record_every: int = 25  # steps between progress lines and entries of fine_tuning.json


@dataclass
class FineTuningConfig(JobConfig):
    model: TrainedModelSection = field(default_factory=TrainedModelSection)
    resume: str = "no"  # no, or auto: resume from the newest good checkpoint of run.name, or begin if there is none

    data: FineTuningData = field(default_factory=FineTuningData)
    learner: LearnerSection = field(default_factory=LearnerSection)
    fine_tuning: FineTuneSection = field(default_factory=FineTuneSection)


def check_fine_tuning(config: FineTuningConfig) -> None:
    """Check the rules that need neither files nor a tokenizer.

    Raises:
        ConfigError: one line for each broken rule.
    """
    check_rules(job_rules(config), learner_rules(config), _rules(config))
    if config.data.source == "file" and not config.data.path:
        raise ConfigError("set data.path to a file of conversations: data.source=file reads them from there")


def _rules(c: FineTuningConfig):
    counts = ("steps", "tokens_per_step", "max_tokens", "checkpoint_every", "keep_last", "record_every")
    yield from positive(c, "fine_tuning", *counts)
    yield resume_rule(c)
    yield from one_of(c, "data", "source", SOURCES)
    yield from one_of(c, "data", "curriculum", CURRICULA)
    yield from one_of(c, "data", "prompt_template", TEMPLATES)
    s, budget = c.fine_tuning, c.learner.micro_batch_tokens
    yield s.stop_after <= s.steps, f"fine_tuning.stop_after={s.stop_after} is over fine_tuning.steps={s.steps}"
    yield (
        s.max_tokens <= budget,
        f"fine_tuning.max_tokens={s.max_tokens} is over learner.micro_batch_tokens={budget}, which a conversation must "
        "fit",
    )
