"""Memory, memory bandwidth and links of the devices whose peaks pipeline/learning/flops.py knows."""

from dataclasses import dataclass

from pipeline.learning.flops import PEAKS

PCIE_4, PCIE_5 = 32e9, 64e9  # bytes/s of 16 lanes in each direction


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet.

    peak       dense bfloat16 FLOP/s
    memory     bytes
    bandwidth  bytes/s of its memory
    link       bytes/s to the other GPUs of its node, in each direction
    """

    name: str
    peak: float
    memory: float
    bandwidth: float
    link: float


# Memory in GiB, about what CUDA reports of it, and its bandwidth in TB/s, from the vendors' data sheets of the SXM form
# if there is one; B200 and GB200: those of DGX B200 and GB200 NVL72, divided by their GPUs. A100 and A800: 80 GB.
# GH200: HBM3. Links are half of what the sheets say, which add both directions: NVLink, on MI300X all of Infinity
# Fabric, else PCIe.
SHEETS = {
    "GB200": (184, 8.0, 900e9),
    "B200": (178, 8.0, 900e9),
    "GH200": (94, 4.0, 450e9),
    "H200 NVL": (139, 4.8, 450e9),
    "H200": (139, 4.8, 450e9),
    "H100 PCIe": (79, 2.0, PCIE_5),
    "H100 NVL": (93, 3.9, 300e9),
    "H100": (79, 3.35, 450e9),
    "A100": (79, 2.039, 300e9),
    "A800": (79, 2.039, 200e9),
    "L40S": (44, 0.864, PCIE_4),
    "L40": (44, 0.864, PCIE_4),
    "L4": (22, 0.3, PCIE_4),
    "A10G": (22, 0.6, PCIE_4),
    "A40": (44, 0.696, PCIE_4),
    "A10": (22, 0.6, PCIE_4),
    "RTX 4090": (23, 1.008, PCIE_4),
    "MI300X": (191, 5.3, 448e9),
}
DEVICES = {
    name: Device(name, PEAKS[name], memory * 2**30, bandwidth * 1e12, link)
    for name, (memory, bandwidth, link) in SHEETS.items()
}
