"""The inputs of a job, checked before anything starts: its model, its agents' windows, its samples, its paths."""

import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.agents import Agent, LongestPrompt, load_agent
from pipeline.agents.window import check_window
from pipeline.config import names_file
from pipeline.data.sample_files import sample_files
from pipeline.end_tokens import end_tokens
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.config import EvaluationData
from pipeline.files import exists
from pipeline.learning.device_memory import FAMILIES
from pipeline.sections import DataSection, GenerationConfig, LearnerSection, ModelSection


def check_model(config: GenerationConfig, methods: Sequence[str]) -> None:
    """The prompt template suits the methods, and their longest conversation fits the window, counted with the model's
    own tokenizer.

    Raises:
        ConfigError: one of these does not hold, or there is no such model, template or method.
    """
    from pipeline.agents.prompts import load_template

    agents = {method: load_agent(method) for method in methods}
    template, named = load_template(config.agent.prompt_template), config.agent.prompt_template
    tokenizer, settings = load_model_files(config.model)
    if template.chat and not tokenizer.chat_template:
        raise ConfigError(f"agent.prompt_template={named} needs a chat template, which {config.model.path} lacks")
    ends = end_tokens(tokenizer)
    vocabulary = max(len(tokenizer), size if type(size := settings.get("vocab_size")) is int else 0)
    if beyond := [token for token in sorted(ends) if token >= vocabulary]:
        raise ConfigError(
            f"model.path={config.model.path}: eos_token_id has {beyond[0]}, and the vocabulary {vocabulary} tokens; "
            "correct generation_config.json or config.json"
        )
    if not ends:
        raise ConfigError(
            f"model.path={config.model.path} names no end-of-sequence token, so that no response would end before its "
            "limit; give its generation_config.json an eos_token_id"
        )
    longest = [prompt for method, agent in agents.items() for prompt in _longest(method, agent, tokenizer, config)]
    check_window(config, list(dict.fromkeys(longest)), settings.get("max_position_embeddings"))  # each prompt once


def check_layers(learner: LearnerSection, settings: dict) -> None:
    """Check that a model has as many layers as learners are to checkpoint. Raises `ConfigError`.

    Args:
        learner: the learner section, already checked.
        settings: the content of the model's config.json.
    """
    named, layers = learner.checkpoint_layers, settings.get("num_hidden_layers")
    if named.isdecimal() and type(layers) is int and int(named) > layers:
        raise ConfigError(
            f"learner.checkpoint_layers={named}, but the model has {layers} layers; all checkpoints them all"
        )


def load_model_files(model: ModelSection) -> tuple[Any, dict]:
    """The model's tokenizer and the content of its config.json. Raises `ConfigError` if they cannot be read."""
    from pipeline.text import load_tokenizer

    try:
        settings = model_settings(model)
        tokenizer = load_tokenizer(model.path, model.trust_remote_code)
    except Exception as error:  # the libraries raise any exception for a malformed file
        first = (str(error).splitlines() or [""])[0]
        said = first if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {first}"
        raise ConfigError(f"model.path={model.path}: {said}") from None
    positions = settings.get("max_position_embeddings")
    if positions is not None and (type(positions) is not int or positions < 1):
        raise ConfigError(f"model.path={model.path}: config.json has max_position_embeddings={positions!r}")
    return tokenizer, settings


def model_settings(model: ModelSection) -> dict:
    """The content of a model's config.json. Raises OSError or ValueError if there is none or it is malformed."""
    check_model_there(model.path)
    file = Path(model.path) / "config.json"
    settings = json.loads(file.read_bytes()) if file.exists() else {}
    if not isinstance(settings, dict):
        raise ValueError(f"config.json is a {type(settings).__name__}, not an object")
    if settings.get("model_type") in FAMILIES and "max_position_embeddings" in settings:
        return settings
    read = model_config(model)  # transformers knows all key names and defaults, but takes seconds to import
    return read.to_dict() | {"max_position_embeddings": getattr(read, "max_position_embeddings", None)}


def check_model_there(path: str) -> None:
    """Raise FileNotFoundError if there is no such model folder and no model on Hugging Face can have this name."""
    names_folder = path.startswith(("/", ".", "~", "models/")) or path.count("/") > 1
    if names_folder and not Path(path).exists():
        made = "; run `make smollm2`" if path == "models/smollm2" else ""
        raise FileNotFoundError(f"no such folder (from {Path.cwd()}){made}")


def model_config(model: ModelSection):
    """A model's configuration, read by transformers. Raises OSError or ValueError if there is none."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)


def check_samples(path: str, key: str = "data.path") -> None:
    """Raise `ConfigError` if there is no sample file at `path`, the value of this key."""
    try:
        if not exists(path):
            raise ConfigError(f"{key}={path}: no such file or folder (from {Path.cwd()})")
        sample_files(path)
    except (DataError, OSError) as error:
        raise ConfigError(f"{key}: {error}") from None


def whole_path(path: str) -> str:
    """A local path in absolute form; anything else (a Hugging Face name, a URI) unchanged.

    A file that is a symbolic link keeps its name: in Hugging Face's cache the target has another name and folder.
    """
    if not path or "://" in path or not Path(path).exists():
        return path
    return str(Path(path).resolve() if Path(path).is_dir() else Path(path).parent.resolve() / Path(path).name)


def whole_data_paths(data: "DataSection | EvaluationData") -> None:
    """Make the local paths of a `data` section absolute: actors may have another working directory."""
    data.path = whole_path(data.path)
    data.passage_folders = [whole_path(folder) for folder in data.passage_folders]


def whole_template(named: str) -> str:
    """A prompt template's path in absolute form; a name in configs/prompts unchanged."""
    return whole_path(named) if names_file(named) else named


def _longest(method: str, agent: type[Agent], tokenizer, config: GenerationConfig) -> Sequence[LongestPrompt]:
    """The longest prompts of an agent. Raises `ConfigError` if it cannot be made, or they are none."""
    try:
        longest = agent(tokenizer, config.agent).longest_prompts()
    except ConfigError:
        raise
    except Exception as error:  # a user's own agent may raise anything
        raise ConfigError(f"the agent {method} cannot be made: {type(error).__name__}: {error}") from error
    if isinstance(longest, Sequence) and longest and all(_is_longest(prompt) for prompt in longest):
        return longest
    raise ConfigError(
        f"the agent {method}: longest_prompts must return a LongestPrompt for each of its prompts (Reader.longest "
        f"makes one), not {reprlib.repr(longest)}"
    )


def _is_longest(prompt: object) -> bool:
    return (
        isinstance(prompt, LongestPrompt)
        and isinstance(prompt.prompt, str)
        and isinstance(prompt.lower, str)
        and all(isinstance(tokens, int) for tokens in (prompt.tokens, prompt.response))
    )
