"""The simulated broadcast against times worked by hand, and its buckets against those that the ranks send."""

import json
from types import SimpleNamespace

import pytest
import torch

from jobs.bench import broadcast as claim
from pipeline.config import CONFIGS
from pipeline.errors import ConfigError
from pipeline.learning.device_memory import Architecture, architecture_of
from pipeline.weights.broadcast import WINDOW, Copy, broadcast_seconds, first_copies, tensor_sizes
from pipeline.weights.bucket_transport import BucketSender

MB = 10**6


def test_one_node_receives_at_its_own_bandwidth():
    copies = [Copy(100 * MB, 0), Copy(300 * MB, 1), Copy(200 * MB, 0)]
    assert broadcast_seconds(copies, 1, 1e8) == pytest.approx(6.0)
    assert broadcast_seconds(copies, 1, 1e9) == pytest.approx(0.6)


def test_one_bucket_leaves_its_first_node_once_for_every_node_that_asks_at_once():
    assert broadcast_seconds([Copy(100 * MB, 0)], 5, 1e8) == pytest.approx(5.0)


def test_a_bucket_larger_than_the_window_is_sent_to_one_node_after_the_other():
    """Two nodes, buckets of 3 and 1 GB from one node. The first node has both after 4 s, sent in the order of its
    requests while the second waits. Each bucket is asked of the only node that has it, so all takes 8 s."""
    big = [Copy(3 * 10**9, 0), Copy(10**9, 0)]
    assert big[0].size > WINDOW
    assert broadcast_seconds(big, 2, 1e9, in_order=True) == pytest.approx(8.0)


def test_a_node_passes_on_what_it_has():
    """Two nodes, eight buckets of a second each on one. In the same order both ask for the same four at once. If one
    begins with the last four, it may pass them on while the first node sends the others."""
    copies = [Copy(100 * MB, 0)] * 8
    in_order = broadcast_seconds(copies, 2, 1e8, in_order=True)
    assert 8 <= in_order <= 16 + 1e-6
    assert min(broadcast_seconds(copies, 2, 1e8, seed=seed) for seed in range(20)) < 16


@pytest.mark.parametrize("in_order", [False, True])
def test_no_broadcast_is_faster_than_the_networks(in_order):
    """Every node receives all bytes, and all first copies leave the nodes that have them."""
    copies = [Copy(50 * MB, n % 3) for n in range(40)]
    for nodes in (1, 4, 16):
        seconds = broadcast_seconds(copies, nodes, 1e9, in_order)
        assert 2.0 - 1e-6 <= seconds <= nodes * 2.0 + 1e-6
    assert broadcast_seconds(copies, 16, 1e9) < 0.5 * broadcast_seconds(copies, 16, 1e9, in_order=True)


def test_a_time_is_inversely_proportional_to_the_bandwidth():
    copies = [Copy((n + 1) * MB, n % 2) for n in range(20)]
    assert broadcast_seconds(copies, 6, 1e9) == pytest.approx(10 * broadcast_seconds(copies, 6, 1e10))


@pytest.mark.parametrize("tied", [True, False])
def test_the_buckets_are_those_that_the_ranks_send(tied, monkeypatch):
    """Three ranks with buckets of 1 MiB; the sender's own code packs tensors of these sizes."""
    embedding, layer = 400 * 256, [256 * 256, 256 * 64, 256 * 64, 256 * 256, *[256 * 512] * 3]
    parameters = sum(layer) * 4 + embedding * (1 if tied else 2) + 9 * 256
    a = Architecture(parameters, 4, 256, 512, 256, 64, 4, 400)
    sizes = [embedding, *layer * 4, *([] if tied else [embedding])]
    assert tensor_sizes(a) == sizes

    sent = []
    for rank in range(3):
        learner = SimpleNamespace(bucket_mib=1, weight_deltas=False)
        sender = BucketSender(SimpleNamespace(learner=learner), rank, 3)
        sender.copy(1, lambda _: ((str(i), torch.zeros(size)) for i, size in enumerate(sizes)))
        sent += [(sender._places[n], bucket.data.nbytes, rank) for n, bucket in enumerate(sender._packer.buckets())]
    expected = [Copy(size, rank) for _, size, rank in sorted(sent)]
    assert first_copies(a, 4, 2**20, ranks=3, nodes=3) == expected


def test_the_bytes_are_those_of_the_model():
    a = architecture_of(json.loads((CONFIGS / "models" / "Qwen2.5-7B-Instruct" / "config.json").read_text()))
    copies = first_copies(a, 2, 64 * 2**20, ranks=24, nodes=3)
    assert sum(copy.size for copy in copies) == pytest.approx(2 * 7_615_616_512, rel=1e-3)
    held = [sum(copy.size for copy in copies if copy.node == node) for node in range(3)]
    assert max(held) - min(held) < 1.2e9  # an embedding is a bucket of 1.09 GB


def test_the_claim_has_a_row_for_each_number_of_nodes_and_order():
    text = claim.run(claim.Settings(model="Qwen2.5-0.5B-Instruct", nodes=[1, 2], bandwidths=[1.0, 10.0]))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[4:]]
    assert [row[0] for row in rows] == ["1", "1", "2", "2"]
    assert rows[0][2:] == ["1.0 s", "0.1 s"]  # 0.99 GB
    assert text.startswith("Qwen2.5-0.5B-Instruct: 1.0 GB in ")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nodes": [0]}, "nodes="),
        ({"bandwidths": []}, "bandwidths="),
        ({"learner_nodes": 25}, "between 1 and ranks=24"),
        ({"bucket_mib": 0}, "bucket_mib=0"),
        ({"model": "Qwen3"}, "there are Qwen2.5-0.5B-Instruct"),
    ],
)
def test_wrong_settings_are_explained(settings, said):
    with pytest.raises(ConfigError, match=said):
        claim.run(claim.Settings(**settings))
