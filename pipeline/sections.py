"""The configuration sections that jobs share: every key with its default, and its meaning and unit in the comment."""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from pipeline.config import CONFIGS
from pipeline.dtype import chosen_dtype


@dataclass
class RunSection:
    name: str = ""  # name of the run folder; empty: preset and start time
    folder: str = "runs"  # parent of run folders; inside a Ray job, a relative path starts at ~/palimpsest
    seed: int = 0  # seed of all random choices


@dataclass
class ModelSection:
    path: str = MISSING  # Hugging Face folder or name
    # dtype of the weights in generators and learners: float32, bfloat16, or auto. auto is bfloat16 on GPUs and on CPUs
    # with bfloat16 instructions (avx512_bf16, AMX), else float32; the job writes its choice to config.yaml
    dtype: str = "auto"
    trust_remote_code: bool = False  # run Python code that comes with the model


@dataclass
class TrainedModelSection(ModelSection):
    """The model of a job with learners."""

    # kernels of the learners' attention: auto, padded (any device, any dtype), or flash attention for GPUs in bfloat16:
    # fa2 (torch's own), fa3 (Hopper, with its package), fa4 (Hopper and Blackwell, with flash-attn-4). auto is the
    # first of fa3, fa4 and fa2 that works on the learners' GPU, else padded (docs/cluster.md)
    attention: str = "auto"


@dataclass
class RowLimits:
    """Size limits of a row of data. A larger row is malformed or malicious, and is quarantined."""

    row_bytes: int = 2**29  # most bytes of a line of a JSON-lines file, or of a parquet row in memory
    question_characters: int = 1_000_000  # most characters of the question
    id_characters: int = 1000  # most characters of the id
    answers: int = 10_000  # most gold answers to one question
    answer_characters: int = 100_000  # most characters of one gold answer
    metadata_characters: int = 1_000_000  # most characters of the metadata as JSON
    metadata_depth: int = 32  # most levels of nested objects and lists in the metadata


@dataclass
class DataSection:
    """The source of a training run's problems. Each pass has a new random order, given by run.seed."""

    source: str = "file"  # file (samples, pipeline/data/rows.py), or synthetic (problems made on demand)
    path: str = ""  # file: samples as JSON lines or parquet, or a folder of such files, as made by jobs.prepare
    max_bad_share: float = 0.05  # stop the run if more than this share of the rows is quarantined
    limits: RowLimits = field(default_factory=RowLimits)
    passage_folders: list[str] = field(default_factory=list)  # folders of passage files besides the samples' folder
    synthetic_chunks: int = 8  # synthetic: document length in chunks


@dataclass
class AgentSection:
    prompt_template: str = "memagent"  # a name in configs/prompts, or the path of a .yaml file
    window: int = 8192  # most tokens of a conversation's prompt and response together
    problem_tokens: int = 1024  # most tokens of a question; a row with a longer one is quarantined
    document_tokens: int = 32_000_000  # most tokens of a document; a row with a longer one is quarantined
    document_characters: int = 100_000_000  # most characters of a document, counted before passages are joined
    chunk_tokens: int = 5000  # tokens of a chunk; the document is cut at multiples of this
    memory_tokens: int = 1024  # generation limit of a memory conversation, in tokens
    answer_tokens: int = 1024  # generation limit of the answer conversation, in tokens


@dataclass
class GeneratorSection:
    count: int = 1  # actors, with one vLLM engine each; fewer start if the cluster lacks room
    min_count: int = 1  # the job waits while fewer are in service
    num_cpus: float = 1.0  # Ray CPUs per actor
    num_gpus: float = 0.0  # Ray GPUs per actor
    # custom Ray resources per actor, to choose its nodes: generator.resources.spot=1 (docs/cluster.md)
    resources: dict[str, float] = field(default_factory=dict)
    tensor_parallel: int = 1  # GPUs per engine
    # most conversations decoded together in one engine; 0: as many of agent.window tokens as fit its KV cache
    max_sequences: int = 256
    kv_cache_gib: float = 1.0  # CPU engines: size of the KV cache in GiB
    # numbers in the KV cache: auto (the dtype of the weights) or fp8 (half or a quarter of that, and less exact)
    kv_cache_dtype: str = "auto"
    # GPU engines: share of the device's memory for weights and KV cache; with gpu_kv_cache_gib only what must be free
    # when the engine starts
    gpu_memory_share: float = 0.9
    gpu_kv_cache_gib: float = 0.0  # GPU engines: size of the KV cache in GiB; 0: what gpu_memory_share leaves for it
    enforce_eager: bool = False  # do not compile the model; best for CPU engines and small models
    timeout_s: float = 3600.0  # a group (in an evaluation: a response) that takes longer fails, in seconds
    stall_s: float = 300.0  # an engine that makes no progress for this many seconds is restarted
    drain_s: float = 30.0  # grace period for open conversations on a draining node, in seconds


@dataclass
class ScoringSection:
    # your own scorers of answers or of whole episodes, as name: module:function (docs/extending.md); a row's `task` is
    # one of these names or a built-in one
    modules: dict[str, str] = field(default_factory=dict)


@dataclass
class ScorerSection(ScoringSection):
    count: int = 1  # actors; fewer start if the cluster lacks room
    min_count: int = 1  # the job does not begin with fewer
    num_cpus: float = 0.1  # Ray CPUs per actor
    timeout_s: float = 60.0  # a group whose scoring takes longer fails, in seconds


@dataclass
class LearnerSection:
    ranks: int = 2  # learner processes; ZeRO-3 shards the model over them
    min_ranks: int = 1  # when nodes are lost, reinforcement learning restarts with fewer ranks, down to this
    wait_s: float = 120.0  # seconds to wait for room for all ranks before trying fewer
    stall_s: float = 1800.0  # learners that make no progress for this many seconds are restarted
    num_cpus: float = 1.0  # Ray CPUs per rank
    num_gpus: float = 0.0  # Ray GPUs per rank
    resources: dict[str, float] = field(default_factory=dict)  # custom Ray resources per rank, to choose its nodes
    # environment variables of the ranks: learner.environment.NCCL_SOCKET_IFNAME=eth0 (docs/cluster.md)
    environment: dict[str, str] = field(default_factory=dict)
    # most tokens of one forward pass on one rank, a shared prefix counted once; at least agent.window
    micro_batch_tokens: int = 8192
    optimizer: str = "adamw"  # adamw, or muon (Muon for the layers' matrices, AdamW for the other parameters)
    learning_rate: float = 1e-6  # peak learning rate of AdamW
    muon_learning_rate: float = 0.02  # peak learning rate of Muon
    schedule: str = "constant"  # learning rate after the warm-up: constant, or cosine down to 0 at the end
    decay_share: float = 1.0  # cosine: decay over this last share of the optimizer steps; constant before
    warmup_steps: int = 20  # optimizer steps of linear warm-up
    weight_decay: float = 0.01  # decoupled from the gradient
    max_grad_norm: float = 1.0  # clip gradients to this norm; 0: no clipping, as Muon needs
    # save memory: of this many layers keep only the inputs, and recompute the rest. A number, all, or auto: 0 on CPUs;
    # on GPUs as few as fit by the estimate of --dry-run, and all if there is none
    checkpoint_layers: str = "auto"
    liger: bool = False  # GPU: Liger's fused kernels for norms, SwiGLU and rotary embeddings (docs/cluster.md)
    offload: bool = False  # GPU: keep the optimizer state in host memory
    bucket_mib: int = 64  # most MiB of a weight bucket (a larger tensor has its own)
    # send new bfloat16 weights as what changed since the version before, for slow networks (docs/performance.md)
    weight_deltas: bool = False


@dataclass
class ObjectiveSection:
    """The training objective; docs/objective.md has the formulas and their papers.

    A term beside that of the advantages has a key that ends in `_coefficient`, and is off at 0.
    """

    # mean: reward minus the group's mean; std: also divided by the group's std; leave_one_out: reward minus the mean
    # of the others; reward: the reward, which is fine-tuning on successful episodes; gru_mem: 0.9 of mean, plus 0.1 of
    # each conversation's reward minus the mean at its turn; none: 0, a control; or module:function, your own estimator
    advantage: str = "mean"
    loss: str = "dapo"  # dapo, with the terms below, or module:function, your own objective
    clip_low: float = 0.2  # ε_low: the ratio is clipped below 1 - ε_low
    clip_high: float = 0.2  # ε_high: the ratio is clipped above 1 + ε_high; DAPO's clip-higher is 0.28
    dual_clip: float = 3.0  # the loss of a token with negative advantage stops growing at this ratio
    kl_coefficient: float = 0.0  # β of the KL to the initial model; 0: no reference model is loaded
    entropy_coefficient: float = 0.0  # entropy bonus, or below 0 a penalty; entropy is always reported
    # an episode's weight in the entropy term: one, or reward (its reward, so that a penalty hits successful episodes)
    entropy_weight: str = "one"
    decoupled: bool = True  # clip around the learner's policy at the start of the step; false: the sampling policy
    importance_cap: float = 2.0  # decoupled: cap of the ratio (policy at the start of the step) / (sampling policy)
    overlong_penalty: float = 0.0  # subtracted from an episode's reward if all responses reach their limit; 0: off
    overlong_share: float = 0.2  # the penalty grows from 0 to full over this last share of a response's limit

    def terms(self) -> set[str]:
        """The keys of the terms that are on, beside that of the advantages."""
        return {key for key, value in vars(self).items() if key.endswith("_coefficient") and value}


@dataclass
class WandbSection:
    project: str = "palimpsest"  # project name in wandb
    entity: str = ""  # user or team in wandb; empty: your default
    mode: str = "auto"  # auto (online with an API key, else offline), online, offline, disabled


@dataclass
class JobConfig:
    """The sections of every job that runs on a cluster."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    wandb: WandbSection = field(default_factory=WandbSection)

    @staticmethod
    def defaults(presets: list[str]) -> dict[str, str]:
        """The name of a run without one: its presets and start time, without characters that no name may hold."""
        names = [re.sub(r"[^\w.-]", "_", preset).lstrip(".-") for preset in presets]
        return {"run.name": "-".join([*filter(None, names), time.strftime("%Y%m%d-%H%M%S")])}

    def complete(self) -> None:
        """Resolve the model's path and dtype."""
        self.model.path = from_repository(self.model.path)
        self.model.dtype = chosen_dtype(self)


def from_repository(path: str) -> str:
    """The path; in absolute form if only the repository has it. So presets work in any working directory."""
    there = CONFIGS.parent / path
    return str(there) if there.exists() and not Path(path).exists() else path


@dataclass
class GenerationConfig(JobConfig):
    """The sections of every job with generators."""

    agent: AgentSection = field(default_factory=AgentSection)
    generator: GeneratorSection = field(default_factory=GeneratorSection)
