"""Checkpoints: folders by step, in a local folder or in an object store, that are complete or not there.

    <base>/run.id                the id of the run that they are of, where <base> is not in its run folder
    <base>/<step>/hf/            the model for transformers and vLLM, in safetensors
    <base>/<step>/learner/       the learners' state, written by DeepSpeed
    <base>/<step>/run.json       where the run stands (`RunState`)
    <base>/<step>/manifest.json  size and checksum of all other files; written last

A folder without a manifest was not finished and counts for nothing; nor does one whose files are not those of its
manifest.
"""

import hashlib
import json
import math
from collections.abc import Iterable
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
PIECE = 1 << 24  # bytes that are read at once


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used. The message says what is wrong with it."""


@dataclass(frozen=True)
class FileEntry:
    """A file of a checkpoint; `path` is relative to its folder."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class RunState:
    """What a checkpoint keeps of a run beside the learners' state.

    The order of the data, the split of a step into updates and the seeds of the responses are functions of
    `run.seed` and of what is here, so that there are no random states to keep.
    """

    step: int
    version: int  # of the weights
    cursor: Cursor
    ranks: int  # of the learners that wrote it
    wandb_id: str = ""
    tokens_generated: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    recoveries: dict[str, int] = field(default_factory=dict)
    reward: float = 0.0  # mean of the steps since the checkpoint before
    withdrawn: list[str] = field(default_factory=list)  # ids of problems that are never run again


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is there and whole."""

    folder: str
    state: RunState

    @property
    def step(self) -> int:
        return self.state.step


def checkpoints_of(config: TrainingConfig, folder: Path, run_id: str) -> "Checkpoints":
    """The checkpoints of a training run.

    Args:
        config: of the run.
        folder: of the run.
        run_id: of the run.
    """
    if elsewhere := config.train.checkpoint_folder:
        return Checkpoints(join(elsewhere, config.run.name), run_id)
    return Checkpoints(folder / "checkpoints")


class Checkpoints:
    """All checkpoints of a run.

    Args:
        base: a folder that all nodes share, or a URI.
        run_id: of the run, if they are not in its run folder.
    """

    def __init__(self, base: str | Path, run_id: str = ""):
        self.base, self._run_id = str(base), run_id
        self._begun: set[int] = set()  # steps that this process wrote, or began to

    def folder(self, step: int) -> str:
        return join(self.base, str(step))

    def steps(self) -> list[int]:
        """Of the checkpoints that were finished, newest first."""
        if not exists(self.base):
            return []
        steps = sorted((int(name) for name in folder_names(self.base) if name.isdecimal()), reverse=True)
        return [step for step in steps if exists(join(self.folder(step), MANIFEST))]

    def newest_good(self, say=lambda line: None) -> Checkpoint | None:
        """The newest one whose files are all there and whole; what is wrong with newer ones is said.

        Raises:
            CheckpointError: there are some, and none of them can be used: to begin anew is not for us to decide.
        """
        steps = self.steps()
        for step in steps:
            try:
                return self.read(step)
            except CheckpointError as error:
                say(f"· checkpoints/{step} cannot be used: {error}")
        if steps:
            raise CheckpointError(f"none of those in {self.base} can be used; to begin anew, remove them")
        return None

    def read(self, step: int) -> Checkpoint:
        """A checkpoint, all of whose files were read and compared with their checksums.

        Raises:
            CheckpointError: one is missing or is not what was written.
        """
        folder = self.folder(step)
        try:
            manifest = json.loads(_text(join(folder, MANIFEST)))
            entries = [FileEntry(**entry) for entry in manifest["files"]]
            for entry in entries:
                _check(folder, entry)
            state = json.loads(_text(join(folder, RUN_STATE)))
            cursor = state.pop("cursor")
            return Checkpoint(folder, RunState(cursor=Cursor(cursor["position"], tuple(cursor["open"])), **state))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{type(error).__name__}: {error}") from None

    def finish(self, state: RunState, files: Iterable[FileEntry]) -> Checkpoint:
        """Make the checkpoint of a step count, all other files of which are written."""
        folder = self.folder(state.step)
        text = json.dumps(asdict(state), indent=1) + "\n"
        write_text(join(folder, RUN_STATE), text)
        run_state = FileEntry(RUN_STATE, len(text.encode()), hashlib.sha256(text.encode()).hexdigest())
        entries = [asdict(entry) for entry in sorted([*files, run_state], key=lambda entry: entry.path)]
        write_text(join(folder, MANIFEST), json.dumps({"files": entries}, indent=1) + "\n")
        return Checkpoint(folder, state)

    def owner(self) -> str:
        """The id of the run that these checkpoints are of; empty if there is none."""
        try:
            return _text(join(self.base, RUN_ID)).strip()
        except FileNotFoundError:
            return ""

    def claim(self, resume: bool) -> None:
        """Make this the place of the run's checkpoints.

        Args:
            resume: the run may go on from those that are there.

        Raises:
            ConfigError: there are another run's, or it is not to go on from its own, or it cannot be written.
        """
        if not self._run_id:
            return  # they are in the run folder, which is the run's alone
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
        """Make the folder of a checkpoint that is to be written, empty. Raises `OSError` if that cannot be done."""
        if self._run_id and (owner := self.owner()) != self._run_id:
            raise PermissionError(f"{self.base} is not this run's ({RUN_ID}: {owner or 'none'})")
        self.clear(step)
        self._begun.add(step)
        make_folder(join(self.folder(step), LEARNER))

    def clear(self, step: int) -> None:
        """Remove what there may be of a step: a writing that was not finished, or a later history that was left."""
        folder = self.folder(step)
        if exists(manifest := join(folder, MANIFEST)):
            remove_file(manifest)  # first, as without it the rest counts for nothing
        if exists(folder):
            remove_folder(folder)

    def prune(self, step: int, keep_last: int, keep_best: int) -> list[int]:
        """Remove all but the newest up to `step` and those of the best reward; return the steps that are gone.

        Newer ones that this process wrote are of a history that was left. Others stay: whoever wrote them may have
        taken the folder over.
        """
        steps = self.steps()
        rewards = {kept: self._reward(kept) for kept in steps if kept <= step}
        best = sorted(rewards, key=lambda kept: (rewards[kept], kept), reverse=True)[:keep_best]
        last = list(rewards)[:keep_last]
        gone = [old for old in steps if old not in (*best, *last) and (old <= step or old in self._begun)]
        for old in gone:
            self.clear(old)
        return gone

    def _reward(self, step: int) -> float:
        try:
            return json.loads(_text(join(self.folder(step), RUN_STATE)))["reward"]
        except (FileNotFoundError, ValueError, KeyError):
            return -math.inf  # it was spoiled


def file_entries(folder: Path, paths: Iterable[Path]) -> list[FileEntry]:
    """What a manifest says of local files in a checkpoint's folder."""
    return [FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, _sha256(path)) for path in paths]


def _check(folder: str, entry: FileEntry) -> None:
    found = _sha256(join(folder, entry.path), entry.size)
    if found != entry.sha256:
        raise CheckpointError(f"{entry.path} is not what was written")


def _sha256(path: str | Path, size: int | None = None) -> str:
    """Raises `CheckpointError` if the file does not have this many bytes."""
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
