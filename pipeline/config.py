"""The configuration: its schema, where it comes from, and the checks made before anything starts.

A value is taken from the command line (`key=value`), else from the preset (`configs/<preset>.yaml`), else from
the defaults here. Units are in the comments.
"""

import dataclasses
import difflib
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

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
    source: str = "file"  # synthetic, hotpotqa, or file (the schema of pipeline/problems.py)
    path: str = ""  # hotpotqa and file: the questions
    distractors: str = ""  # hotpotqa: JSON lines of {title, text}, further paragraphs to hide the gold ones among
    documents: int = 200  # hotpotqa: paragraphs in a document
    task: str = "qa"  # hotpotqa: the scorer of the questions (pipeline/scoring.py)
    max_bad_share: float = 0.05  # more quarantined rows than this share stop the run
    synthetic_chunks: int = 8  # synthetic: chunks in a document


@dataclass
class AgentConfig:
    entrypoint: str = "pipeline.agents.memory:MemoryAgent"  # module:class
    prompt_template: str = "memagent"  # a name in pipeline/prompts.py
    window: int = 8192  # tokens: prompt and response of any one conversation fit in this
    problem_tokens: int = 1024  # longest question
    chunk_tokens: int = 5000  # the document is cut at multiples of this
    memory_tokens: int = 1024  # generation limit of a memory conversation
    answer_tokens: int = 1024  # generation limit of the answer conversation


@dataclass
class GeneratorConfig:
    count: int = 1  # actors, one vLLM engine each
    num_cpus: float = 1.0  # per actor, as Ray counts them
    num_gpus: float = 0.0  # per actor
    tensor_parallel: int = 1  # GPUs of one engine
    max_sequences: int = 256  # conversations decoded together
    kv_cache_gib: float = 1.0  # CPU engines: size of the KV cache
    gpu_memory_share: float = 0.9  # GPU engines: share of the device for weights and KV cache
    enforce_eager: bool = False  # do not compile; right for CPU engines and small models
    temperature: float = 1.0
    group_timeout_s: float = 3600.0  # a group that takes longer has failed


@dataclass
class ScorerConfig:
    count: int = 1
    num_cpus: float = 0.1  # per actor
    timeout_s: float = 60.0  # for one whole group


@dataclass
class LearnerConfig:
    ranks: int = 2
    num_cpus: float = 1.0  # per rank
    num_gpus: float = 0.0  # per rank
    micro_batch_tokens: int = 8192  # tokens of one forward pass on one rank; at least agent.window
    learning_rate: float = 1e-6
    warmup_steps: int = 20
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0
    offload: bool = False  # GPU: keep the optimizer state in host memory
    bucket_mib: int = 64  # size of a weight bucket on its way to the generators


@dataclass
class TrainConfig:
    steps: int = 100  # learner steps
    groups_per_step: int = 128  # problems
    group_size: int = 16  # episodes of one problem
    max_staleness: int = 1  # versions; 0 is synchronous
    max_attempts: int = 3  # a problem whose group failed this often is given up and counted
    max_failed_share: float = 0.5  # stop when more than this share of all dispatched groups failed
    checkpoint_every: int = 50  # steps; the last step is always kept


@dataclass
class WandbConfig:
    project: str = "palimpsest"
    entity: str = ""
    mode: str = "auto"  # auto (online with an API key, offline without), online, offline, disabled
    episodes_every: int = 10  # steps between tables of sampled episodes
    episodes: int = 4  # episodes in one table


@dataclass
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


def load_config(arguments: list[str]) -> Config:
    """Resolve `preset=<name> key=value …` to a typed configuration.

    Raises:
        ConfigError: no such preset, an unknown key (the nearest valid one is named), or a value of the wrong type.
    """
    if bad := [a for a in arguments if "=" not in a]:
        raise ConfigError(f"arguments are key=value; got {', '.join(map(repr, bad))}")
    presets = [a.partition("=")[2] for a in arguments if a.startswith("preset=")]
    overrides = [a for a in arguments if not a.startswith("preset=")]
    config = OmegaConf.structured(Config)
    for preset in presets:
        config = _merge(config, OmegaConf.load(_preset_path(preset)), f"configs/{preset}.yaml")
    for override in overrides:
        try:
            config = _merge(config, OmegaConf.from_dotlist([override]), override)
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError(f"{override}: {_first_line(error)}") from None
    if missing := OmegaConf.missing_keys(config):
        raise ConfigError(f"set {', '.join(sorted(missing))} (or choose a preset: {', '.join(preset_names())})")
    if not config.run.name:
        config.run.name = "-".join([*presets, time.strftime("%Y%m%d-%H%M%S")])
    return OmegaConf.to_object(config)


def preset_names() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def save_config(config: Config, path: Path) -> None:
    OmegaConf.save(OmegaConf.structured(config), path)


def config_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _preset_path(name: str) -> Path:
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"no preset {name!r}{_nearest(name, preset_names())}; there are: {', '.join(preset_names())}")
    return path


def _merge(config: DictConfig, layer: DictConfig, where: str) -> DictConfig:
    valid = list(_keys(Config))
    for key in _paths(layer):
        if key not in valid:
            raise ConfigError(f"{where}: unknown key {key!r}{_nearest(key, valid)}")
    try:
        return OmegaConf.merge(config, layer)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {_first_line(error)}") from None


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


def check_config(config: Config) -> None:
    """Check the rules between fields that need no file and no tokenizer. All that is wrong is reported at once.

    Raises:
        ConfigError: one line for each broken rule.
    """
    wrong = [message for ok, message in _rules(config) if not ok]
    if wrong:
        raise ConfigError("\n".join(wrong))


def _rules(c: Config):
    positive = {
        "data": ("documents",),
        "agent": ("window", "problem_tokens", "chunk_tokens", "memory_tokens", "answer_tokens"),
        "generator": ("count", "tensor_parallel", "max_sequences", "temperature", "group_timeout_s"),
        "scorer": ("count", "timeout_s"),
        "learner": ("ranks", "micro_batch_tokens", "learning_rate", "max_grad_norm", "bucket_mib"),
        "train": ("steps", "groups_per_step", "max_attempts", "checkpoint_every"),
    }
    for section, names in positive.items():
        for name in names:
            value = getattr(getattr(c, section), name)
            yield value > 0, f"{section}.{name}={value} must be greater than 0"
    for section, name in (("data", "max_bad_share"), ("train", "max_failed_share")):
        value = getattr(getattr(c, section), name)
        yield 0 <= value <= 1, f"{section}.{name}={value} is a share, from 0 to 1"
    a, le, t = c.agent, c.learner, c.train
    slots = a.problem_tokens + a.memory_tokens
    yield (
        slots + a.chunk_tokens + a.memory_tokens <= a.window,
        f"agent.window={a.window} cannot hold a memory conversation: problem {a.problem_tokens} + memory "
        f"{a.memory_tokens} + chunk {a.chunk_tokens} + new memory {a.memory_tokens} = "
        f"{slots + a.chunk_tokens + a.memory_tokens}, template not counted; lower agent.chunk_tokens or raise "
        "agent.window",
    )
    yield (
        slots + a.answer_tokens <= a.window,
        f"agent.window={a.window} cannot hold the answer conversation: problem {a.problem_tokens} + memory "
        f"{a.memory_tokens} + answer {a.answer_tokens}; lower agent.answer_tokens or raise agent.window",
    )
    yield (
        le.micro_batch_tokens >= a.window,
        f"learner.micro_batch_tokens={le.micro_batch_tokens} must be at least agent.window={a.window}, "
        "so that the longest conversation fits one forward pass",
    )
    yield t.group_size >= 2, f"train.group_size={t.group_size} must be at least 2: the group is the baseline"
    yield (
        t.groups_per_step >= le.ranks,
        f"train.groups_per_step={t.groups_per_step} must be at least learner.ranks={le.ranks}: "
        "a group goes to one rank",
    )
    yield t.max_staleness >= 0, f"train.max_staleness={t.max_staleness} must be 0 or more"
    yield le.warmup_steps >= 0, f"learner.warmup_steps={le.warmup_steps} must be 0 or more"
    yield le.weight_decay >= 0, f"learner.weight_decay={le.weight_decay} must be 0 or more"
    yield (
        0 < le.clip_low < 1 and le.clip_high > 0 and le.dual_clip > 1,
        "learner.clip_low must lie in (0, 1), learner.clip_high above 0 and learner.dual_clip above 1",
    )
    yield c.model.dtype in ("float32", "bfloat16"), f"model.dtype={c.model.dtype!r} must be float32 or bfloat16"
    g = c.generator
    yield (
        g.tensor_parallel == 1 or g.num_gpus == g.tensor_parallel,
        f"generator.num_gpus={g.num_gpus} must equal generator.tensor_parallel={g.tensor_parallel}",
    )
    yield (
        c.model.attention in ("packed_sdpa", "flash_attention_2"),
        f"model.attention={c.model.attention!r} must be packed_sdpa or flash_attention_2",
    )
    yield (
        c.wandb.mode in ("auto", "online", "offline", "disabled"),
        f"wandb.mode={c.wandb.mode!r} must be auto, online, offline or disabled",
    )
    yield (
        c.data.source in ("synthetic", "hotpotqa", "file"),
        f"data.source={c.data.source!r} must be synthetic, hotpotqa or file",
    )
    yield (
        c.data.synthetic_chunks >= 2,
        f"data.synthetic_chunks={c.data.synthetic_chunks} must be at least 2: the two hops lie in different chunks",
    )
    yield c.data.source == "synthetic" or c.data.path != "", f"set data.path: data.source={c.data.source} reads a file"
    yield (
        re.fullmatch(r"\w[\w.-]*", c.run.name) is not None,
        f"run.name={c.run.name!r} may hold letters, digits, '.', '_' and '-', and begins with neither '.' nor '-'",
    )


def check_window(config: Config, longest_update: int, longest_answer: int, positions: int | None) -> None:
    """Check the window budget with the template counted in.

    Args:
        config: the configuration.
        longest_update: tokens of the longest prompt of a memory conversation (pipeline/prompts.py).
        longest_answer: tokens of the longest prompt of the answer conversation.
        positions: what the model's own config allows, if it says.

    Raises:
        ConfigError: a conversation would not fit.
    """
    a = config.agent
    needed = max(longest_update + a.memory_tokens, longest_answer + a.answer_tokens)
    if needed > a.window:
        raise ConfigError(
            f"agent.window={a.window} is too small: with the prompt template the longest conversation has {needed} "
            f"tokens; lower agent.chunk_tokens by {needed - a.window} or raise agent.window"
        )
    if positions is not None and a.window > positions:
        raise ConfigError(f"agent.window={a.window} is over the model's {positions} positions ({config.model.path})")
