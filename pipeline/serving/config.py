"""The configuration of `jobs.serve`."""

from dataclasses import dataclass, field

from pipeline.asking.config import AskedModel
from pipeline.sections import AgentSection


@dataclass
class ReplicaSection:
    """Replicas of the engine. Ray Serve starts and ends them between the two numbers as questions come."""

    min: int = 1  # least replicas
    max: int = 1  # most replicas
    conversations: int = 8  # autoscaling: conversations in flight per replica to aim at
    num_cpus: float = 1.0  # Ray CPUs per replica
    num_gpus: float = 0.0  # Ray GPUs per replica; with tensor_parallel above 1, of each of its devices
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
    name: str = ""  # the model's name in the interface; empty: the last part of model.path
    folder: str = ""  # folder of keys and files; empty: palimpsest/serve in $XDG_STATE_HOME, by default ~/.local/state
    urls: bool = False  # fetch files from URLs that a request names (input_file with file_url)
    temperature: float = 0.7  # sampling temperature of a request without one; 0: the likeliest token
    top_p: float = 0.95  # of a request without one: sample from the likeliest tokens whose probabilities sum to this
    replicas: ReplicaSection = field(default_factory=ReplicaSection)
    limits: LimitSection = field(default_factory=LimitSection)


@dataclass
class ServeConfig:
    model: AskedModel = field(default_factory=AskedModel)
    agent: AgentSection = field(default_factory=AgentSection)
    serve: ServeSection = field(default_factory=ServeSection)
