"""The run folder as a job sees it before and after its actor works: taken, described, and left with a summary."""

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Self

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from jobs.support.stop_signals import StopSignals
from pipeline.config import save_config
from pipeline.errors import ConfigError
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.fine_tuning.record import check_unchanged
from pipeline.lease import STALE_S, Heartbeat, Lease, is_unused, take_lease
from pipeline.run.config import TrainingConfig
from pipeline.sections import JobConfig
from pipeline.storage import Storage
from pipeline.summary import write_summary

OPENING_S = 60.0  # limit for the storage to answer


def base_folder(in_job: bool) -> Path:
    """The folder to which relative output paths refer.

    A Ray job works in a copy of the source that Ray deletes, so a job writes to a folder in the home directory.
    """
    return Path.home() / "palimpsest" if in_job else Path.cwd()


def run_folder(config: JobConfig, in_job: bool) -> Path:
    """The run folder, where the run leaves its files."""
    return base_folder(in_job) / config.run.folder / config.run.name


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


def check_unused(config: TrainingConfig | FineTuningConfig, folder: Path) -> None:
    """Raise `ConfigError` if the folder has files of an earlier run and resume=no."""
    if config.resume == "no" and not is_unused(folder):
        raise ConfigError(
            f"the run folder {folder} is not empty; choose another run.name, or resume that run with resume=auto"
        )


def check_earlier(config: TrainingConfig | FineTuningConfig, folder: Path) -> None:
    """Check that a run that resumes is the job that began, in its dtype, whatever `auto` means on this machine.

    Raises:
        ConfigError: the run in `folder` is another job, has another dtype or other settings that must not change, or
            its configuration names no dtype.
    """
    before = folder / "config.yaml"
    if config.resume == "auto" and before.exists():
        there = configuration_of(before)
        model = there.get("model")
        dtype = model.get("dtype") if isinstance(model, dict) else None
        if dtype is None:
            raise ConfigError(f"{before} names no model.dtype, so its run cannot be resumed; choose another run.name")
        if dtype != config.model.dtype:
            raise ConfigError(
                f"the run in {folder} has model.dtype={dtype}, not {config.model.dtype}: set model.dtype={dtype} to "
                "resume it, or choose another run.name"
            )
        mine = "train" if isinstance(config, TrainingConfig) else "fine_tuning"
        if mine not in there:
            raise ConfigError(f"{before} has no section {mine}: another job ran there; choose another run.name")
        if isinstance(config, FineTuningConfig):
            check_unchanged(config, there)


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
