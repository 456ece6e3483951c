"""How long a weight version takes to reach all nodes, simulated. Nothing is sent.

Ray's object store spreads an object as follows (Ray 2.60). A node that lacks it asks a random node that has the whole
of it. That node sends in chunks and gives each freed slot of its window to the oldest request, so requests of about a
window are served together. When the last chunk has arrived, the receiver is a further node to ask. Here a node sends
and receives at its network's bandwidth, which the transfers in each direction share equally.

Left out are the time of a request, requests that Ray repeats after ten seconds, checksums, the copy into shared memory,
and what Ray's TCP connections do not reach of a fast network. So the times are optimistic on fast networks.
"""

import random
from collections import Counter, deque
from dataclasses import dataclass

from pipeline.learning.device_memory import Architecture

WINDOW = 2 * 2**30  # bytes that a node has in flight: Ray's object_manager_max_bytes_in_flight


@dataclass(frozen=True)
class Copy:
    """A bucket and the node that has its first copy."""

    size: int  # bytes
    node: int


def tensor_sizes(a: Architecture) -> list[int]:
    """Numbers in each matrix of a model, in the model's order. Norms and biases, which are small, are left out."""
    layer = [a.hidden * width for width in (a.query, a.key_value, a.key_value, a.query, *[a.intermediate] * 3)]
    embedding = a.vocabulary * a.hidden
    others = a.parameters - a.layers * sum(layer)
    return [embedding, *layer * a.layers, *([embedding] if others >= 2 * embedding else [])]


def first_copies(a: Architecture, weight_bytes: int, bucket_bytes: int, ranks: int, nodes: int) -> list[Copy]:
    """The buckets in the order in which receivers fetch them, on the nodes of the learner ranks, numbered from 0.

    Each rank packs its share of the tensors, as `BucketSender` does. Ranks are spread evenly over the nodes.
    """
    shares = [0] * ranks
    open_bucket: dict[int, int] = {}  # by rank: its place in `buckets`
    buckets: list[tuple[int, int]] = []  # size and rank
    for numbers in tensor_sizes(a):
        size = numbers * weight_bytes
        rank = shares.index(min(shares))
        shares[rank] += size
        place = open_bucket.get(rank)
        if place is None or buckets[place][0] + size > bucket_bytes:
            open_bucket[rank] = len(buckets)
            buckets.append((size, rank))
        else:
            buckets[place] = buckets[place][0] + size, rank
    return [Copy(size, rank * nodes // ranks) for size, rank in buckets]


@dataclass
class _Transfer:
    bucket: int
    source: int
    target: int
    left: float  # bytes


def broadcast_seconds(
    copies: list[Copy], receivers: int, bandwidth: float, in_order: bool = False, seed: int = 0
) -> float:
    """Seconds until the last of the receiving nodes has all buckets.

    Args:
        copies: the buckets in the order in which they are fetched, `AT_ONCE` at a time.
        receivers: nodes that fetch; none of them has a first copy.
        bandwidth: of a node's network in bytes/s, in each direction.
        in_order: what if all receivers fetched the buckets in the same order; `BucketReceiver` begins at a random one.
        seed: of the random choices.
    """
    from pipeline.weights.bucket_transport import AT_ONCE  # here, since it imports Ray and torch

    choose = random.Random(seed)
    senders = 1 + max(copy.node for copy in copies)
    holders = [[copy.node] for copy in copies]
    queues: dict[int, deque[_Transfer]] = {node: deque() for node in range(senders + receivers)}
    asked = Counter[int]()  # buckets that a receiver has asked for
    first = {target: 0 if in_order else choose.randrange(len(copies)) for target in list(queues)[senders:]}

    def ask(target: int) -> None:
        if asked[target] < len(copies):
            bucket = (first[target] + asked[target]) % len(copies)
            asked[target] += 1
            source = choose.choice(holders[bucket])
            queues[source].append(_Transfer(bucket, source, target, float(copies[bucket].size)))

    targets = list(range(senders, senders + receivers))
    choose.shuffle(targets)
    for target in targets:
        for _ in range(AT_ONCE):
            ask(target)
    now = 0.0
    while active := [transfer for queue in queues.values() for transfer in _served(queue)]:
        sending = Counter(transfer.source for transfer in active)
        receiving = Counter(transfer.target for transfer in active)
        shares = [max(sending[transfer.source], receiving[transfer.target]) for transfer in active]
        step = min(transfer.left * share for transfer, share in zip(active, shares, strict=True))
        now += step
        for transfer, share in zip(active, shares, strict=True):
            transfer.left -= step / share
            if transfer.left < 1:  # byte: the rest is rounding
                queues[transfer.source].remove(transfer)
                holders[transfer.bucket].append(transfer.target)
                ask(transfer.target)
    return now / bandwidth


def _served(queue: deque[_Transfer]) -> list[_Transfer]:
    """The oldest transfers of a node, as many as its window holds, and at least one."""
    served: list[_Transfer] = []
    size = 0.0
    for transfer in queue:
        if served and size + transfer.left > WINDOW:
            break
        served.append(transfer)
        size += transfer.left
    return served
