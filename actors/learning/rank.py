"""What every rank of a learner gang does, whatever it learns from: join the gang, publish its weights, save them.

The methods of the groups `io` and `watch` run in threads of their own, beside the training.
"""

import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from pipeline.files import copy_folder, is_local, join, local_path
from pipeline.run.checkpoints import LEARNER, MODEL, FileEntry, file_entries
from pipeline.text import load_tokenizer
from pipeline.weights.transport import WeightSender, load_transport

if TYPE_CHECKING:
    import torch

CONCURRENCY_GROUPS = {"io": 1, "watch": 1}


class LearnerRank:
    """Base of the learners. `config` has the sections model and learner."""

    def __init__(self, config, rank: int, ranks: int):
        self.config = config
        self.rank, self.ranks = rank, ranks
        self.progress_made = 0  # goes up while there is work and it moves
        # The folder, its local place, and what is copied of the state, by file, and of the model.
        self._to_write: tuple[str, Path, dict[Path, dict], dict[str, torch.Tensor]] | None = None
        self._sender: WeightSender | None = None

    def engine_options(self) -> dict:
        """What `ZeroEngine` takes beside the two sections."""
        raise NotImplementedError

    def moved(self) -> None:
        """Called wherever work gets on, so that a rank that stands still shows."""
        self.progress_made += 1

    def address(self) -> tuple[str, int]:
        """A host and free port at which this rank can be the gang's meeting point."""
        with socket.socket() as s:
            s.bind(("", 0))
            return ray.util.get_node_ip_address(), s.getsockname()[1]

    def join(self, host: str, port: int, checkpoint: str = "", universal: bool = False) -> None:
        """Form the gang with the other ranks and load the model.

        Args:
            host, port: of rank 0.
            checkpoint: a local folder or URI with the state to go on from; none: the model as it is.
            universal: the state was converted for any number of ranks.
        """
        # Imported here: who only holds a handle to this actor need not spend seconds on importing torch and DeepSpeed.
        import torch

        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))  # of this thread
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.ranks),
            LOCAL_RANK="0",  # Ray shows each rank its own GPU only
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
        )
        from actors.learning.zero_engine import ZeroEngine

        options = self.engine_options()
        self.engine = ZeroEngine(self.config.model, self.config.learner, universal=universal, **options)
        if checkpoint:
            with local_folder(checkpoint) as folder:
                self.engine.load_state(folder)

    def convert(self, checkpoint: str, universal: str) -> None:
        """Make the state of a checkpoint loadable by any number of ranks, in the folder `universal`."""
        from actors.learning.zero_engine import make_universal

        with local_folder(checkpoint) as folder:
            make_universal(folder, Path(universal))

    def publish(self, version: int, transport: str) -> Any:
        """Send this rank's part of the weights; return its entry in `Weights.pieces`.

        Args:
            version: of the weights.
            transport: the same in every call.
        """
        if self._sender is None:
            self._sender = load_transport(transport).sender(self.config, self.rank, self.ranks)
        return self._sender.send(version, lambda group_bytes: self._moving(self.engine.parameters(group_bytes)))

    def save(self, folder: str) -> None:
        """Write the Hugging Face folder of a checkpoint; complete or not there at all."""
        partial = Path(folder + ".partial")
        self.engine.save(partial)
        if self.rank == 0:
            self._save_tokenizer(partial)
            partial.rename(folder)

    def copy_checkpoint(self, folder: str) -> None:
        """Copy this rank's part of a checkpoint into host memory, for `write_checkpoint`.

        Args:
            folder: of the checkpoint, local or a URI.
        """
        local = local_path(folder) if is_local(folder) else Path(tempfile.mkdtemp(prefix="checkpoint-"))
        self._to_write = (folder, local, self.engine.copy_state(local / LEARNER), self.engine.copy_model())

    @ray.method(concurrency_group="io")
    def write_checkpoint(self) -> list[FileEntry]:
        """Write what was copied, beside the training; return the files that this rank wrote.

        Raises:
            OSError: the disk is full, say. What was written is useless.
        """
        copied, self._to_write = self._to_write, None
        assert copied is not None, "nothing was copied"
        folder, local, state, parameters = copied
        try:
            import torch

            written = []
            for path, content in state.items():
                torch.save(content, path)
                written.append(path)
                self.moved()
            if self.rank == 0:
                self.engine.write_model(local / MODEL, parameters)
                self._save_tokenizer(local / MODEL)
                written += [path for path in (local / MODEL).rglob("*") if path.is_file()]
            for path in written:
                _flush(path)
            entries = file_entries(local, written)
            if not is_local(folder):
                copy_folder(local, folder)
            return entries
        finally:
            if not is_local(folder):
                shutil.rmtree(local, ignore_errors=True)

    @ray.method(concurrency_group="watch")
    def progress(self) -> int:
        """A number that changes while this rank gets on with its work."""
        return self.progress_made

    def close(self) -> None:
        self.engine.close()

    def _save_tokenizer(self, folder: Path) -> None:
        model = self.config.model
        load_tokenizer(model.path, model.trust_remote_code).save_pretrained(folder)

    def _moving(self, items):
        """The same items, each of which is progress."""
        for item in items:
            self.moved()
            yield item


@contextlib.contextmanager
def local_folder(checkpoint: str):
    """The folder of a checkpoint's learner state, as a copy on this machine if it is not there."""
    state = join(checkpoint, LEARNER)
    if is_local(checkpoint):
        yield local_path(state)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy_folder(state, folder)
        yield Path(folder)


def _flush(path: Path) -> None:
    """Onto the disk, or a machine that goes down may keep a file's name and lose its content."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
