"""Shared by the jobs that run a job actor: run folder, checks of the model, stop signals, following the actor."""

import contextlib
import functools
import json
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from jobs.support.keys import REQUIRED, help_text
from jobs.support.noise import hush_workers
from jobs.support.ray_token import ClusterError, check_listener, own_cluster, private_folder, require_token
from pipeline.agents import Agent, LongestPrompt, load_agent
from pipeline.agents.window import check_window
from pipeline.config import names_file, save_config
from pipeline.data.sample_files import sample_files
from pipeline.end_tokens import end_tokens
from pipeline.errors import ConfigError, DataError
from pipeline.files import exists
from pipeline.learning.memory import FAMILIES
from pipeline.lease import STALE_S, Heartbeat, Lease, take_lease
from pipeline.sections import DataSection, GenerationConfig, JobConfig, ModelSection
from pipeline.storage import Storage
from pipeline.summary import write_summary

if TYPE_CHECKING:
    from pipeline.evaluation.config import EvaluationData

LINE_WAIT_S = 2.0
OPENING_S = 60.0  # limit for the storage to answer
EXIT_STATUS = {"completed": 0, "interrupted": 130}


def show_help(what: str, schema: type) -> int:
    """Print a job's description and its keys with their defaults and comments; return the exit status."""
    print(what.strip(), "", f"Keys and defaults ({REQUIRED} must be set):", "", help_text(schema), sep="\n")
    return 0


def base_folder(in_job: bool) -> Path:
    """The folder to which relative output paths refer.

    A Ray job works in a copy of the source that Ray deletes, so a job writes to a folder in the home directory.
    """
    return Path.home() / "palimpsest" if in_job else Path.cwd()


def run_folder(config: JobConfig, in_job: bool) -> Path:
    """The run folder, where the run leaves its files."""
    return base_folder(in_job) / config.run.folder / config.run.name


class StopSignals:
    """Handles SIGINT and SIGTERM, as a context manager: the first asks the job to stop, the second raises
    KeyboardInterrupt."""

    def __init__(self):
        self.asked = False
        self._answers: list[Callable[[], object]] = []

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def add(self, answer: Callable[[], object]) -> None:
        """Call `answer`, too, at the first signal; at once if it has already come."""
        self._answers.append(answer)
        if self.asked:
            answer()

    def only(self, answer: Callable[[], object]) -> None:
        """Call `answer` and nothing else at the first signal, if it has not yet come."""
        self._answers = [answer]

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        for answer in list(self._answers):
            answer()


class RunFolder:
    """Context manager that holds the lease of a run folder. It makes the folder if it is missing.

    Args:
        folder: the run folder.
        signals: signals that end the wait for another run's lease; None: only Ctrl-C ends it.

    Raises:
        ConfigError: another run is working in the folder, or it cannot be written.
        KeyboardInterrupt: a signal came while waiting.
    """

    lease: Lease

    def __init__(self, folder: Path, signals: StopSignals | None = None):
        self.folder, self._signals = folder, signals or StopSignals()
        self._storage = Storage(folder, OPENING_S)

    def __enter__(self) -> Self:
        say = functools.partial(print, flush=True)
        take = functools.partial(take_lease, self.folder, say, lambda: self._signals.asked)
        self.lease = self.call(take, limit_s=OPENING_S + STALE_S)
        self._heartbeat = Heartbeat(self.lease)  # until the job actor keeps the lease
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._heartbeat.end()
        if isinstance(error, SystemExit):
            return  # the driver gave up waiting; the job may still be running
        try:
            self._storage.call(self.lease.release)
        except OSError as failure:
            print(f"· the lease of {self.folder} could not be released: {failure}", flush=True)

    def call(self, function: Callable, *arguments, limit_s: float = OPENING_S):
        """Call a function that reads or writes the folder before the job begins, and return its result.

        Raises:
            ConfigError: the folder cannot be used, or the storage does not answer within `limit_s` seconds.
        """
        try:
            return self._storage.call(function, *arguments, limit_s=limit_s)
        except OSError as error:
            raise ConfigError(f"the run folder {self.folder} cannot be used: {error}") from error

    def save_config(self, config: object) -> None:
        """Write config.yaml. Raises `ConfigError` if the folder cannot be used."""
        self.call(save_config, config, self.folder / "config.yaml")


def configuration_of(path: Path) -> dict:
    """Read the config.yaml of an earlier run. Raises `ConfigError` if it is not a valid configuration."""
    try:
        there = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}; choose another run.name") from None
    if not isinstance(there, dict):
        raise ConfigError(f"{path} is a list, not a configuration; choose another run.name")
    return there


def leave_summary(folder: Path, summary: dict) -> None:
    """Write summary.json for a job that could not write its own; print it if this fails, too."""
    try:
        Storage(folder).call(write_summary, folder, summary)
    except OSError as error:
        print(f"· summary.json could not be written: {error}; it is: {json.dumps(summary)}", flush=True)


def leave_interrupted(folder: Path, summary: dict) -> None:
    """Write the summary of a job that was interrupted before it began, keeping the numbers of its earlier runs.

    Args:
        folder: the run folder.
        summary: the summary to write if there was no earlier run.
    """
    with contextlib.suppress(OSError, ValueError, RecursionError):  # no earlier summary
        earlier = json.loads(Storage(folder).call((folder / "summary.json").read_bytes))
        summary = summary | (earlier if isinstance(earlier, dict) else {})
    leave_summary(folder, summary | {"status": "interrupted", "error": None})


def start_ray() -> bool:
    """Join the cluster of RAY_ADDRESS or of this machine, else start one. Repeated calls start nothing.

    Returns:
        Whether this process is a Ray job.

    Raises:
        ConfigError: the token or the cluster cannot be used; the message gives the reason.
    """
    import ray

    if not ray.is_initialized():
        try:
            address = cluster_to_join()
            print(f"· {f'joining the Ray cluster at {address}' if address else 'starting Ray'}", flush=True)
            require_token()
            if address:
                ray.init(address, logging_level="WARNING")
            else:
                ray.init("local", _temp_dir=str(private_folder() / "ray"), logging_level="WARNING")
        except ClusterError as error:
            raise ConfigError(f"no Ray cluster: {error}") from None
        hush_workers()
    return bool(ray.get_runtime_context().runtime_env.get("working_dir"))


def cluster_to_join() -> str:
    """The address of the cluster in RAY_ADDRESS, or of this user's cluster on this machine; empty if one must be
    started.

    Raises:
        ClusterError: the cluster in RAY_ADDRESS cannot be used.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    if named == "local":
        return ""
    address = own_cluster() if named in ("", "auto") else named
    try:
        if not address and named:
            raise ClusterError(f"RAY_ADDRESS={named}, but no cluster of yours runs on this machine")
        check_listener(address)
    except ClusterError:
        if named:
            raise
        return ""  # the address is a remnant of the last `ray start`
    return address


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


def _longest(method: str, agent: type[Agent], tokenizer, config: GenerationConfig) -> Sequence[LongestPrompt]:
    """The longest prompts of an agent. Raises `ConfigError` if it cannot be made."""
    try:
        return agent(tokenizer, config.agent).longest_prompts()
    except ConfigError:
        raise
    except Exception as error:  # a user's own agent may raise anything
        raise ConfigError(f"the agent {method} cannot be made: {type(error).__name__}: {error}") from error


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
    file = Path(model.path) / "config.json"
    settings = json.loads(file.read_bytes()) if file.exists() else {}
    if not isinstance(settings, dict):
        raise ValueError(f"config.json is a {type(settings).__name__}, not an object")
    if settings.get("model_type") in FAMILIES and "max_position_embeddings" in settings:
        return settings
    read = model_config(model)  # transformers knows all key names and defaults, but takes seconds to import
    return read.to_dict() | {"max_position_embeddings": getattr(read, "max_position_embeddings", None)}


def model_config(model: ModelSection):
    """A model's configuration, read by transformers. Raises OSError or ValueError if there is none."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)


def check_samples(path: str) -> None:
    """Raise `ConfigError` if there is no sample file at `path`."""
    try:
        if not exists(path):
            raise ConfigError(f"data.path={path}: no such file or folder (from {Path.cwd()})")
        sample_files(path)
    except (DataError, OSError) as error:
        raise ConfigError(f"data.path: {error}") from None


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


def follow(
    actor, signals: StopSignals, show: Callable[[str], None] = lambda line: print(line, flush=True)
) -> dict | str:
    """Run a job actor to its end and show its lines.

    Args:
        actor: the handle of a `JobActor`.
        signals: signals that ask the actor to stop. Their other answers are dropped once the actor has responded.
        show: called with each line.

    Returns:
        The job's summary, or a traceback if the actor itself was lost.
    """
    import ray

    running = actor.run.remote()
    try:
        signals.add(actor.stop.remote)
        shown, ended = 0, list[ray.ObjectRef]()
        while not ended:
            asking = actor.lines.remote(shown, LINE_WAIT_S)
            ended, _ = ray.wait([running, asking], num_returns=1)
            if asking in ended:
                shown, ended = _show(ray.get(asking), show), []
                signals.only(actor.stop.remote)
        shown = _show(ray.get(asking), show)
        _show(ray.get(actor.lines.remote(shown, 0)), show)
        return ray.get(running)
    except ray.exceptions.RayError:
        return traceback.format_exc()
    except KeyboardInterrupt:
        show("· stopped waiting for the job to end")
        ray.shutdown()
        raise SystemExit(EXIT_STATUS["interrupted"]) from None


def _show(lines: tuple[int, list[str]], show: Callable[[str], None]) -> int:
    """Show the result of `JobActor.lines`; return the number of the next line."""
    shown, new = lines
    for line in new:
        show(line)
    return shown
