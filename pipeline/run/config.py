"""The configuration of a training run."""

from dataclasses import dataclass, field

from pipeline.config import load_config
from pipeline.sections import DataSection, GenerationConfig, LearnerSection, ObjectiveSection, ScorerSection


@dataclass
class TrainSection:
    steps: int = 100  # learner steps: each trains one batch of groups and makes one weight version
    groups_per_step: int = 128  # one group per problem
    updates_per_step: int = 1  # optimizer steps, each over its own part of a step's groups
    group_size: int = 16  # episodes per problem
    method: str = "memory"  # how a document is read: a name in pipeline/agents, or module:class
    temperature: float = 1.0  # sampling temperature
    dynamic_sampling: bool = False  # replace groups whose rewards are all equal instead of training them
    # dynamic sampling: a step discards at most this many times groups_per_step groups, then trains them too
    max_discarded: float = 10.0
    max_staleness: int = 1  # versions; 0 is synchronous
    weight_transport: str = "buckets"  # how weights reach the generators: buckets, or module:name (docs/extending.md)
    max_skipped_updates: int = 3  # stop after this many updates in a row with a loss or gradient that is not finite
    # warn if vLLM's and the learner's log-probs differ by more than this on average; 0: 0.0001 in float32, 0.06 in
    # bfloat16
    mismatch_warning: float = 0.0
    max_attempts: int = 3  # a problem whose group failed this often is withdrawn and counted
    max_failed_share: float = 0.5  # stop if more than this share of all dispatched groups failed
    seeded_sampling: bool = False  # seed each response: with max_staleness=0 a run is repeatable
    checkpoint_every: int = 50  # steps; the last step is always kept
    # a folder that all nodes share, or a URI (s3, gs, …), with a subfolder per run.name; empty: in the run folder
    checkpoint_folder: str = ""
    keep_last: int = 3  # newest checkpoints to keep
    keep_best: int = 1  # checkpoints to keep for the best mean reward over the steps since the previous one
    episodes_every: int = 10  # steps between samples of episodes to read, in the run folder and in wandb
    episodes_shown: int = 4  # episodes per sample
    evaluation: str = "none"  # jobs.evaluate arguments: evaluate before and after a completed run; none: off


@dataclass
class TrainingConfig(GenerationConfig):
    """The configuration of a training run."""

    resume: str = "no"  # auto: resume from the newest good checkpoint of run.name, or begin if there is none

    data: DataSection = field(default_factory=DataSection)
    scorer: ScorerSection = field(default_factory=ScorerSection)
    learner: LearnerSection = field(default_factory=LearnerSection)
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    train: TrainSection = field(default_factory=TrainSection)


def load_training_config(arguments: list[str]) -> TrainingConfig:
    """Load a training run's configuration from command-line arguments (`load_config`)."""
    return load_config(arguments, TrainingConfig)
