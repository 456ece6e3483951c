"""The configuration of a training run."""

from dataclasses import dataclass, field

from pipeline.config import load_config
from pipeline.sections import DataSection, GenerationConfig, LearnerSection, ObjectiveSection, ScorerSection


@dataclass
class TrainSection:
    steps: int = 100  # learner steps: each trains the groups of one rollout batch and makes one weight version
    groups_per_step: int = 128  # problems
    updates_per_step: int = 1  # optimizer steps over disjoint sets of a step's groups
    group_size: int = 16  # episodes of one problem
    method: str = "memory"  # how a document is read: a name in pipeline/agents, or module:class
    temperature: float = 1.0  # of sampling
    dynamic_sampling: bool = False  # do not train groups whose rewards are all equal; generate others instead
    max_discarded: float = 10.0  # dynamic sampling: at most so many times groups_per_step a step, then they are trained
    max_staleness: int = 1  # versions; 0 is synchronous
    weight_transport: str = "buckets"  # how weights get to generators: buckets, or module:name (docs/extending.md)
    max_skipped_updates: int = 3  # stop after so many updates in a row whose loss or gradient was not finite
    # warn when vLLM's and the learner's log-probs differ more than this on average; 0: as in pipeline/dtype.py
    mismatch_warning: float = 0.0
    max_attempts: int = 3  # a problem whose group failed this often is given up and counted
    max_failed_share: float = 0.5  # stop when more than this share of all dispatched groups failed
    seeded_sampling: bool = False  # a seed for each response: with max_staleness=0 a run can be repeated
    checkpoint_every: int = 50  # steps; the last step is always kept
    # a folder that all nodes share, or a URI (s3, gs, …), which gets one for each run.name; empty: in the run's folder
    checkpoint_folder: str = ""
    keep_last: int = 3  # checkpoints
    keep_best: int = 1  # those with the best mean reward of the steps before them
    episodes_every: int = 10  # steps between samples of episodes to read, in the run's folder and in wandb
    episodes_shown: int = 4  # in one sample
    evaluation: str = "none"  # of the model before and after a completed run: arguments of jobs.evaluate; none: off


@dataclass
class TrainingConfig(GenerationConfig):
    """Of a training run."""

    resume: str = "no"  # auto: go on from the newest good checkpoint of run.name, or begin if there is none

    data: DataSection = field(default_factory=DataSection)
    scorer: ScorerSection = field(default_factory=ScorerSection)
    learner: LearnerSection = field(default_factory=LearnerSection)
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    train: TrainSection = field(default_factory=TrainSection)


def load_training_config(arguments: list[str]) -> TrainingConfig:
    """`load_config` of a training run."""
    return load_config(arguments, TrainingConfig)
