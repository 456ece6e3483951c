"""The worker side of weight updates: loads the tensors that the transport's receiver reads into vLLM's model.

vLLM imports this module in its workers (`worker_extension_cls`), which registers the backend with vLLM's
weight-transfer interface. The generator's side is in actors/generation/vllm_engine.py.
"""

import ctypes
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from pipeline.weights.transport import Receivers

BACKEND = "palimpsest"
PR_SET_PDEATHSIG = 1  # from linux/prctl.h


@dataclass
class WeightPart(WeightTransferUpdateInfo):
    """A part of new weights, and the name of the transport whose receiver reads it (pipeline/weights/transport.py)."""

    transport: str
    part: dict


class WeightLoader(WeightTransferEngine[WeightTransferInitInfo, WeightPart]):
    init_info_cls = WeightTransferInitInfo
    update_info_cls = WeightPart

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self._receivers = Receivers()
        end_with_parent()

    def init_transfer_engine(self, init_info: WeightTransferInitInfo) -> None:
        """Nothing to set up: every part says where its tensors are."""

    def start_weight_update(self) -> None:
        self._has_head = False
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        # The base class would synchronise torch.accelerator, which raises if there is none.
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def receive_weights(self, update_info: WeightPart) -> None:
        # Layerwise loading keeps the tensors, and the memory under these views, until the update ends.
        weights = self._receivers[update_info.transport].read(update_info.part)
        self.model.load_weights(self._on_device(weights))  # type: ignore[operator]  # all models of vLLM have it

    def _on_device(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self._has_head |= name.endswith("lm_head.weight")
            yield name, tensor.to(self.device)

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
        """Nothing to free: no state is kept between versions."""


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies. Linux only.

    Otherwise an engine that is stuck, or whose generator was killed, would hold its memory forever.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


WeightTransferEngineFactory.register_engine(BACKEND, WeightLoader)


class WeightTransferExtension:
    """Mixed into vLLM's worker class. Its only purpose is that workers import this module."""
