"""Seconds until the last node has a weight version, simulated for 1 to 64 nodes and networks of 1 to 50 GB/s.

Each learner rank holds its share of the version, in buckets of `learner.bucket_mib`; a larger tensor has a bucket of
its own. A node that has a bucket can pass it on. pipeline/weights/broadcast.py says how Ray's object store spreads
objects and what the simulation leaves out; its times are optimistic on fast networks.

Each node fetches the buckets from a random one on, four at a time, so that nodes soon have different buckets to pass
on. The rows "all in the same order" show why: nodes that ask for the same buckets at the same time ask the learners'
nodes for most of them. A delta takes its share of these seconds.

With `train.max_staleness` 1 or more, a run generates and trains meanwhile. A version should arrive within a step.
"""

import json
from dataclasses import dataclass, field

from jobs.bench.measuring import table
from pipeline.config import CONFIGS
from pipeline.errors import ConfigError
from pipeline.learning.device_memory import Architecture, architecture_of
from pipeline.rules import check_rules
from pipeline.weights.broadcast import broadcast_seconds, first_copies

SIMULATED = True
BFLOAT16 = 2  # bytes


@dataclass
class Settings:
    model: str = "Qwen2.5-7B-Instruct"  # a folder of configs/models, in bfloat16
    nodes: list[int] = field(default_factory=lambda: [1, 8, 64])  # numbers of nodes with generators
    bandwidths: list[float] = field(default_factory=lambda: [1.0, 10.0, 50.0])  # of a node's network in GB/s
    ranks: int = 24  # learner ranks
    learner_nodes: int = 3  # nodes with learner ranks, other than those with generators
    bucket_mib: int = 64  # learner.bucket_mib


def run(settings: Settings) -> str:
    """Simulate all numbers of nodes; return the tables. Raises `ConfigError`."""
    check(settings)
    copies = first_copies(
        architecture(settings.model), BFLOAT16, settings.bucket_mib * 2**20, settings.ranks, settings.learner_nodes
    )
    rows = []
    for nodes in settings.nodes:
        for order, in_order in (("from a random bucket on", False), ("all in the same order", True)):
            at_1_gb_s = broadcast_seconds(copies, nodes, 1e9, in_order)  # inversely proportional to the bandwidth
            rows.append((nodes, order, *(f"{at_1_gb_s / bandwidth:.1f} s" for bandwidth in settings.bandwidths)))
    size = sum(copy.size for copy in copies)
    said = f"{settings.model}: {size / 1e9:.1f} GB in {len(copies)} buckets on {settings.learner_nodes} nodes."
    return said + "\n\n" + table(("nodes", "order", *(f"{each:g} GB/s" for each in settings.bandwidths)), rows)


def check(settings: Settings) -> None:
    """Raise `ConfigError` if a number is out of range."""
    s = settings
    check_rules(
        iter(
            [
                (bool(s.nodes) and min(s.nodes) > 0, f"nodes={s.nodes} must be numbers greater than 0"),
                (bool(s.bandwidths) and min(s.bandwidths) > 0, f"bandwidths={s.bandwidths} must be greater than 0"),
                (s.bucket_mib > 0, f"bucket_mib={s.bucket_mib} must be greater than 0"),
                (
                    0 < s.learner_nodes <= s.ranks,
                    f"learner_nodes={s.learner_nodes} must lie between 1 and ranks={s.ranks}",
                ),
            ]
        )
    )


def architecture(model: str) -> Architecture:
    """The sizes of a model of configs/models. Raises `ConfigError` if there is none of this name."""
    file = CONFIGS / "models" / model / "config.json"
    if not file.is_file():
        names = ", ".join(sorted(path.name for path in file.parent.parent.iterdir()))
        raise ConfigError(f"model={model} is not in configs/models; there are {names}")
    found = architecture_of(json.loads(file.read_text(encoding="utf-8")))
    assert found is not None, f"{file} is of a family whose sizes are not known"
    return found
