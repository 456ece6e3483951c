"""How new weights travel from the learners to the generators: a sender on every rank, a receiver at every engine.

Whoever stands between them (gang, coordinator, generator pool) passes `Weights` on and looks at the version alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import ConfigError
from pipeline.named_code import load_named

if TYPE_CHECKING:  # who only passes weights on need not spend seconds on importing torch
    import torch

# Takes the bytes to gather at a time; yields every parameter whole, by its name in the Hugging Face checkpoint.
Parameters = Callable[[int], "Iterator[tuple[str, torch.Tensor]]"]


@dataclass(frozen=True)
class Weights:
    """A version of the weights, published.

    Attributes:
        version: counts up from 0, which is what generators load from disk.
        transport: the name that senders and receivers were found by (`load_transport`).
        pieces: what each rank's sender returned, by rank. Ray carries them, so they may hold object references.
    """

    version: int
    transport: str = ""
    pieces: tuple = ()


FROM_DISK = Weights(0)


class WeightsLost(RuntimeError):
    """Published weights cannot be fetched any more. A generator keeps those in use and waits for the next version."""


class WeightSender(Protocol):
    """Lives in a learner rank. It is made before the first version is sent, and again when the gang starts again."""

    def send(self, version: int, parameters: Parameters) -> Any:
        """Send this rank's part of a version, or make it ready to be fetched; training waits until this returns.

        When a rank dies meanwhile, nobody gets the pieces, and the next gang may send other weights as this version.

        Args:
            version: of the weights.
            parameters: gathers the model from all ranks. So every rank must iterate over all of it, with the same
                number of bytes at a time, also one that sends nothing. A tensor is valid until the next one is asked
                for.

        Returns:
            This rank's entry in `Weights.pieces`.
        """
        ...


class WeightReceiver(Protocol):
    """Lives in a generator, which calls `fetch`, and once more in each worker process of its engine, where vLLM calls
    `read`. Both are made when the first version arrives."""

    def fetch(self, weights: Weights) -> AbstractAsyncContextManager[list[dict]]:
        """Bring a version to this node while generation runs on; what was brought may go when the context ends.

        Returns:
            A context with the parts, which are loaded in this order. A part is a dict of plain values (numbers, strings
            and lists of them) with all that `read` needs to find the tensors.

        Raises:
            WeightsLost: the version is not there any more; another will be published.
            Exception: anything else; the generator is started again.
        """
        ...

    def read(self, part: dict) -> Iterable[tuple[str, torch.Tensor]]:
        """The named tensors of a part, on any device; generation pauses meanwhile. A tensor of the model is whole, and
        in one of the parts. Its memory may be read until all parts are loaded."""
        ...


@dataclass(frozen=True)
class WeightTransport:
    """Both ends of a way for weights.

    Attributes:
        sender: is called with the job's configuration, the rank, and the number of ranks.
        receiver: is called without arguments; what it has to know travels in the pieces.
    """

    sender: Callable[[Any, int, int], WeightSender]
    receiver: Callable[[], WeightReceiver]


BUCKETS = "buckets"
TRANSPORTS = {BUCKETS: "pipeline.weights.bucket_transport:TRANSPORT"}


def load_transport(name: str) -> WeightTransport:
    """The transport of this name: one of `TRANSPORTS`, or module:name for a user's own.

    Raises:
        ConfigError: there is no such transport.
    """
    try:
        transport = load_named(TRANSPORTS.get(name, name))
    except ConfigError as error:
        raise ConfigError(
            f"the weight transport {name!r} is none of {', '.join(TRANSPORTS)}, nor a module:name that can be loaded: "
            f"{error}"
        ) from None
    if not isinstance(transport, WeightTransport):
        raise ConfigError(f"the weight transport {name!r} is no WeightTransport (pipeline/weights/transport.py)")
    return transport


def check_transport(name: str) -> None:
    """Raise a `ConfigError` if there is no such transport. Our own are not loaded: they import torch and Ray."""
    if name not in TRANSPORTS:
        load_transport(name)


class Receivers(dict[str, WeightReceiver]):
    """The receivers in a process, by the name of their transport; each is made when it is first asked for."""

    def __missing__(self, transport: str) -> WeightReceiver:
        self[transport] = receiver = load_transport(transport).receiver()
        return receiver
