"""The configuration: its schema, and where it comes from. pipeline/config_rules.py checks it.

A value is taken from the command line (`key=value`), else from the preset (`configs/<preset>.yaml`), else from
the defaults here. Units are in the comments.
"""

import dataclasses
import difflib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class ConfigError(ValueError):
    """The configuration cannot work. The message lists everything that is wrong and what to do."""


@dataclass
class RunConfig:
    name: str = ""  # folder name; empty: preset and start time
    folder: str = "runs"  # where run folders go; inside a Ray job a relative path is taken from the home directory
    seed: int = 0


@dataclass
class ModelConfig:
    path: str = MISSING  # Hugging Face folder or name
    dtype: str = "bfloat16"  # of the weights in generators and learners: float32 or bfloat16
    attention: str = "packed_sdpa"  # of the learner: packed_sdpa (any device) or flash_attention_2 (GPU, if installed)
    trust_remote_code: bool = False


@dataclass
class DataConfig:
    """Where the problems of a training run come from; they are shuffled anew in every pass, by run.seed."""

    source: str = "file"  # synthetic, or file (the sample schema of pipeline/problems.py)
    path: str = ""  # file: samples as JSON lines or parquet, or a folder of such files, as jobs.prepare makes them
    max_bad_share: float = 0.05  # more quarantined rows than this share stop the run
    synthetic_chunks: int = 8  # synthetic: chunks in a document


@dataclass
class AgentConfig:
    prompt_template: str = "memagent"  # a name in pipeline/prompts.py
    window: int = 8192  # tokens: prompt and response of any one conversation fit in this
    problem_tokens: int = 1024  # longest question
    chunk_tokens: int = 5000  # the document is cut at multiples of this
    memory_tokens: int = 1024  # generation limit of a memory conversation
    answer_tokens: int = 1024  # generation limit of the answer conversation


@dataclass
class GeneratorConfig:
    count: int = 1  # actors, one vLLM engine each; as many of them as the cluster has room for
    min_count: int = 1  # with fewer the job waits
    num_cpus: float = 1.0  # per actor, as Ray counts them
    num_gpus: float = 0.0  # per actor
    tensor_parallel: int = 1  # GPUs of one engine
    max_sequences: int = 256  # conversations decoded together
    kv_cache_gib: float = 1.0  # CPU engines: size of the KV cache
    gpu_memory_share: float = 0.9  # GPU engines: share of the device for weights and KV cache
    enforce_eager: bool = False  # do not compile; right for CPU engines and small models
    timeout_s: float = 3600.0  # a group, or in an evaluation a response, that takes longer has failed
    stall_s: float = 300.0  # an engine whose loop stands still for so long is replaced
    drain_s: float = 30.0  # that conversations have to end when their node is to go


@dataclass
class ScorerConfig:
    count: int = 1  # actors; as many of them as the cluster has room for
    min_count: int = 1  # with fewer the job does not begin
    num_cpus: float = 0.1  # per actor
    timeout_s: float = 60.0  # for one whole group


@dataclass
class LearnerConfig:
    ranks: int = 2
    min_ranks: int = 1  # reinforcement learning starts again with fewer ranks, down to this, when nodes are lost
    wait_s: float = 120.0  # for room for so many ranks, before it tries fewer
    stall_s: float = 1800.0  # learners that make no progress for so long are started again
    num_cpus: float = 1.0  # per rank
    num_gpus: float = 0.0  # per rank
    micro_batch_tokens: int = 8192  # tokens of one forward pass on one rank; at least agent.window
    optimizer: str = "adamw"  # adamw, or muon for the layers' matrices and AdamW for the other parameters
    learning_rate: float = 1e-6  # of AdamW
    muon_learning_rate: float = 0.02
    schedule: str = "constant"  # of the learning rate after the warm-up: constant, or cosine down to 0 at the end
    decay_share: float = 1.0  # cosine: over this last share of the optimizer steps; before, it is constant
    warmup_steps: int = 20  # optimizer steps
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0  # longer gradients are cut to this; 0: they are not, which Muon asks for
    activation_checkpointing: bool = False  # keep only the layers' inputs and compute the rest again: less memory
    offload: bool = False  # GPU: keep the optimizer state in host memory
    bucket_mib: int = 64  # size of a weight bucket on its way to the generators


@dataclass
class ObjectiveConfig:
    """What is maximised; docs/objective.md has the formulas and their papers."""

    # mean: reward less the group's mean; std: also divided by the std; leave_one_out: less the others' mean;
    # reward: the reward itself, which is fine-tuning on successful episodes; none: 0, a control
    advantage: str = "mean"
    clip_low: float = 0.2  # ε below 1
    clip_high: float = 0.2  # ε above 1; DAPO's clip-higher is 0.28
    dual_clip: float = 3.0  # a bad token's loss grows no further than at this ratio
    kl_coefficient: float = 0.0  # β of the KL to the initial model; 0 loads no reference model
    entropy_coefficient: float = 0.0  # bonus for entropy, below 0 a penalty; it is reported in any case
    # how an episode counts in the entropy term: one, or reward: by its reward, so that a penalty is on what succeeded
    entropy_weight: str = "one"
    decoupled: bool = True  # clip around the learner's policy of the step's start; false: around the sampling policy
    importance_cap: float = 2.0  # decoupled: limit of the weight (policy of the step's start) / (sampling policy)
    overlong_penalty: float = 0.0  # taken off the reward when all responses reach their limit; 0: no such shaping
    overlong_share: float = 0.2  # the last part of a response's limit, in which the penalty grows from 0 to all of it


@dataclass
class TrainConfig:
    steps: int = 100  # learner steps: each trains the groups of one rollout batch and makes one weight version
    groups_per_step: int = 128  # problems
    updates_per_step: int = 1  # optimizer steps over disjoint sets of a step's groups
    group_size: int = 16  # episodes of one problem
    method: str = "memory"  # how a document is read: a name in pipeline/agents, or module:class
    temperature: float = 1.0  # of sampling
    dynamic_sampling: bool = False  # do not train groups whose rewards are all equal; generate others instead
    max_discarded: float = 10.0  # dynamic sampling: at most so many times groups_per_step a step, then they are trained
    max_staleness: int = 1  # versions; 0 is synchronous
    max_skipped_updates: int = 3  # stop after so many updates in a row whose loss or gradient was not finite
    mismatch_warning: float = 0.1  # warn when vLLM's and the learner's log-probs differ more than this on average
    max_attempts: int = 3  # a problem whose group failed this often is given up and counted
    max_failed_share: float = 0.5  # stop when more than this share of all dispatched groups failed
    seeded_sampling: bool = False  # a seed for each response: with max_staleness=0 a run can be repeated
    checkpoint_every: int = 50  # steps; the last step is always kept
    checkpoint_folder: str = (
        ""  # a folder that all nodes share, or a URI (s3, gs, …), which gets one for each run.name;
    )
    # empty: in the run's folder
    keep_last: int = 3  # checkpoints
    keep_best: int = 1  # those with the best mean reward of the steps before them
    episodes_every: int = 10  # steps between samples of episodes to read, in the run's folder and in wandb
    episodes_shown: int = 4  # in one sample
    evaluation: str = "none"  # of the model before and after a completed run: arguments of jobs.evaluate; none: off


@dataclass
class WandbConfig:
    project: str = "palimpsest"
    entity: str = ""
    mode: str = "auto"  # auto (online with an API key, offline without), online, offline, disabled


@dataclass
class GenerationConfig:
    """What every job with generators has."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass
class Config(GenerationConfig):
    """Of a training run."""

    resume: str = "no"  # auto: go on from the newest good checkpoint of run.name, or begin if there is none

    data: DataConfig = field(default_factory=DataConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


Schema = TypeVar("Schema")


def load_config(arguments: list[str], schema: type[Schema] = Config) -> Schema:
    """Resolve `preset=<name> key=value …` to a typed configuration, of a training run unless `schema` is another one.

    A schema with a `run` gets a name for it where none is given: the preset and the time.

    Raises:
        ConfigError: no such preset, an unknown key (the nearest valid one is named), or a value of the wrong type.
    """
    if bad := [a for a in arguments if "=" not in a]:
        raise ConfigError(f"arguments are key=value; got {', '.join(map(repr, bad))}")
    presets = [a.partition("=")[2] for a in arguments if a.startswith("preset=")]
    overrides = [a for a in arguments if not a.startswith("preset=")]
    config = OmegaConf.structured(schema)
    for preset in presets:
        *bases, (name, layer) = _layers(preset)
        for base_name, base in bases:  # one of another job gives what this one knows: the model, the lengths
            config = _merge(schema, config, _known(schema, base), f"configs/{base_name}.yaml")
        config = _merge(schema, config, layer, f"configs/{name}.yaml")
    for override in overrides:
        try:
            config = _merge(schema, config, OmegaConf.from_dotlist([override]), override)
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError(f"{override}: {_first_line(error)}") from None
    if missing := OmegaConf.missing_keys(config):
        presets = preset_names(schema)
        or_preset = f" (or choose a preset: {', '.join(presets)})" if presets else ""
        raise ConfigError(f"set {', '.join(sorted(missing))}{or_preset}")
    if "run" in config and not config.run.name:
        config.run.name = "-".join([*presets, time.strftime("%Y%m%d-%H%M%S")])
    return OmegaConf.to_object(config)


def preset_names(schema: type = Config) -> list[str]:
    """The presets of a job, which are those whose values its schema knows."""
    valid = {*_keys(schema), "preset"}
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if valid.issuperset(_paths(OmegaConf.load(path))))


def save_config(config: object, path: Path) -> None:
    OmegaConf.save(OmegaConf.structured(config), path)


def config_yaml(config: object) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def defaults_yaml(schema: type) -> str:
    """All keys of a job with their defaults; ??? is what has to be given."""
    return OmegaConf.to_yaml(OmegaConf.structured(schema))


def _layers(preset: str) -> list[tuple[str, DictConfig]]:
    """The preset and, before it, the preset that it says it builds on (`preset: <name>` in its file)."""
    layer = OmegaConf.load(_preset_path(preset))
    base = layer.pop("preset", None)
    return [*(_layers(base) if base else []), (preset, layer)]


def _preset_path(name: str) -> Path:
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
        raise ConfigError(f"no preset {name!r}{_nearest(name, names)}; there are: {', '.join(names)}")
    return path


def _merge(schema: type, config: DictConfig, layer: DictConfig, where: str) -> DictConfig:
    valid = list(_keys(schema))
    for key in _paths(layer):
        if key not in valid:
            raise ConfigError(f"{where}: unknown key {key!r}{_nearest(key, valid)}")
    try:
        return OmegaConf.merge(config, layer)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {_first_line(error)}") from None


def _known(schema: type, layer: DictConfig) -> DictConfig:
    """The values of a layer that the schema has."""
    known = OmegaConf.create({})
    for key in set(_keys(schema)).intersection(_paths(layer)):
        OmegaConf.update(known, key, OmegaConf.select(layer, key))
    return known


def _keys(schema: type, prefix: str = ""):
    """The dotted names of all values of the schema."""
    for f in dataclasses.fields(schema):
        if dataclasses.is_dataclass(f.type):
            yield from _keys(f.type, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name


def _paths(layer: DictConfig, prefix: str = ""):
    """The dotted names of all values that a layer sets."""
    if not isinstance(layer, DictConfig):
        yield prefix.rstrip(".")
        return
    for name, value in layer.items():
        if isinstance(value, DictConfig):
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _nearest(name: str, names: list[str]) -> str:
    """A suggestion: the name most like this one, its last part counting most."""
    same_end = [n for n in names if n.rpartition(".")[2] == name.rpartition(".")[2]]
    near = same_end or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not near:
        ends = {n.rpartition(".")[2]: n for n in names}
        near = [ends[e] for e in difflib.get_close_matches(name.rpartition(".")[2], list(ends), n=1, cutoff=0.5)]
    return f"; did you mean {near[0]!r}?" if near else ""


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
