"""Weight transports bring new weights from the learners to the generators: a sender per rank, a receiver per engine.

The parts between them (gang, coordinator, generator pool) pass `Weights` along and read only its version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import ConfigError
from pipeline.named_code import load_choice

if TYPE_CHECKING:  # importing torch takes seconds, and passing weights along does not need it
    import torch

# Takes the number of bytes to gather at a time; yields (name in the Hugging Face checkpoint, whole parameter).
Parameters = Callable[[int], "Iterator[tuple[str, torch.Tensor]]"]


@dataclass(frozen=True)
class Weights:
    """A published version of the weights.

    Attributes:
        version: the version number; 0 is the version that generators load from disk.
        transport: the transport's name (`load_transport`).
        pieces: the return value of each rank's sender, by rank. Ray carries them, so they may hold object references.
    """

    version: int
    transport: str = ""
    pieces: tuple = ()


FROM_DISK = Weights(0)


class WeightsLost(RuntimeError):
    """Published weights can no longer be fetched. The generator keeps its weights and waits for the next version."""


class WeightSender(Protocol):
    """The end in a learner rank. It is created before the first version is sent, and again when the gang restarts."""

    def copy(self, version: int, parameters: Parameters) -> None:
        """Copy this rank's part of a version. Training waits until this returns, and then changes the weights.

        Args:
            version: the version of the weights.
            parameters: gathers the model from all ranks. Every rank must iterate over all of it with the same number
                of bytes at a time, even if it sends nothing. A tensor is valid until the next one is requested.
        """
        ...

    def send(self) -> Any:
        """Send what was copied, or make it ready to be fetched, in a thread of its own, beside the next step.

        The ranks' process group belongs to training: use no collective operation here.

        The next `copy` waits until this returns. If a rank dies meanwhile, the pieces are dropped, and the next gang
        may send other weights as this version.

        Returns:
            This rank's entry in `Weights.pieces`.
        """
        ...


class WeightReceiver(Protocol):
    """The end in a generator, which calls `fetch`, and in each worker process of its engine, where vLLM calls `read`.

    Each process has its own instance, created when the first version arrives.
    """

    def fetch(self, weights: Weights) -> AbstractAsyncContextManager[list[dict]]:
        """Bring a version to this node while generation continues. Its data may be removed when the context ends.

        Returns:
            A context manager that yields the parts in the order in which they are loaded. A part is a dict of plain
            values (numbers, strings and lists of them) with all that `read` needs to find the tensors.

        Raises:
            WeightsLost: the version is gone; another will be published.
            Exception: any other error restarts the generator.
        """
        ...

    def read(self, part: dict) -> Iterable[tuple[str, torch.Tensor]]:
        """Return the named tensors of a part, on any device. Generation pauses meanwhile.

        Each parameter of the model is whole and in exactly one part. Its memory must stay valid until all parts are
        loaded.
        """
        ...

    def close(self) -> None:
        """Give up what is kept for the next version. The process ends."""
        ...


@dataclass(frozen=True)
class WeightTransport:
    """The two ends of a transport.

    Attributes:
        sender: makes a sender from the job's configuration, the rank, and the number of ranks.
        receiver: makes a receiver without arguments; all that it needs must travel in `Weights.pieces`.
        bytes_share: returns, of `Weights.pieces`, the share of a whole version's bytes that must be fetched with the
            version before at hand; None: unknown. Only the metrics need it.
    """

    sender: Callable[[Any, int, int], WeightSender]
    receiver: Callable[[], WeightReceiver]
    bytes_share: Callable[[tuple], float | None] = lambda pieces: None


BUCKETS = "buckets"
TRANSPORTS = {BUCKETS: "pipeline.weights.bucket_transport:TRANSPORT"}


def load_transport(name: str) -> WeightTransport:
    """Return the transport with this name: one of `TRANSPORTS`, or module:name for your own.

    Raises:
        ConfigError: there is no such transport.
    """
    transport = load_choice("the weight transport", name, TRANSPORTS)
    if not isinstance(transport, WeightTransport):
        raise ConfigError(f"the weight transport {name!r} is no WeightTransport (pipeline/weights/transport.py)")
    return transport


def check_transport(name: str) -> None:
    """Raise `ConfigError` if there is no such transport. Built-in ones are not loaded: they import torch and Ray."""
    if name not in TRANSPORTS:
        load_transport(name)


class Receivers(dict[str, WeightReceiver]):
    """The receivers of a process by transport name, each created on first use."""

    def __missing__(self, transport: str) -> WeightReceiver:
        self[transport] = receiver = load_transport(transport).receiver()
        return receiver

    def close(self) -> None:
        for receiver in self.values():
            receiver.close()
