"""Model FLOPs of a decoder and peaks of devices, for the model FLOPs utilization (MFU, arXiv 2204.02311, appendix B).

Only matrix products count, a multiplication with its addition as two. What a method computes again for want of memory
does not count, nor do forward passes beside the training ones (proximal log-probs, the reference model).
"""

import re
from dataclasses import dataclass

from pipeline.learning.device_memory import Architecture

FORWARD, FORWARD_AND_BACKWARD = 1, 3  # FLOPs over those of a forward pass
# Dense bfloat16 FLOP/s by words in the device's name, from the vendors' data sheets; the first match counts.
PEAKS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A40": 150e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "MI300X": 1307e12,
}
NOT_THAT = re.compile(r"\b(MIG|Laptop|4090 D)\b")  # a part of a device, or a slower one with its name


@dataclass(frozen=True)
class Computed:
    """What goes through a model.

    tokens     tokens
    pairs      pairs of a token and one that it attends to, itself among them
    predicted  tokens whose log-probs are computed; only they need the head
    """

    tokens: int = 0
    pairs: int = 0
    predicted: int = 0

    def __add__(self, other: "Computed") -> "Computed":
        return Computed(self.tokens + other.tokens, self.pairs + other.pairs, self.predicted + other.predicted)

    def __sub__(self, other: "Computed") -> "Computed":
        return Computed(self.tokens - other.tokens, self.pairs - other.pairs, self.predicted - other.predicted)


def forward_flops(a: Architecture, computed: Computed) -> int:
    """FLOPs of a forward pass of a decoder with gated feed-forward layers."""
    token = 2 * a.hidden * (2 * a.query + 2 * a.key_value + 3 * a.intermediate)
    layers = a.layers * (token * computed.tokens + 4 * a.query * computed.pairs)
    return layers + 2 * a.hidden * a.vocabulary * computed.predicted


def speeds(
    role: str,
    computed: Computed,
    device_s: float,
    architecture: Architecture | None,
    peak: float | None,
    passes: int,
) -> dict[str, float | None]:
    """The metrics of how fast the devices of a role computed.

    <role>_tokens_per_device_second  tokens that went through the model
    <role>_tflops                    model FLOPs per device and second, in 10^12; None if the architecture is unknown
    <role>_mfu                       the share of the device's peak; None if that is unknown, too

    Args:
        role: the role's name.
        computed: what all its devices computed.
        device_s: seconds that they worked, added up over the devices.
        architecture: the model's; None: unknown.
        peak: of a device in FLOP/s; None: unknown.
        passes: `FORWARD` or `FORWARD_AND_BACKWARD`.
    """
    flops = passes * forward_flops(architecture, computed) / device_s if architecture and device_s > 0 else None
    return {
        f"{role}_tokens_per_device_second": computed.tokens / device_s if device_s > 0 else None,
        f"{role}_tflops": None if flops is None else flops / 1e12,
        f"{role}_mfu": None if flops is None or peak is None else flops / peak,
    }


def peak_flops(device: str, dtype: str) -> float | None:
    """The peak of a device in FLOP/s, None if unknown.

    Args:
        device: its name, as CUDA gives it; empty: a CPU, whose peak nobody states.
        dtype: of the weights. Only bfloat16 has a known peak.
    """
    if dtype != "bfloat16" or NOT_THAT.search(device):
        return None
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device)), None)
