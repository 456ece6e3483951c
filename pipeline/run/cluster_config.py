"""The configuration of `python -m jobs.plan`: a training run's, and the cluster that it is planned for."""

from dataclasses import dataclass, field

from pipeline.config import load_config
from pipeline.rules import Rules, check_rules, generation_rules, one_of, positive
from pipeline.run.config import TrainingConfig
from pipeline.run.devices import DEVICES
from pipeline.run.rules import training_rules

CPU = "CPU"
DEFAULT_GPU = "H100"


@dataclass
class ClusterSection:
    """What a plan needs beside the training run's keys."""

    # kind of GPU: a name in pipeline/run/devices.py (H100, "H100 PCIe", A100, …), or CPU; empty: H100, or CPU for a run
    # without GPUs
    device: str = ""
    gpus_per_node: int = 8  # GPUs of a node
    nodes: int = 0  # nodes that there are; 0: as many as the run needs
    network_gb_s: float = 50.0  # network of a node in GB/s, in each direction
    host_memory_gib: float = 1024.0  # memory of a node in GiB
    cores: int = 2  # CPU: cores that all engines and learner ranks share
    price: float = 0.0  # of a GPU for an hour, in any currency; 0: no price is computed
    # mean tokens of a document; 0: those of the data, or 28000 if data.path is not set
    document_tokens: int = 0
    problem_tokens: int = 0  # mean tokens of a question; 0: at most 64
    memory_tokens: int = 0  # mean tokens of a memory as written; 0: half of agent.memory_tokens
    answer_tokens: int = 0  # mean tokens of an answer as written; 0: half of agent.answer_tokens
    # mean number of different memories that the episodes of a group write at a turn; 0: all differ
    distinct_memories: float = 0.0
    # share of the groups whose rewards differ; the others are discarded with train.dynamic_sampling, else not computed
    informative_share: float = 1.0


@dataclass
class PlanConfig(TrainingConfig):
    """The configuration of a plan."""

    cluster: ClusterSection = field(default_factory=ClusterSection)

    def complete(self) -> None:
        super().complete()
        self.cluster.device = self.cluster.device or (DEFAULT_GPU if self.learner.num_gpus else CPU)


def load_plan_config(arguments: list[str]) -> PlanConfig:
    """Load and check a plan's configuration from command-line arguments (`load_config`).

    Raises:
        ConfigError: as `load_config`, and one line for each broken rule.
    """
    config = load_config(arguments, PlanConfig)
    check_rules(generation_rules(config), training_rules(config), plan_rules(config))
    return config


def plan_rules(c: PlanConfig) -> Rules:
    """The rules of a plan beside those of the run."""
    yield from positive(c, "cluster", "gpus_per_node", "network_gb_s", "host_memory_gib", "cores")
    yield from one_of(c, "cluster", "device", (*DEVICES, CPU))
    device, gpus = c.cluster.device, (c.generator.num_gpus, c.learner.num_gpus)
    yield (
        all(gpus) if device != CPU else not any(gpus),
        f"cluster.device={device} does not go with generator.num_gpus={gpus[0]:g} and learner.num_gpus={gpus[1]:g}: "
        f"a plan is for {CPU} where both are 0, and for GPUs where neither is",
    )
    yield (
        max(gpus) <= c.cluster.gpus_per_node,
        f"a generator or a learner rank has {max(gpus):g} GPUs, more than cluster.gpus_per_node="
        f"{c.cluster.gpus_per_node}",
    )
    yield (
        0 < c.cluster.informative_share <= 1,
        f"cluster.informative_share={c.cluster.informative_share:g} must be above 0 and at most 1",
    )
    distinct = c.cluster.distinct_memories
    yield (
        distinct == 0 or 1 <= distinct <= c.train.group_size,
        f"cluster.distinct_memories={distinct:g} must be 0, or lie between 1 and train.group_size={c.train.group_size}",
    )
    for name in ("problem", "memory", "answer"):
        tokens, most = getattr(c.cluster, f"{name}_tokens"), getattr(c.agent, f"{name}_tokens")
        yield tokens <= most, f"cluster.{name}_tokens={tokens} must be at most agent.{name}_tokens={most}"
    yield c.train.method == "memory", f"train.method={c.train.method}: a plan knows the method memory only"
