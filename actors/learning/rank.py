"""The base class of learner ranks: join the gang, publish the weights, save checkpoints.

Methods of the concurrency groups run in separate threads, concurrently with training.
"""

import contextlib
import ctypes
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ray

from pipeline.errors import reason_of
from pipeline.files import copy_files, copy_folder, is_local, join, local_path
from pipeline.learning.attention_choice import AUTO
from pipeline.learning.device_memory import Architecture, built_architecture
from pipeline.lease import RUN_ID
from pipeline.run.checkpoints import LEARNER, MODEL, FileEntry, file_entries
from pipeline.text import load_tokenizer
from pipeline.weights.transport import WeightSender, load_transport

if TYPE_CHECKING:
    import torch

CONCURRENCY_GROUPS = {"io": 1, "send": 1, "watch": 1}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
PROBES_S = (1.0, 2.0, 4.0)  # between looks at a folder that does not seem to be shared
LEAST_COLLECTIVE_S = 600.0  # least limit for a collective operation, which waits for the slowest rank
RETURNED_FROM = 1 << 20  # bytes of an allocation


class Description(NamedTuple):
    """What a rank computes on, and what it chose."""

    device: str  # the device's name; empty on a CPU
    model: Architecture | None  # the model's sizes; None: unknown
    checkpointed: int  # layers
    attention: str  # the kernels of the attention, and why it is not others

    def choices(self, config) -> list[str]:
        """A line for each `auto` that chose by the GPU. `config` is the job's, with the sections model and learner."""
        lines = []
        if self.device and config.learner.checkpoint_layers == "auto":
            of = f" of {self.model.layers}" if self.model else ""
            lines.append(f"· learner.checkpoint_layers=auto: {self.checkpointed}{of} layers on {self.device}")
        if self.device and config.model.attention == AUTO:
            lines.append(f"· model.attention=auto: on {self.device} {self.attention}")
        return lines


class LearnerRank:
    """Base of the learners.

    Args:
        config: the job's configuration, with the sections model and learner.
        rank: this rank's number.
        ranks: the number of ranks in the gang.
    """

    def __init__(self, config, rank: int, ranks: int):
        self.config = config
        self.rank, self.ranks = rank, ranks
        self.progress_made = 0  # increases while work makes progress
        # The checkpoint's folder, its local folder, the copied state by file, and the copied parameters of the model.
        self._to_write: tuple[str, Path, dict[Path, dict], dict[str, torch.Tensor]] | None = None
        self._sender: WeightSender | None = None
        self._store: torch.distributed.TCPStore | None = None  # on rank 0

    def engine_options(self) -> dict:
        """The arguments of `ZeroEngine` other than the two sections."""
        raise NotImplementedError

    def moved(self) -> None:
        """Record progress. Called throughout the work, so that a stalled rank can be detected."""
        self.progress_made += 1

    def meet(self) -> tuple[str, int]:
        """Open the place where the gang meets, and keep it, so that nobody takes its port; return host and port."""
        from torch.distributed import TCPStore

        host = ray.util.get_node_ip_address()
        self._store = TCPStore(host, 0, self.ranks, is_master=True, wait_for_workers=False, timeout=self._limit())
        return host, self._store.port

    def folder_trouble(self, folder: str, run_id: str) -> str:
        """Why this rank's node cannot keep checkpoints where the job actor does; empty if it can.

        Args:
            folder: the local folder, in which the job actor left a file with the run's id.
            run_id: the run's id.
        """
        node, trouble = f"node {ray.util.get_node_ip_address()}", ""
        for wait_s in (*PROBES_S, 0):  # a file server may show a new file late
            try:
                if (local_path(folder) / RUN_ID).read_text("utf-8").strip() == run_id:
                    with tempfile.NamedTemporaryFile(prefix="probe-", dir=local_path(folder)):
                        return ""
                trouble = f"{node} has another folder there"
            except OSError as error:
                trouble = f"{node}: {reason_of(error)}"
            time.sleep(wait_s)
        return trouble

    def join(self, host: str, port: int, checkpoint: str = "") -> None:
        """Form the gang with the other ranks and load the model.

        Args:
            host, port: where the gang meets (`meet` of rank 0).
            checkpoint: local folder or URI with the state to start from; empty: the model as it is.
        """
        return_freed_memory()
        # Imported here, so that processes that only hold a handle to this actor do not spend seconds on the imports.
        import torch

        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))  # in this thread
        # For DeepSpeed. Ray shows each rank its own GPU only.
        os.environ.update(RANK=str(self.rank), WORLD_SIZE=str(self.ranks), LOCAL_RANK="0")
        torch.distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            store=self._store or torch.distributed.TCPStore(host, port, self.ranks, timeout=self._limit()),
            rank=self.rank,
            world_size=self.ranks,
            timeout=self._limit(),
        )
        from actors.learning.zero_engine import STATE_TAG, ZeroEngine

        self.engine = ZeroEngine(self.config.model, self.config.learner, **self.engine_options())
        if checkpoint:
            with local_folder(checkpoint, STATE_TAG, self.engine.files_to_read, self.moved) as folder:
                self.engine.load_state(folder, self.moved)

    def _limit(self) -> timedelta:
        """How long a rank waits for the others."""
        return timedelta(seconds=max(LEAST_COLLECTIVE_S, self.config.learner.stall_s))

    def describe(self) -> Description:
        import torch

        device, model = torch.cuda.get_device_name() if torch.cuda.is_available() else "", None
        with contextlib.suppress(Exception):  # any exception, for any model: only metrics need it
            model = built_architecture(self.engine.model.config)
        return Description(device, model, self.engine.checkpointed, str(self.engine.attention))

    def copy_weights(self, version: int, transport: str) -> None:
        """Copy this rank's part of the weights, for `send_weights`.

        Args:
            version: the version of the weights.
            transport: the transport's name, the same in every call.
        """
        if self._sender is None:
            self._sender = load_transport(transport).sender(self.config, self.rank, self.ranks)
        self._sender.copy(version, lambda group_bytes: self._moving(self.engine.parameters(group_bytes)))

    @ray.method(concurrency_group="send")
    def send_weights(self) -> Any:
        """Send what was copied while training continues; return this rank's entry in `Weights.pieces`."""
        assert self._sender is not None, "nothing was copied"
        return self._sender.send()

    def copy_checkpoint(self, folder: str) -> None:
        """Copy this rank's part of a checkpoint to host memory, for `write_checkpoint`.

        Args:
            folder: the checkpoint's folder, local or a URI.
        """
        local = local_path(folder) if is_local(folder) else Path(tempfile.mkdtemp(prefix="checkpoint-"))
        self._to_write = (folder, local, self.engine.copy_state(local / LEARNER), self.engine.copy_model())

    @ray.method(concurrency_group="io")
    def write_checkpoint(self) -> list[FileEntry]:
        """Write the copied state while training continues; return the files that this rank wrote.

        Raises:
            OSError: writing failed, for example because the disk is full. The written files are unusable.
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
        """A number that changes while this rank makes progress."""
        return self.progress_made

    def close(self) -> None:
        self.engine.close()

    def _save_tokenizer(self, folder: Path) -> None:
        model = self.config.model
        load_tokenizer(model.path, model.trust_remote_code).save_pretrained(folder)

    def _moving(self, items):
        """Yield the same items, recording progress for each."""
        for item in items:
            self.moved()
            yield item


@contextlib.contextmanager
def local_folder(checkpoint: str, name: str, wanted: Callable[[Collection[str]], set[str]], copied: Callable[[], None]):
    """Context manager with the local folder of a checkpoint's learner state: a temporary copy if it is remote.

    Args:
        checkpoint: folder or URI of the checkpoint.
        name: the folder with the state's files.
        wanted: says which of these files to copy.
        copied: called after each.
    """
    state = join(checkpoint, LEARNER)
    if is_local(checkpoint):
        yield local_path(state)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy_files(join(state, name), Path(folder) / name, wanted, copied)
        yield Path(folder)


def _flush(path: Path) -> None:
    """Flush a file to the disk. Otherwise a machine that goes down may keep its name but lose its content."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def return_freed_memory() -> None:
    """Make the C library return freed tensors to the system, unless the environment sets its thresholds.

    The micro-batches' many sizes fragment its heap: on a CPU, a rank of SmolLM2-135M would hold twice the memory.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    with contextlib.suppress(AttributeError):  # not glibc
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(parameter, RETURNED_FROM)
