"""The configuration of fine-tuning, and the checks before it starts."""

from dataclasses import dataclass, field

from pipeline.errors import ConfigError
from pipeline.fine_tuning.demonstrations import CURRICULA
from pipeline.learning.rules import learner_rules
from pipeline.rules import check_rules, job_rules, one_of, positive
from pipeline.sections import JobConfig, LearnerSection

SOURCES = ("file", "demonstrations")


@dataclass
class FineTuningData:
    source: str = "file"  # file, or demonstrations (in the tiny language, pipeline/fine_tuning/demonstrations.py)
    path: str = ""  # file: conversations as JSON lines or parquet, or a folder of such files
    max_bad_share: float = 0.05  # stop the run if more than this share of the rows is quarantined
    curriculum: str = "reading"  # demonstrations: reading, careful or direct


@dataclass
class FineTuneSection:
    steps: int = 1000  # optimizer steps; the learning rate schedule and the curriculum span them all
    stop_after: int = 0  # end early after this many steps, leaving an unfinished model; 0: do all
    tokens_per_step: int = 65536  # of prompts and responses, approximately
    max_tokens: int = 8192  # longer conversations are quarantined
    from_scratch: bool = False  # random weights (run.seed) in the architecture of model.path
    checkpoint_every: int = 500  # steps; the last step is always kept
    record_every: int = 25  # steps between progress lines and entries of fine_tuning.json


@dataclass
class FineTuningConfig(JobConfig):
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
        raise ConfigError("set data.path: data.source=file reads conversations")


def _rules(c: FineTuningConfig):
    yield from positive(c, "fine_tuning", "steps", "tokens_per_step", "max_tokens", "checkpoint_every", "record_every")
    yield from one_of(c, "data", "source", SOURCES)
    yield from one_of(c, "data", "curriculum", CURRICULA)
    s, budget = c.fine_tuning, c.learner.micro_batch_tokens
    yield s.stop_after <= s.steps, f"fine_tuning.stop_after={s.stop_after} is over fine_tuning.steps={s.steps}"
    yield (
        s.max_tokens <= budget,
        f"fine_tuning.max_tokens={s.max_tokens} is over learner.micro_batch_tokens={budget}, which a conversation must "
        "fit",
    )
