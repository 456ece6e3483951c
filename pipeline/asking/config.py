"""The configuration of a question, and the model that answers it."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from pipeline.asking.characters import in_characters
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.rules import check_rules, one_of, positive
from pipeline.run.checkpoints import MODEL, Checkpoints
from pipeline.sections import AgentSection, GenerationConfig, GeneratorSection, ModelSection, from_repository

LEARNED = Path("runs/learn/rl")  # the run folder of `make learn`'s reinforcement learning
NO_MODEL = """\
there is no model to ask. Choose one:
  make learn                        trains SmolLM2-135M; a later question finds it in {folder}
  make smollm2                      then ask with model=models/smollm2, which is not trained to read with a memory
  model=PATH                        a Hugging Face folder or name, such as runs/<name>/checkpoints/<step>/hf
  --endpoint URL                    any server with OpenAI's interface; its key in OPENAI_API_KEY
  preset=ask_tiny                   the embedded model, which knows only its own language (docs/tiny-model.md)"""


@dataclass
class AskedModel:
    path: str = ""  # Hugging Face folder or name (also model=…); empty: the newest checkpoint of `make learn`
    # dtype of the weights: float32, bfloat16, or auto: bfloat16 on GPUs and on CPUs with bfloat16 instructions
    dtype: str = "auto"
    trust_remote_code: bool = False  # run Python code that comes with the model


@dataclass
class AskSection:
    method: str = "memory"  # memory, direct, concat, or module:class (--method)
    temperature: float = 0.7  # sampling temperature; 0: the likeliest token
    top_p: float = 0.95  # sample from the likeliest tokens whose probabilities sum to this
    seed: int = 0  # seed of the responses: the same question to a local model has the same answer
    endpoint: str = ""  # URL of a server with OpenAI's interface, up to /v1 (--endpoint); empty: a local engine
    endpoint_model: str = ""  # model name at the server (--endpoint-model); empty: the only one it has
    # endpoint: folder or name of the model's tokenizer (--tokenizer), with which prompts are sent as tokens; empty:
    # prompts are sent as text, and lengths in tokens count as three characters each
    tokenizer: str = ""
    timeout_s: float = 600.0  # a response that takes longer is an error, in seconds
    keep: bool = True  # keep finished conversations and the answer, to resume and to answer again (--no-keep: false)
    folder: str = ""  # folder of what is kept; empty: palimpsest/asked in $XDG_CACHE_HOME, by default ~/.cache
    file_mib: int = 1024  # most MiB of a file
    parse_s: float = 300.0  # most seconds of parsing a PDF, HTML or DOCX file
    tensor_parallel: int = 1  # GPUs of the local engine
    kv_cache_gib: float = 1.0  # local engine on a CPU: size of the KV cache in GiB
    gpu_memory_share: float = 0.9  # local engine on a GPU: share of its memory for weights and KV cache


@dataclass
class AskConfig:
    model: AskedModel = field(default_factory=AskedModel)
    agent: AgentSection = field(default_factory=AgentSection)
    ask: AskSection = field(default_factory=AskSection)


def load_ask_config(arguments: list[str]) -> AskConfig:
    """Resolve `key=value` arguments.

    A model that was trained here is asked with the lengths and prompts of its training, unless a preset is named.

    Raises:
        ConfigError: an argument or a combination of arguments is wrong, or there is no model.
    """
    config = load_config(arguments, AskConfig)
    _check(config)
    if config.ask.endpoint:
        if not config.ask.tokenizer:
            config.agent = in_characters(config.agent)
        return config
    if not config.model.path:
        config.model.path = newest_learned()
    config.model.path = from_repository(config.model.path)
    use_trained_agent(config, arguments)
    return config


def newest_learned() -> str:
    """The newest complete checkpoint of `make learn`, as a model folder. Raises `ConfigError` if there is none."""
    checkpoints = Checkpoints(LEARNED / "checkpoints")
    steps = checkpoints.steps()
    if not steps:
        raise ConfigError(NO_MODEL.format(folder=LEARNED))
    return str(Path(checkpoints.folder(steps[0])) / MODEL)


def use_trained_agent(config, arguments: list[str]) -> None:
    """Give a configuration the agent of its model's training, if it was trained here and no preset is named.

    Args:
        config: has `model` and `agent`.
        arguments: those that it was made from; those of the agent still hold.

    Raises:
        ConfigError: the run's config.yaml cannot be read.
    """
    trained = trained_agent(config.model.path)
    if trained and not any(argument.startswith("preset=") for argument in arguments):
        given = [argument for argument in arguments if argument.startswith("agent.")]
        config.agent = load_config([*trained, *given], type(config)).agent


def trained_agent(path: str) -> list[str]:
    """The agent's settings in the run that trained a model, as arguments.

    Empty if the model is no checkpoint of a run, or the run had no agent, as in fine-tuning.

    Raises:
        ConfigError: the run's config.yaml cannot be read.
    """
    folder = Path(path).resolve()
    file = folder.parents[2] / "config.yaml" if len(folder.parents) > 2 else folder
    if folder.name != MODEL or folder.parents[1].name != "checkpoints" or not file.is_file():
        return []
    try:
        agent = yaml.safe_load(file.read_bytes()).get("agent", {})
        return [f"agent.{key}={_written(value)}" for key, value in agent.items()]
    except (OSError, yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{file}: the settings of the model's training cannot be read: {error}") from None


def unlike_training(path: str, agent: AgentSection) -> list[str]:
    """The settings of a model's training that decide what it was taught to read, where an agent has others."""
    taught = [f"agent.{key}=" for key in ("prompt_template", "chunk_tokens", "memory_tokens")]
    same = {f"agent.{key}={_written(value)}" for key, value in asdict(agent).items()}
    return [setting for setting in trained_agent(path) if setting.startswith(tuple(taught)) and setting not in same]


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def engine_config(config: AskConfig, gpus: int) -> GenerationConfig:
    """The configuration of a local engine on so many GPUs; 0: on the CPU."""
    model = ModelSection(config.model.path, config.model.dtype, config.model.trust_remote_code)
    generator = GeneratorSection(
        num_gpus=float(gpus),
        tensor_parallel=config.ask.tensor_parallel,
        kv_cache_gib=config.ask.kv_cache_gib,
        gpu_memory_share=config.ask.gpu_memory_share,
        max_sequences=16,  # as many as `concat` has open at once
        enforce_eager=not gpus,
        timeout_s=config.ask.timeout_s,
    )
    made = GenerationConfig(model=model, agent=config.agent, generator=generator)
    made.complete()
    return made


def fingerprint(path: str) -> list[Any]:
    """Identifies the weights of a model: its name, and the name, size and time of each file of its folder."""
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache  # imported late: most models are folders

        found = try_to_load_from_cache(path, "config.json")
        if not isinstance(found, str):
            return [path]
        folder = Path(found).parent
    files = sorted((file.name, file.stat()) for file in folder.iterdir() if file.is_file())
    return [str(folder.resolve()), *([name, state.st_size, state.st_mtime_ns] for name, state in files)]


def _check(config: AskConfig) -> None:
    a, m = config.ask, config.model
    url = urlsplit(a.endpoint)
    check_rules(
        one_of(config, "model", "dtype", ("auto", "float32", "bfloat16")),
        positive(config, "agent", "window", "problem_tokens", "chunk_tokens", "memory_tokens", "answer_tokens"),
        positive(config, "ask", "timeout_s", "file_mib", "parse_s", "tensor_parallel", "kv_cache_gib"),
        [
            (0 < a.top_p <= 1, f"ask.top_p={a.top_p} must be above 0 and at most 1"),
            (
                not a.endpoint or (url.scheme in ("http", "https") and bool(url.hostname)),
                f"ask.endpoint={a.endpoint} must be a URL such as http://localhost:8000/v1",
            ),
            (not a.endpoint or not m.path, "a question goes to --endpoint or to a local model=…, not to both"),
            (bool(a.endpoint) or not a.endpoint_model, "--endpoint-model needs --endpoint"),
            (bool(a.endpoint) or not a.tokenizer, "--tokenizer needs --endpoint; a local model has its own"),
            (not a.folder or Path(os.path.expanduser(a.folder)).is_absolute(), f"ask.folder={a.folder} is relative"),
        ],
    )
