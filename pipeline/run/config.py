"""The configuration of a training run."""

from dataclasses import dataclass, field

from pipeline.config import load_config
from pipeline.data.documents.synthetic import VALIDATION_SEED
from pipeline.evaluation.config import EvaluationData
from pipeline.sections import (
    DataSection,
    GenerationConfig,
    LearnerSection,
    ObjectiveSection,
    ScorerSection,
    TrainedModelSection,
)


@dataclass
class TrainSection:
    steps: int = 100  # learner steps; each trains one batch of groups and makes one weight version
    groups_per_step: int = 128  # groups per learner step; one group per problem
    updates_per_step: int = 1  # optimizer steps per learner step, each over its own part of the groups
    group_size: int = 16  # episodes per group
    method: str = "memory"  # the agent: memory, direct, concat, closed_book, or module:class (docs/extending.md)
    temperature: float = 1.0  # sampling temperature
    dynamic_sampling: bool = False  # replace groups whose rewards are all equal instead of training them
    # dynamic sampling: a step discards at most this many times groups_per_step groups; further ones are trained
    max_discarded: float = 10.0
    max_staleness: int = 1  # most versions between writing and training a token; 0: synchronous
    weight_transport: str = "buckets"  # how weights reach the generators: buckets, or module:name (docs/extending.md)
    max_skipped_updates: int = 3  # stop after this many updates in a row with a loss or gradient that is not finite
    # warn if the mean difference of vLLM's and the learner's log-probs exceeds this; 0: 0.0001 in float32, 0.06 in
    # bfloat16
    mismatch_warning: float = 0.0
    max_attempts: int = 3  # a problem whose group failed this often is withdrawn and counted
    max_failed_share: float = 0.5  # stop if more than this share of the failed and finished groups failed
    seeded_sampling: bool = False  # seed each response; with max_staleness=0 a run is repeatable
    checkpoint_every: int = 50  # steps between checkpoints; the last step always has one
    # a folder that all nodes share, or a URI (s3, gs, …), with a subfolder per run.name; empty: in the run folder
    checkpoint_folder: str = ""
    keep_last: int = 3  # newest checkpoints to keep
    # best checkpoints to keep: by the score of the validation that began at their step; without validation, by the mean
    # reward over the steps since the previous checkpoint
    keep_best: int = 1
    evaluate_every: int = 0  # steps between validations (section validation), the first before step 1; 0: none
    episodes_every: int = 10  # steps between samples of episodes to read, in the run folder and in wandb
    episodes_shown: int = 4  # episodes per sample
    # [first, last]: each learner rank writes a profiler trace of each of these steps to the run folder; []: no traces
    profile_steps: list[int] = field(default_factory=list)
    evaluation: str = "none"  # jobs.evaluate arguments for an evaluation before and after a completed run; none: off


@dataclass
class ValidationData(EvaluationData):
    synthetic_seed: int = VALIDATION_SEED  # synthetic: seed of the problems, other than that of an evaluation


@dataclass
class ValidationSection:
    """Held-out questions, answered by the run's generators while it trains."""

    data: ValidationData = field(default_factory=ValidationData)
    temperature: float = 0.7  # sampling temperature; 0: the likeliest token
    top_p: float = 0.95  # sample from the likeliest tokens whose probabilities sum to this
    samples: int = 1  # answers per question
    # while groups are generated, the questions under way are at most this share of all generators' max_sequences
    max_share: float = 0.1


@dataclass
class TrainingConfig(GenerationConfig):
    """The configuration of a training run."""

    model: TrainedModelSection = field(default_factory=TrainedModelSection)
    resume: str = "no"  # no, or auto: resume from the newest good checkpoint of run.name, or begin if there is none

    data: DataSection = field(default_factory=DataSection)
    scorer: ScorerSection = field(default_factory=ScorerSection)
    learner: LearnerSection = field(default_factory=LearnerSection)
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    train: TrainSection = field(default_factory=TrainSection)
    validation: ValidationSection = field(default_factory=ValidationSection)


def load_training_config(arguments: list[str]) -> TrainingConfig:
    """Load a training run's configuration from command-line arguments (`load_config`)."""
    return load_config(arguments, TrainingConfig)
