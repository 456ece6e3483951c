"""The configuration of `jobs.serve`."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.asking.config import AskedModel, newest_learned, use_trained_agent
from pipeline.config import load_config
from pipeline.private_files import user_folder
from pipeline.rules import check_rules, one_of, positive
from pipeline.run.checkpoints import MODEL
from pipeline.sections import AgentSection, GenerationConfig, GeneratorSection, ModelSection, from_repository


@dataclass
class ReplicaSection:
    """Replicas of the engine. Ray Serve starts and ends them between the two numbers as questions come."""

    min: int = 1  # least replicas
    max: int = 1  # most replicas
    conversations: int = 8  # autoscaling: conversations in flight per replica to aim at
    num_cpus: float = 1.0  # Ray CPUs per replica
    num_gpus: int = 0  # GPUs per replica; tensor_parallel, or 0 on CPUs
    tensor_parallel: int = 1  # GPUs per replica
    max_sequences: int = 64  # most conversations decoded together in one engine
    kv_cache_gib: float = 1.0  # CPU: size of the KV cache in GiB
    gpu_memory_share: float = 0.9  # GPU: share of its memory for weights and KV cache
    enforce_eager: bool = False  # do not compile the model; best on CPUs and for small models
    timeout_s: float = 600.0  # a response that takes longer fails, in seconds


@dataclass
class LimitSection:
    """What one key may use. More is refused with the status 413 or 429."""

    file_mib: int = 512  # most MiB of a file, and of a request's body
    files: int = 1000  # most files of a key at once
    files_mib: int = 10_240  # most MiB of a key's files together
    upload_s: float = 900.0  # a request whose body takes longer to arrive is refused, in seconds
    parse_s: float = 300.0  # most seconds of parsing a PDF, HTML or DOCX file
    readings: int = 16  # readings of a key at once
    all_readings: int = 64  # readings of all keys at once
    reading_s: float = 3600.0  # a reading that takes longer ends with an error, in seconds
    responses: int = 1000  # most finished responses that are kept for a key
    keep_s: float = 86_400.0  # files and responses are removed this many seconds after their last use


@dataclass
class ServeSection:
    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0: every network of this machine
    port: int = 8000  # port to listen on
    name: str = ""  # the model's name in the interface; empty: the last part of model.path, of a checkpoint its run
    folder: str = ""  # folder of keys and files; empty: palimpsest/serve in $XDG_STATE_HOME, by default ~/.local/state
    urls: bool = False  # fetch files from URLs that a request names (input_file with file_url)
    temperature: float = 0.7  # sampling temperature of a request without one; 0: the likeliest token
    top_p: float = 0.95  # of a request without one: sample from the likeliest tokens whose probabilities sum to this
    seed: int = 0  # of the engines
    replicas: ReplicaSection = field(default_factory=ReplicaSection)
    limits: LimitSection = field(default_factory=LimitSection)


@dataclass
class ServeConfig:
    model: AskedModel = field(default_factory=AskedModel)
    agent: AgentSection = field(default_factory=AgentSection)
    serve: ServeSection = field(default_factory=ServeSection)


def load_serve_config(arguments: list[str]) -> ServeConfig:
    """Resolve `key=value` arguments.

    A model that was trained here reads with the lengths and prompts of its training, unless a preset is named.

    Raises:
        ConfigError: an argument or a combination of arguments is wrong, or there is no model.
    """
    config = load_config(arguments, ServeConfig)
    _check(config)
    config.model.path = from_repository(config.model.path or newest_learned())
    config.serve.folder = str(serve_folder(config))  # actors may have another environment
    use_trained_agent(config, arguments)
    return config


def model_name(config: ServeConfig) -> str:
    """The model's name in the interface."""
    parts = [part for part in Path(config.model.path).parts if part not in ("/", MODEL)]
    is_checkpoint = len(parts) > 2 and parts[-2] == "checkpoints"  # <run>/checkpoints/<step>
    return config.serve.name or parts[-3 if is_checkpoint else -1]


def serve_folder(config: ServeConfig) -> Path:
    """The folder of keys and files."""
    if config.serve.folder:
        return Path(config.serve.folder).expanduser()
    return user_folder("XDG_STATE_HOME", ".local/state") / "serve"


def serving_engine_config(config: ServeConfig) -> GenerationConfig:
    """The configuration of a replica's engine."""
    r = config.serve.replicas
    generator = GeneratorSection(
        num_gpus=float(r.num_gpus),
        tensor_parallel=r.tensor_parallel,
        max_sequences=r.max_sequences,
        kv_cache_gib=r.kv_cache_gib,
        gpu_memory_share=r.gpu_memory_share,
        enforce_eager=r.enforce_eager,
        timeout_s=r.timeout_s,
    )
    model = ModelSection(config.model.path, config.model.dtype, config.model.trust_remote_code)
    made = GenerationConfig(model=model, agent=config.agent, generator=generator)
    made.complete()
    return made


def _check(config: ServeConfig) -> None:
    s, r, m = config.serve, config.serve.replicas, config.serve.limits
    sizes = [(f"serve.limits.{key}", value) for key, value in vars(m).items()]
    sizes += [
        (f"serve.replicas.{key}", getattr(r, key))
        for key in ("min", "max", "conversations", "tensor_parallel", "max_sequences", "kv_cache_gib", "timeout_s")
    ]
    check_rules(
        one_of(config, "model", "dtype", ("auto", "float32", "bfloat16")),
        positive(config, "agent", "window", "problem_tokens", "chunk_tokens", "memory_tokens", "answer_tokens"),
        [
            *((value > 0, f"{key}={value} must be above 0") for key, value in sizes),
            (0 < s.port < 65_536, f"serve.port={s.port} must be from 1 to 65535"),
            (0 < s.top_p <= 1, f"serve.top_p={s.top_p} must be above 0 and at most 1"),
            (s.temperature >= 0, f"serve.temperature={s.temperature} must be at least 0"),
            (r.min <= r.max, f"serve.replicas.min={r.min} is above serve.replicas.max={r.max}"),
            (r.num_cpus >= 0, f"serve.replicas.num_cpus={r.num_cpus} must be at least 0"),
            (0 < r.gpu_memory_share <= 1, f"serve.replicas.gpu_memory_share={r.gpu_memory_share} must be from 0 to 1"),
            (
                r.num_gpus == r.tensor_parallel or (r.num_gpus == 0 and r.tensor_parallel == 1),
                f"serve.replicas.num_gpus={r.num_gpus} must equal serve.replicas.tensor_parallel={r.tensor_parallel}",
            ),
            (m.readings <= m.all_readings, "serve.limits.readings is above serve.limits.all_readings"),
            (not s.folder or Path(s.folder).expanduser().is_absolute(), f"serve.folder={s.folder} is relative"),
            (":" not in s.name and "/" not in s.name, f"serve.name={s.name} must not contain : or /"),
        ],
    )
