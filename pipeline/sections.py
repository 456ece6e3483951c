"""The sections of the jobs' configurations: every key with its default, and its unit in the comment."""

import re
import time
from dataclasses import dataclass, field

from omegaconf import MISSING

from pipeline.dtype import chosen_dtype


@dataclass
class RunSection:
    name: str = ""  # folder name; empty: preset and start time
    folder: str = "runs"  # where run folders go; inside a Ray job a relative path starts at ~/palimpsest
    seed: int = 0  # of everything drawn at random


@dataclass
class ModelSection:
    path: str = MISSING  # Hugging Face folder or name
    # dtype of the weights in generators and learners: float32, bfloat16, or auto, which load_config replaces by
    # bfloat16 on GPUs and on CPUs with bfloat16 instructions (avx512_bf16, AMX), else by float32
    dtype: str = "auto"
    attention: str = "packed_sdpa"  # the learner's: packed_sdpa (any device) or flash_attention_2 (GPU, if installed)
    trust_remote_code: bool = False  # run code that comes with the model


@dataclass
class RowLimits:
    """The most that a row of data may hold. A larger row is malformed or malicious, and is quarantined."""

    row_bytes: int = 2**29  # a line of a JSON-lines file, or a parquet row in memory
    question_characters: int = 1_000_000  # of the question
    id_characters: int = 1000  # of the id
    answers: int = 10_000  # gold answers to one question
    answer_characters: int = 100_000  # each
    metadata_characters: int = 1_000_000  # as JSON
    metadata_depth: int = 32  # levels of nested objects and lists


@dataclass
class DataSection:
    """Where a training run's problems come from. Each pass shuffles them in a new order, by run.seed."""

    source: str = "file"  # synthetic, or file (the sample schema of pipeline/data/rows.py)
    path: str = ""  # file: samples as JSON lines or parquet, or a folder of such files, as jobs.prepare makes them
    max_bad_share: float = 0.05  # the run stops if more than this share of the rows is quarantined
    limits: RowLimits = field(default_factory=RowLimits)
    passage_folders: list[str] = field(default_factory=list)  # where passage files may be besides the samples' folder
    synthetic_chunks: int = 8  # synthetic: chunks in a document


@dataclass
class AgentSection:
    prompt_template: str = "memagent"  # a name in configs/prompts, or a file's path
    window: int = 8192  # tokens that every conversation's prompt and response must fit in
    problem_tokens: int = 1024  # longest question
    document_tokens: int = 32_000_000  # longest document; a longer one is quarantined
    document_characters: int = 100_000_000  # the same in characters, counted before passages are joined
    chunk_tokens: int = 5000  # the document is cut at multiples of this
    memory_tokens: int = 1024  # generation limit of a memory conversation
    answer_tokens: int = 1024  # generation limit of the answer conversation


@dataclass
class GeneratorSection:
    count: int = 1  # actors, one vLLM engine each; fewer if the cluster lacks room
    min_count: int = 1  # the job waits while there are fewer
    num_cpus: float = 1.0  # per actor, as Ray counts them
    num_gpus: float = 0.0  # per actor
    tensor_parallel: int = 1  # GPUs of one engine
    max_sequences: int = 256  # conversations decoded together
    kv_cache_gib: float = 1.0  # CPU engines: size of the KV cache
    gpu_memory_share: float = 0.9  # GPU engines: share of the device for weights and KV cache
    enforce_eager: bool = False  # do not compile; right for CPU engines and small models
    timeout_s: float = 3600.0  # a group (in an evaluation: a response) that takes longer has failed
    stall_s: float = 300.0  # an engine whose loop makes no progress for this long is replaced
    drain_s: float = 30.0  # grace period for open conversations on a draining node


@dataclass
class ScoringSection:
    # Your own scorers, name: module:function, of answers or of whole episodes (docs/extending.md). A row's `task` may
    # be one of these names or a built-in one.
    modules: dict[str, str] = field(default_factory=dict)


@dataclass
class ScorerSection(ScoringSection):
    count: int = 1  # actors; fewer if the cluster lacks room
    min_count: int = 1  # the job does not begin with fewer
    num_cpus: float = 0.1  # per actor
    timeout_s: float = 60.0  # for one whole group


@dataclass
class LearnerSection:
    ranks: int = 2  # learner processes, over which ZeRO-3 shards the model
    min_ranks: int = 1  # when nodes are lost, reinforcement learning restarts with fewer ranks, down to this
    wait_s: float = 120.0  # wait for room for all ranks before trying fewer
    stall_s: float = 1800.0  # learners that make no progress for this long are restarted
    num_cpus: float = 1.0  # per rank
    num_gpus: float = 0.0  # per rank
    micro_batch_tokens: int = 8192  # tokens of one forward pass on one rank; at least agent.window
    optimizer: str = "adamw"  # adamw, or muon for the layers' matrices and AdamW for the other parameters
    learning_rate: float = 1e-6  # AdamW's
    muon_learning_rate: float = 0.02  # Muon's
    schedule: str = "constant"  # learning rate after the warm-up: constant, or cosine down to 0 at the end
    decay_share: float = 1.0  # cosine: decay over this last share of the optimizer steps, constant before
    warmup_steps: int = 20  # optimizer steps
    weight_decay: float = 0.01  # decoupled from the gradient
    max_grad_norm: float = 1.0  # gradients are clipped to this norm; 0: no clipping, as Muon wants
    activation_checkpointing: bool = False  # keep only the layers' inputs and recompute the rest: less memory
    offload: bool = False  # GPU: keep the optimizer state in host memory
    bucket_mib: int = 64  # size of a weight bucket on its way to the generators


@dataclass
class ObjectiveSection:
    """The training objective; docs/objective.md has the formulas and their papers."""

    # mean: reward minus the group's mean; std: also divided by the group's std; leave_one_out: reward minus the mean
    # of the others; reward: the reward itself, which is fine-tuning on successful episodes; gru_mem: mean, plus each
    # conversation's reward minus their mean at its turn; none: 0, a control; or module:function, your own estimator
    advantage: str = "mean"
    loss: str = "dapo"  # dapo, which has the terms below, or module:function, your own objective
    clip_low: float = 0.2  # ε below 1
    clip_high: float = 0.2  # ε above 1; DAPO's clip-higher is 0.28
    dual_clip: float = 3.0  # a bad token's loss stops growing at this ratio
    kl_coefficient: float = 0.0  # β of the KL to the initial model; 0 loads no reference model
    entropy_coefficient: float = 0.0  # entropy bonus, a penalty below 0; entropy is always reported
    # an episode's weight in the entropy term: one, or reward: its reward, so that a penalty hits successful episodes
    entropy_weight: str = "one"
    decoupled: bool = True  # clip around the learner's policy of the step's start; false: around the sampling policy
    importance_cap: float = 2.0  # decoupled: limit of the weight (policy of the step's start) / (sampling policy)
    overlong_penalty: float = 0.0  # subtracted from the reward when all responses reach their limit; 0: off
    overlong_share: float = 0.2  # the last share of a response's limit, where the penalty grows from 0 to its full size


@dataclass
class WandbSection:
    project: str = "palimpsest"  # name in wandb
    entity: str = ""  # user or team in wandb; empty: your default one
    mode: str = "auto"  # auto (online with an API key, offline without), online, offline, disabled


@dataclass
class JobConfig:
    """The sections of every job that runs on a cluster."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    wandb: WandbSection = field(default_factory=WandbSection)

    @staticmethod
    def defaults(presets: list[str]) -> dict[str, str]:
        """The name of a run without one: its presets and the time, without characters that no name may hold."""
        names = [re.sub(r"[^\w.-]", "_", preset).lstrip(".-") for preset in presets]
        return {"run.name": "-".join([*filter(None, names), time.strftime("%Y%m%d-%H%M%S")])}

    def complete(self) -> None:
        """Resolve the model's dtype auto."""
        self.model.dtype = chosen_dtype(self)


@dataclass
class GenerationConfig(JobConfig):
    """The sections of every job with generators."""

    agent: AgentSection = field(default_factory=AgentSection)
    generator: GeneratorSection = field(default_factory=GeneratorSection)
