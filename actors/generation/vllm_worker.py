"""The worker side of weight updates: loads the tensors that the transport's receiver reads into vLLM's model.

vLLM imports this module in its workers (`worker_extension_cls`), which registers the backend with vLLM's
weight-transfer interface. The generator's side is in actors/generation/vllm_engine.py.
"""

import ctypes
import itertools
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from pipeline.weights.bucket_transport import BucketReceiver
from pipeline.weights.transport import BUCKETS, Receivers

BACKEND = "palimpsest"
PR_SET_PDEATHSIG = 1  # from linux/prctl.h


@dataclass
class WeightParts(WeightTransferUpdateInfo):
    """The parts of new weights, and the transport whose receiver reads them (pipeline/weights/transport.py)."""

    transport: str
    parts: list[dict]


class WeightLoader(WeightTransferEngine[WeightTransferInitInfo, WeightParts]):
    init_info_cls = WeightTransferInitInfo
    update_info_cls = WeightParts

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self._receivers = Receivers()
        end_with_parent()

    def init_transfer_engine(self, init_info: WeightTransferInitInfo) -> None:
        """Nothing to set up: the parts say where their tensors are."""

    def start_weight_update(self) -> None:
        self._has_head = False
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        # The base class would synchronise torch.accelerator, which raises if there is none.
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # once for all copies, whose memory may change after this

    def receive_weights(self, update_info: WeightParts) -> None:
        # Layerwise loading keeps the tensors, and the memory under these views, until the update ends.
        receiver = self._receivers[update_info.transport]
        weights = itertools.chain.from_iterable(map(receiver.read, update_info.parts))
        self.model.load_weights(self._on_device(weights))  # type: ignore[operator]  # all models of vLLM have it

    def _on_device(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self._has_head |= name.endswith("lm_head.weight")
            yield name, tensor.to(self.device, non_blocking=True)  # one copy beside the next

    def finish_weight_update(self) -> None:
        # vLLM only warns if the head got no new weights, even where that is right because the head is tied.
        if not (self._has_head or self.model_config.hf_text_config.tie_word_embeddings):
            raise RuntimeError("the weights have no lm_head.weight, and the model's head is not tied to its embedding")
        finalize_layerwise_reload(self.model, self.model_config)
        # A tied lm_head is loaded under the embedding's name only, so on a CPU layerwise loading leaves the head's
        # packed copy of the old weights in place.
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        self._receivers.close()

    def pinned_weights(self) -> tuple[int, int]:
        """Bytes of the built-in transport's files that are pinned for copies to this GPU, and bytes of all of them."""
        pinned = cast(BucketReceiver, self._receivers[BUCKETS]).pinned
        return pinned.counts() if pinned else (0, 0)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies. Linux only.

    Otherwise an engine that is stuck, or whose generator was killed, would hold its memory forever.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


WeightTransferEngineFactory.register_engine(BACKEND, WeightLoader)


class WeightTransferExtension:
    """Mixed into vLLM's worker class, so that workers import this module."""

    weight_transfer_engine: WeightLoader

    def pinned_weights(self) -> tuple[int, int]:
        return self.weight_transfer_engine.pinned_weights()
