"""Checkpoints: one folder per step, in a local folder or an object store. A checkpoint is complete or does not count.

    <base>/run.id                the id of the run, unless <base> is in its run folder
    <base>/<step>/hf/            the model for transformers and vLLM, in safetensors
    <base>/<step>/learner/       the learners' state, written by DeepSpeed
    <base>/<step>/run.json       the run's progress (`RunState`)
    <base>/<step>/manifest.json  size and checksum of all other files; written last

A folder without a manifest is unfinished and is ignored. A folder whose files differ from its manifest is not used.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.data.problem_stream import Cursor
from pipeline.errors import ConfigError, DataError
from pipeline.files import (
    exists,
    folder_names,
    is_empty_folder,
    join,
    make_folder,
    open_input,
    remove_file,
    remove_folder,
    write_text,
)
from pipeline.lease import RUN_ID
from pipeline.run.config import TrainingConfig

MANIFEST, RUN_STATE = "manifest.json", "run.json"
MODEL, LEARNER = "hf", "learner"
PIECE = 1 << 24  # bytes per read
AT_ONCE = 8  # files that are verified concurrently


@dataclass(frozen=True)
class Scores:
    """The scores of validations by the step at which they began.

    Attributes:
        by_step: those that are known.
        pending: steps whose validation is running.
    """

    by_step: Mapping[int, float]
    pending: frozenset[int] = frozenset()


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used. The message gives the reason."""


@dataclass(frozen=True)
class FileEntry:
    """A file of a checkpoint; `path` is relative to its folder."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class RunState:
    """The state of a run in a checkpoint, beside the learners' state.

    The order of the data, the split of a step into updates and the seeds of the responses are functions of `run.seed`
    and of these fields, so no random states need to be kept.
    """

    step: int
    version: int  # weight version
    cursor: Cursor
    ranks: int  # number of learner ranks that wrote it
    wandb_id: str = ""
    tokens_generated: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    discarded: int = 0  # groups that were discarded for their equal rewards
    recoveries: dict[str, int] = field(default_factory=dict)
    reward: float = 0.0  # mean over the steps since the previous checkpoint
    withdrawn: list[str] = field(default_factory=list)  # ids of withdrawn problems, which are never run again


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: str
    state: RunState

    @property
    def step(self) -> int:
        return self.state.step


def checkpoints_of(config: TrainingConfig, folder: Path, run_id: str) -> "Checkpoints":
    """The checkpoints of a training run.

    Args:
        config: the run's configuration.
        folder: the run folder.
        run_id: the run's id.
    """
    if elsewhere := config.train.checkpoint_folder:
        return Checkpoints(join(elsewhere, config.run.name), run_id)
    return Checkpoints(folder / "checkpoints")


class Checkpoints:
    """All checkpoints of a run.

    Args:
        base: a folder that all nodes share, or a URI.
        run_id: the run's id, if the checkpoints are outside its run folder; else empty.
    """

    def __init__(self, base: str | Path, run_id: str = ""):
        self.base, self._run_id = str(base), run_id
        self._begun: set[int] = set()  # steps that this process wrote or began to write

    def folder(self, step: int) -> str:
        return join(self.base, str(step))

    def steps(self) -> list[int]:
        """The steps of all finished checkpoints, newest first."""
        if not exists(self.base):
            return []
        steps = sorted((int(name) for name in folder_names(self.base) if name.isdecimal()), reverse=True)
        return [step for step in steps if exists(join(self.folder(step), MANIFEST))]

    def newest_good(self, say=lambda line: None) -> Checkpoint | None:
        """The newest checkpoint whose files are all intact, or None if there are no checkpoints.

        `say` is called with a line for each newer one that cannot be used.

        Raises:
            CheckpointError: there are checkpoints, but none can be used. Only the user may decide to start over.
        """
        steps = self.steps()
        for step in steps:
            try:
                return self.read(step)
            except CheckpointError as error:
                say(f"· checkpoints/{step} cannot be used: {error}")
        if steps:
            raise CheckpointError(f"no checkpoint in {self.base} can be used; to start over, remove them")
        return None

    def read(self, step: int) -> Checkpoint:
        """Read the checkpoint of a step and verify the checksums of all its files.

        Raises:
            CheckpointError: a file is missing or differs from what was written.
        """
        folder = self.folder(step)
        try:
            manifest = json.loads(_text(join(folder, MANIFEST)))
            entries = [FileEntry(**entry) for entry in manifest["files"]]
            with ThreadPoolExecutor(AT_ONCE) as threads:
                list(threads.map(lambda entry: _check(folder, entry), entries))
            state = json.loads(_text(join(folder, RUN_STATE)))
            cursor = state.pop("cursor")
            return Checkpoint(folder, RunState(cursor=Cursor(cursor["position"], tuple(cursor["open"])), **state))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{type(error).__name__}: {error}") from None

    def finish(self, state: RunState, files: Iterable[FileEntry]) -> Checkpoint:
        """Complete a checkpoint whose `files` are all written: write run.json and the manifest."""
        folder = self.folder(state.step)
        text = json.dumps(asdict(state), indent=1) + "\n"
        write_text(join(folder, RUN_STATE), text)
        run_state = FileEntry(RUN_STATE, len(text.encode()), hashlib.sha256(text.encode()).hexdigest())
        entries = [asdict(entry) for entry in sorted([*files, run_state], key=lambda entry: entry.path)]
        write_text(join(folder, MANIFEST), json.dumps({"files": entries}, indent=1) + "\n")
        return Checkpoint(folder, state)

    def owner(self) -> str:
        """The id of the run that owns the checkpoints; empty if there is none."""
        try:
            return _text(join(self.base, RUN_ID)).strip()
        except FileNotFoundError:
            return ""

    def claim(self, resume: bool) -> None:
        """Reserve the checkpoint folder for this run.

        Args:
            resume: whether the run may continue from existing checkpoints.

        Raises:
            ConfigError: the folder holds another run's checkpoints or other files, or this run's although `resume` is
                false, or it cannot be written.
        """
        if not self._run_id:
            return  # the run folder belongs to this run alone
        try:
            self._claim(resume)
        except (OSError, DataError) as error:
            raise ConfigError(f"the checkpoint folder {self.base} cannot be used: {error}") from error

    def _claim(self, resume: bool) -> None:
        owner = self.owner()
        if owner != self._run_id and not is_empty_folder(self.base):
            whose = f"checkpoints of another run ({RUN_ID}: {owner})" if owner else f"files, and no {RUN_ID}"
            hint = f"; to resume that run, put its id into {RUN_ID} of the run folder" if owner and resume else ""
            raise ConfigError(
                f"the checkpoint folder {self.base} holds {whose}; choose another run.name or "
                f"train.checkpoint_folder{hint}"
            )
        if not resume and exists(self.base) and folder_names(self.base):
            raise ConfigError(
                f"the checkpoint folder {self.base} is not empty; choose another run.name, or resume that run with "
                "resume=auto"
            )
        if owner != self._run_id:
            write_text(join(self.base, RUN_ID), f"{self._run_id}\n")

    def begin(self, step: int) -> None:
        """Make an empty folder for the checkpoint of a step.

        Raises:
            OSError: the folder cannot be made, or belongs to another run.
        """
        if self._run_id and (owner := self.owner()) != self._run_id:
            raise PermissionError(f"{self.base} is not this run's ({RUN_ID}: {owner or 'none'})")
        self.clear(step)
        self._begun.add(step)
        make_folder(join(self.folder(step), LEARNER))

    def clear(self, step: int) -> None:
        """Remove any files of a step: an unfinished checkpoint, or one of an abandoned later history."""
        folder = self.folder(step)
        if exists(manifest := join(folder, MANIFEST)):
            remove_file(manifest)  # first: without it the rest does not count
        if exists(folder):
            remove_folder(folder)

    def prune(self, step: int, keep_last: int, keep_best: int, scores: Scores | None = None) -> list[int]:
        """Remove old checkpoints; return their steps.

        Of those up to `step`, the newest `keep_last` and the best `keep_best` stay. Newer ones that this process wrote
        belong to an abandoned history and are removed. Other newer ones stay: another process wrote them and may have
        taken over the folder.

        Args:
            step: the newest checkpoint that counts.
            keep_last, keep_best: how many stay.
            scores: the validations' scores, by which the best are chosen; of equal ones the older is better. A
                checkpoint whose validation is running stays. If no checkpoint has a score, rewards decide.
        """
        steps = self.steps()
        count = [kept for kept in steps if kept <= step]
        validated = {kept: scores.by_step[kept] for kept in count if kept in scores.by_step} if scores else {}
        if validated:
            best = sorted(validated, key=lambda kept: (-validated[kept], kept))[:keep_best]
        else:
            rewards = {kept: self._reward(kept) for kept in count}
            best = sorted(rewards, key=lambda kept: (rewards[kept], kept), reverse=True)[:keep_best]
        best += [kept for kept in count if scores and keep_best and kept in scores.pending]
        last = count[:keep_last]
        gone = [old for old in steps if old not in (*best, *last) and (old <= step or old in self._begun)]
        for old in gone:
            self.clear(old)
        return gone

    def _reward(self, step: int) -> float:
        try:
            return json.loads(_text(join(self.folder(step), RUN_STATE)))["reward"]
        except (FileNotFoundError, ValueError, KeyError):
            return -math.inf  # run.json is damaged


def file_entries(folder: Path, paths: Iterable[Path]) -> list[FileEntry]:
    """The manifest entries of local files in a checkpoint's folder."""
    return [FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, _sha256(path)) for path in paths]


def _check(folder: str, entry: FileEntry) -> None:
    found = _sha256(join(folder, entry.path), entry.size)
    if found != entry.sha256:
        raise CheckpointError(f"{entry.path} differs from what was written")


def _sha256(path: str | Path, size: int | None = None) -> str:
    """The file's checksum, in hexadecimal digits; raises `CheckpointError` if `size` is given and differs."""
    digest, read = hashlib.sha256(), 0
    with open_input(path) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            read += len(piece)
    if size is not None and read != size:
        raise CheckpointError(f"{Path(str(path)).name} has {read} bytes instead of {size}")
    return digest.hexdigest()


def _text(path: str) -> str:
    with open_input(path) as file:
        return file.read().decode()
