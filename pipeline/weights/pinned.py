"""Bucket files as pinned memory of a GPU's process: each file is mapped and registered with CUDA once.

A GPU copies from pinned memory at the full speed of its bus and without the CPU. Pinning takes longer than a copy, so
it pays because new versions overwrite the same files.
"""

import contextlib
import logging
import mmap
import os
from dataclasses import dataclass

import torch

from pipeline.weights.bucket_files import BucketError, check_size

REGISTER_DEFAULT = 0  # flag of cudaHostRegister: for this CUDA context

log = logging.getLogger(__name__)


@dataclass
class Mapping:
    """A file's bytes.

    Attributes:
        handle: of the open file, to see when it is gone.
        bytes: uint8 [size].
        pinned: whether CUDA has registered them.
    """

    handle: int
    bytes: torch.Tensor
    pinned: bool


class PinnedFiles:
    """The mappings of a process that has a CUDA context. They are shared and writable: of a private or read-only
    mapping, CUDA would pin copies or nothing."""

    def __init__(self) -> None:
        self._mappings: dict[tuple[int, int], Mapping] = {}  # by device and inode
        self._version = -1
        self._pins = True  # until CUDA refuses

    def read(self, path: str, size: int, version: int) -> torch.Tensor:
        """The bytes of a file, uint8 [size], for copies to a GPU only: nobody may write to them.

        Args:
            path: the file.
            size: its size in bytes.
            version: the weight version. With the first file of a new one, mappings of files that are gone end.

        Raises:
            BucketError: the file is missing or has another size.
        """
        if version != self._version:
            self._version = version
            self._forget_gone()
        try:
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError as error:
            raise BucketError(f"the weights in {path} cannot be read: {error.strerror}") from None
        try:
            about = os.fstat(handle)
            check_size(path, about.st_size, size)
            key = about.st_dev, about.st_ino
            if key not in self._mappings:
                data = torch.frombuffer(mmap.mmap(handle, size), dtype=torch.uint8)
                self._mappings[key] = Mapping(handle, data, self._register(data))
                handle = -1
            return self._mappings[key].bytes
        finally:
            if handle >= 0:
                os.close(handle)

    def counts(self) -> tuple[int, int]:
        """How many bytes are pinned, and how many are mapped."""
        mapped = self._mappings.values()
        return sum(each.bytes.nbytes for each in mapped if each.pinned), sum(each.bytes.nbytes for each in mapped)

    def close(self) -> None:
        """End all mappings. No copy from them may be under way."""
        for key in list(self._mappings):
            self._forget(key)

    def _forget_gone(self) -> None:
        for key, mapping in list(self._mappings.items()):
            if not os.fstat(mapping.handle).st_nlink:
                self._forget(key)

    def _forget(self, key: tuple[int, int]) -> None:
        mapping = self._mappings.pop(key)
        if mapping.pinned:
            torch.cuda.cudart().cudaHostUnregister(mapping.bytes.data_ptr())
        os.close(mapping.handle)

    def _register(self, data: torch.Tensor) -> bool:
        if not self._pins:
            return False
        cudart = torch.cuda.cudart()
        error = cudart.cudaHostRegister(data.data_ptr(), data.nbytes, REGISTER_DEFAULT)
        if not int(error):
            return True
        self._pins = False
        with contextlib.suppress(RuntimeError):
            # CUDA keeps the error for whoever asks next, which is the launch of the next kernel: here, one in vain.
            torch.empty(1, device="cuda").fill_(0)
        log.warning(
            "new weights are loaded from memory that is not pinned, which is slower: CUDA could not register %s bytes "
            "(%s). A limit on locked memory may be the reason: see `ulimit -l`, and docs/cluster.md",
            f"{data.nbytes:,}",
            cudart.cudaGetErrorString(error),
        )
        return False
