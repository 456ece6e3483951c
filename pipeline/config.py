"""The configuration: its schema, and where it comes from. pipeline/rules.py checks it.

A value is taken from the command line (`key=value`), else from the preset (`configs/<preset>.yaml`), else from
the defaults here. Units are in the comments. Numbers are finite and in range (pipeline/number_ranges.py), no text
holds credentials (pipeline/credentials.py), and `${…}` is resolved only with `interpolation=yes`.
"""

import contextlib
import dataclasses
import difflib
import itertools
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, get_origin

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.credentials import INSTEAD, has_credentials, without_credentials
from pipeline.dtype import chosen_dtype
from pipeline.number_ranges import number_faults

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
UNRESOLVED = re.compile(r"(?<!\\)(\\\\)*\$\{")  # a backslash before it takes its meaning, two are one that does not
# What the libraries raise for values that they cannot read or convert.
UNREADABLE = (OmegaConfBaseException, yaml.YAMLError, ValueError, OverflowError, RecursionError)
SHOWN = 200  # characters of a value, in a message
INTERPOLATION = "interpolation"  # on the command line, beside the keys of the schema


class ConfigError(ValueError):
    """The configuration cannot work. The message lists everything that is wrong and what to do."""

    def __init__(self, message: str):
        super().__init__(without_credentials(message))


@dataclass
class RunConfig:
    name: str = ""  # folder name; empty: preset and start time
    folder: str = "runs"  # where run folders go; inside a Ray job a relative path is taken from the home directory
    seed: int = 0


@dataclass
class ModelConfig:
    path: str = MISSING  # Hugging Face folder or name
    # of the weights in generators and learners: float32, bfloat16, or auto, which load_config replaces by bfloat16 on
    # GPUs and on CPUs that compute it (avx512_bf16, AMX), else by float32
    dtype: str = "auto"
    attention: str = "packed_sdpa"  # of the learner: packed_sdpa (any device) or flash_attention_2 (GPU, if installed)
    trust_remote_code: bool = False


@dataclass
class RowLimits:
    """The most that a row of data may hold. A larger one is quarantined: it is malformed, or meant to do harm."""

    row_bytes: int = 2**29  # a line of a JSON-lines file, or a parquet row in memory
    question_characters: int = 1_000_000
    id_characters: int = 1000
    answers: int = 10_000
    answer_characters: int = 100_000  # each
    metadata_characters: int = 1_000_000  # as JSON
    metadata_depth: int = 32  # objects and lists within one another


@dataclass
class DataConfig:
    """Where the problems of a training run come from; they are shuffled anew in every pass, by run.seed."""

    source: str = "file"  # synthetic, or file (the sample schema of pipeline/problems.py)
    path: str = ""  # file: samples as JSON lines or parquet, or a folder of such files, as jobs.prepare makes them
    max_bad_share: float = 0.05  # more quarantined rows than this share stop the run
    limits: RowLimits = field(default_factory=RowLimits)
    passage_folders: list[str] = field(default_factory=list)  # where passage files may be, beside the samples' folder
    synthetic_chunks: int = 8  # synthetic: chunks in a document


@dataclass
class AgentConfig:
    prompt_template: str = "memagent"  # a name in configs/prompts, or the path of such a file
    window: int = 8192  # tokens: prompt and response of any one conversation fit in this
    problem_tokens: int = 1024  # longest question
    document_tokens: int = 32_000_000  # longest document; a longer one is quarantined
    document_characters: int = 100_000_000  # the same in characters, counted before passages are put together
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
class ScoringConfig:
    # Scorers of your own, name: module:function. A row's `task` may be one of these names, or a built-in one.
    modules: dict[str, str] = field(default_factory=dict)


@dataclass
class ScorerConfig(ScoringConfig):
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

    A schema with a `run` gets a name for it where none is given: the preset and the time. One with a `model` gets its
    dtype, where that is auto. `interpolation=yes` resolves `${…}` in values.

    Raises:
        ConfigError: no such preset, an unknown key (the nearest valid one is named), a value of the wrong type, a
            number that is not finite or out of range, or a text with credentials.
    """
    if bad := [a for a in arguments if "=" not in a]:
        raise ConfigError(f"arguments are key=value; got {', '.join(repr(_shown(a)) for a in bad)}")
    if bad := [a for a in arguments if not _is_unicode(a)]:
        raise ConfigError(f"arguments are UTF-8 text; got {', '.join(ascii(_shown(a)) for a in bad)}")
    config = OmegaConf.structured(schema)
    given = {name: [] for name in ("preset", INTERPOLATION) if name not in config}  # a schema may have a preset itself
    for argument in arguments:
        key, _, value = argument.partition("=")
        given.get(key, []).append(value)
    presets, resolve = given.get("preset", []), _interpolation(given[INTERPOLATION])
    overrides = [a for a in arguments if a.partition("=")[0] not in given]
    for preset in presets:
        *bases, (name, layer) = _layers(preset)
        for base_name, base in bases:  # one of another job gives what this one knows: the model, the lengths
            where = f"configs/{base_name}.yaml"
            _check_interpolation(base, where, resolve)
            config = _merge(schema, config, _known(schema, base), where, resolve)
        config = _merge(schema, config, layer, f"configs/{name}.yaml", resolve)
    for override in overrides:
        try:
            layer = OmegaConf.from_dotlist([override])
        except UNREADABLE as error:
            raise ConfigError(f"{_shown(override)}: {_first_line(error)}") from None
        config = _merge(schema, config, layer, _shown(override), resolve)
    if missing := OmegaConf.missing_keys(config):
        presets = preset_names(schema)
        or_preset = f" (or choose a preset: {', '.join(presets)})" if presets else ""
        raise ConfigError(f"set {', '.join(sorted(missing))}{or_preset}")
    if "run" in config and not config.run.name:
        config.run.name = "-".join([*presets, time.strftime("%Y%m%d-%H%M%S")])
    try:
        made = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        raise ConfigError(_first_line(error)) from None
    if faults := [*number_faults(made), *_text_faults(made)]:
        raise ConfigError("\n".join(faults))
    if "model" in config:
        made.model.dtype = chosen_dtype(made)
    return made


def preset_names(schema: type = Config) -> list[str]:
    """The presets of a job, which are those whose values its schema knows."""
    valid = {*_keys(schema), "preset"}
    found = []
    for path in CONFIGS.glob("*.yaml"):
        with contextlib.suppress(ConfigError):  # said when it is chosen
            found += [path.stem] * all(_is_known(key, valid) for key in _paths(_read_layer(path.stem)))
    return sorted(found)


def save_config(config: object, path: Path) -> None:
    OmegaConf.save(OmegaConf.structured(config), path)


def config_yaml(config: object) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def defaults_yaml(schema: type) -> str:
    """All keys of a job with their defaults; ??? is what has to be given."""
    return OmegaConf.to_yaml(OmegaConf.structured(schema))


def _layers(preset: str, above: tuple[str, ...] = ()) -> list[tuple[str, DictConfig]]:
    """The preset and, before it, the preset that it says it builds on (`preset: <name>` in its file)."""
    if preset in above:
        raise ConfigError(f"configs/{preset}.yaml builds on itself: {' → '.join([*above, preset])}")
    layer = _read_layer(preset)
    base = _as_written(layer).get("preset")
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"configs/{preset}.yaml: preset must be the name of one preset")
    layer = OmegaConf.masked_copy(layer, [key for key in layer if key != "preset"])
    return [*(_layers(base, (*above, preset)) if base else []), (preset, layer)]


def _read_layer(preset: str) -> DictConfig:
    """The values of a preset's file. Raises `ConfigError`."""
    try:
        layer = OmegaConf.load(_preset_path(preset))
    except ConfigError:
        raise
    except (OSError, *UNREADABLE) as error:
        raise ConfigError(f"configs/{_shown(preset)}.yaml cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(layer, DictConfig):
        raise ConfigError(f"configs/{preset}.yaml is a list; sections with keys and values are wanted")
    return layer


def _preset_path(name: str) -> Path:
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
        raise ConfigError(f"no preset {_shown(name)!r}{_nearest(name, names)}; there are: {', '.join(names)}")
    return path


def _interpolation(values: list[str]) -> bool:
    if wrong := [value for value in values if value not in ("yes", "no")]:
        raise ConfigError(f"{INTERPOLATION}={wrong[0]} must be yes or no")
    return values[-1:] == ["yes"]


def _merge(schema: type, config: DictConfig, layer: DictConfig, where: str, resolve: bool) -> DictConfig:
    valid = list(_keys(schema))
    try:
        for key in _paths(layer):
            if not _is_known(key, valid):
                raise ConfigError(f"{where}: unknown key {_shown(key)!r}{_nearest(key, valid)}")
        _check_interpolation(layer, where, resolve)
        return OmegaConf.merge(config, layer)
    except ConfigError:
        raise
    except UNREADABLE as error:
        said = _first_line(error)
        for text in _texts(_as_written(layer)):  # it may hold a password with blanks
            said = said.replace(text, _shown(text))
        raise ConfigError(f"{where}: {said}") from None


def _check_interpolation(layer: DictConfig, where: str, resolve: bool) -> None:
    """Raise a `ConfigError` if a value of the layer is to be resolved though that was not asked for."""
    if not resolve and (found := _interpolated(_as_written(layer))):
        raise ConfigError(
            f"{where}: ${{…}} in {found} is not resolved; write the value itself, or add {INTERPOLATION}=yes"
        )


def _interpolated(layer: object, name: str = "") -> str:
    """The name of a value with an interpolation; empty if there is none."""
    if isinstance(layer, str):
        return name if UNRESOLVED.search(layer) else ""
    pairs = layer.items() if isinstance(layer, dict) else enumerate(layer) if isinstance(layer, list) else ()
    found = (_interpolated(value, f"{name}.{key}" if name else str(key)) for key, value in pairs)
    return next(filter(None, found), "")


def _text_faults(config: object, prefix: str = "") -> Iterator[str]:
    """One line for each value of a configuration with a text that holds credentials or is not valid Unicode."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from _text_faults(value, f"{prefix}{f.name}.")
            continue
        texts = list(_texts(value))
        if any(map(has_credentials, texts)):
            yield f"{prefix}{f.name} holds credentials in a URI; {INSTEAD}"
        if not all(map(_is_unicode, texts)):
            yield f"{prefix}{f.name} is not valid Unicode: it holds half of a surrogate pair"


def _texts(value: object) -> Iterator[str]:
    """All texts in a value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from itertools.chain.from_iterable(map(_texts, [*value.keys(), *value.values()]))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(_texts, value))


def _is_unicode(text: str) -> bool:
    """Whether no byte of it could not be read as UTF-8, and no half of a surrogate pair is in it."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(text: str) -> str:
    """A value as it is shown in a message: without credentials, and not all of a long one."""
    text = without_credentials(text, whole=True)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _known(schema: type, layer: DictConfig) -> DictConfig:
    """The values of a layer that the schema has."""
    known = OmegaConf.create({})
    valid = list(_keys(schema))
    for key in _paths(layer):
        if _is_known(key, valid):
            OmegaConf.update(known, key, OmegaConf.select(layer, key))
    return known


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    """The dotted names of all values of the schema; `name.*` for a mapping, whose keys are the user's."""
    for f in dataclasses.fields(schema):
        if dataclasses.is_dataclass(f.type):
            yield from _keys(f.type, f"{prefix}{f.name}.")
        elif get_origin(f.type) is dict:
            yield f"{prefix}{f.name}.*"
        else:
            yield prefix + f.name


def _is_known(key: str, valid: Iterable[str]) -> bool:
    return key in valid or f"{key.rpartition('.')[0]}.*" in valid or f"{key}.*" in valid


def _paths(layer: DictConfig) -> list[str]:
    """The dotted names of all values that a layer sets."""
    return list(_paths_of(_as_written(layer)))


def _paths_of(layer: dict, prefix: str = "") -> Iterator[str]:
    for name, value in layer.items():
        if isinstance(value, dict):
            yield from _paths_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _as_written(layer: DictConfig) -> dict:
    """The values of a layer, with nothing resolved."""
    return OmegaConf.to_container(layer, resolve=False)


def _nearest(name: str, names: list[str]) -> str:
    """A suggestion: the name most like this one, its last part counting most."""
    same_end = [n for n in names if n.rpartition(".")[2] == name.rpartition(".")[2]]
    near = same_end or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not near:
        ends = {n.rpartition(".")[2]: n for n in names}
        near = [ends[e] for e in difflib.get_close_matches(name.rpartition(".")[2], list(ends), n=1, cutoff=0.5)]
    return f"; did you mean {near[0]!r}?" if near else ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
