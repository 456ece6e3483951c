"""Deltas of weight buckets: the new version bit by bit, or none."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch

from pipeline.weights import bucket_files, bucket_transport
from pipeline.weights.bucket_files import BucketError, stage, stage_delta
from pipeline.weights.bucket_transport import BucketReceiver, BucketSender
from pipeline.weights.buckets import WeightBucket, pack_buckets
from pipeline.weights.deltas import delta_of, patched
from pipeline.weights.transport import Weights, WeightsLost

NUMBERS = 300_000


def bucket_of(values: torch.Tensor) -> WeightBucket:
    (bucket,) = pack_buckets([("w", values)], 2**20)
    return bucket


@pytest.fixture
def old() -> torch.Tensor:
    return torch.randn(NUMBERS, generator=torch.Generator().manual_seed(1)).bfloat16()


def changed(values: torch.Tensor, share: float) -> torch.Tensor:
    """Other values in this share of the places, NaN, infinity and -0 among them."""
    generator = torch.Generator().manual_seed(2)
    places = torch.randperm(len(values), generator=generator)[: int(share * len(values))]
    values = values.clone()
    values[places] = torch.randn(len(places), generator=generator).bfloat16()
    values[places[:4]] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0]).bfloat16()[: len(places)]
    return values


@pytest.mark.parametrize("share", [0.0, 1e-5, 0.01, 0.2])
def test_a_delta_gives_the_new_version_bit_by_bit(old, share):
    before, after = bucket_of(old), bucket_of(changed(old, share))
    delta = delta_of(before, after)
    assert (delta.base, delta.checksum) == (before.checksum, after.checksum)
    assert delta.changed == (before.data.view(np.uint16) != after.data.view(np.uint16)).sum()
    assert np.array_equal(patched(before.data, delta), after.data)
    # The entropy of which of n words changed, and of their values, bounds every lossless code.
    assert len(delta.data) < 2 * NUMBERS * (0.001 if share < 0.01 else 2.2 * share)


def test_places_far_apart_are_found():
    """Distances above 16 bits."""
    old = torch.zeros(2**18, dtype=torch.bfloat16)
    new = old.clone()
    new[[0, 70_000, 2**18 - 1]] = 1.0
    delta = delta_of(bucket_of(old), bucket_of(new))
    assert delta.changed == 3 and np.array_equal(patched(bucket_of(old).data, delta), bucket_of(new).data)


def test_what_would_not_be_smaller_is_no_delta(old):
    assert delta_of(bucket_of(old), bucket_of(changed(old, 0.9))) is None
    weights = torch.randn(1000)
    assert delta_of(bucket_of(weights), bucket_of(weights * 1.001)) is None  # float32
    assert delta_of(bucket_of(old), bucket_of(old[:1000])) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda delta: replace(delta, data=delta.data[:-1]),
        lambda delta: replace(delta, data=b"nonsense"),
        lambda delta: replace(delta, changed=delta.changed + 1),
        lambda delta: replace(delta, size=delta.size + 64),
    ],
)
def test_a_damaged_delta_is_an_error(old, damage, tmp_path):
    before, after = bucket_of(old), bucket_of(changed(old, 0.01))
    base = stage(before, tmp_path)
    with pytest.raises(BucketError, match="the delta is"):
        stage_delta(damage(delta_of(before, after)), base, tmp_path)
    base.release()
    assert list(tmp_path.iterdir()) == []


def test_a_delta_to_another_base_is_refused(old, tmp_path):
    other = stage(bucket_of(changed(old, 0.1)), tmp_path)
    delta = delta_of(bucket_of(old), bucket_of(changed(old, 0.01)))
    with pytest.raises(BucketError, match="the delta is to bucket"):
        stage_delta(delta, other, tmp_path)
    with pytest.raises(BucketError, match="wrong checksum"):
        stage_delta(replace(delta, base=other.checksum), other, tmp_path)
    other.release()


# The two ends.


class Ref:
    """Stands in for a reference to an object in Ray's store; notes that it was fetched."""

    def __init__(self, value, fetched: list[str]):
        self.value, self.fetched = value, fetched

    def __await__(self):
        self.fetched.append(type(self.value).__name__)
        return self.value
        yield


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """The kinds of objects that receivers fetched."""
    fetched: list[str] = []
    monkeypatch.setattr(bucket_transport.ray, "put", lambda value: Ref(value, fetched))
    monkeypatch.setattr(bucket_files, "SHARED_MEMORY", tmp_path)
    for function in (bucket_transport.stage, bucket_transport.stage_delta, bucket_transport.remove_orphans):
        here = lambda *given, function=function, **named: function(*given, tmp_path, **named)  # noqa: E731
        monkeypatch.setattr(bucket_transport, function.__name__, here)
    return fetched


def senders_of(tiny_config, deltas: bool) -> list[BucketSender]:
    learner = replace(tiny_config.learner, weight_deltas=deltas, bucket_mib=1)
    return [BucketSender(replace(tiny_config, learner=learner), rank, 2) for rank in range(2)]


def published(senders, version: int, weights: dict[str, torch.Tensor]) -> Weights:
    for sender in senders:
        sender.copy(version, lambda group_bytes: iter(weights.items()))
    return Weights(version, "buckets", tuple(sender.send() for sender in senders))


async def received(receiver, weights: Weights) -> dict[str, torch.Tensor]:
    async with receiver.fetch(weights) as parts:
        return {name: tensor.clone() for part in parts for name, tensor in receiver.read(part)}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[n].view(torch.int16), other[n].view(torch.int16)) for n in one
    )


def test_whoever_has_the_version_before_fetches_what_changed(tiny_config, fetched, old, tmp_path):
    versions = [{"a": old, "b": old[:9], "c": old * 2}]
    for step in range(3):
        versions.append({name: changed(values, 0.01 * (step + 1)) for name, values in versions[-1].items()})
    senders, early, late = senders_of(tiny_config, True), BucketReceiver(), BucketReceiver()

    async def run():
        kinds = []
        for number, weights in enumerate(versions, 1):
            sent = published(senders, number, weights)
            assert equal(await received(early, sent), weights)
            kinds.append(set(fetched))
            fetched.clear()
            size = sum(path.stat().st_size for path in tmp_path.iterdir())
            one = sum(-(-2 * len(values) // 64) * 64 for values in weights.values())
            assert size == min(number, 2) * one  # this version, and the one before as spares
        assert equal(await received(late, sent), versions[-1])
        assert set(fetched) == {"WeightBucket"}
        return kinds

    assert asyncio.run(run()) == [{"WeightBucket"}, {"BucketDelta"}, {"BucketDelta"}, {"BucketDelta"}]
    early.close()
    late.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("deltas", [False, True])
def test_the_share_of_a_whole_version_that_was_sent_is_known(tiny_config, fetched, old, deltas):
    """Tensor a changes in one place of a hundred, b everywhere."""
    senders = senders_of(tiny_config, deltas)
    first = published(senders, 1, {"a": old, "b": old})
    second = published(senders, 2, {"a": changed(old, 0.01), "b": -old})
    assert bucket_transport.bytes_share(first.pieces) == 1
    share = bucket_transport.bytes_share(second.pieces)
    assert 0.5 < share < 0.52 if deltas else share == 1
    assert bucket_transport.bytes_share(()) is None


def test_new_senders_begin_with_a_whole_version(tiny_config, fetched, old, tmp_path):
    """As after a restart of the learners."""
    receiver = BucketReceiver()

    async def run():
        for number in range(2):
            senders = senders_of(tiny_config, True)
            for step in range(2):
                weights = {"a": changed(old, 0.01 * (2 * number + step))}
                assert equal(await received(receiver, published(senders, 2 * number + step, weights)), weights)

    asyncio.run(run())
    assert fetched == ["WeightBucket", "BucketDelta"] * 2
    receiver.close()
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_is_not_sent_is_no_base(tiny_config, fetched, old):
    (sender, _), receiver = senders_of(tiny_config, True), BucketReceiver()
    sender._ranks = 1

    async def run():
        assert await received(receiver, published([sender], 1, {"a": old}))
        sender.copy(2, lambda group_bytes: iter({"a": changed(old, 0.01)}.items()))
        weights = {"a": changed(old, 0.02)}
        assert equal(await received(receiver, published([sender], 3, weights)), weights)

    asyncio.run(run())
    assert fetched == ["WeightBucket", "WeightBucket"]
    receiver.close()


def test_one_that_missed_a_version_fetches_the_whole_next_one(tiny_config, fetched, old):
    senders, receiver = senders_of(tiny_config, True), BucketReceiver()
    versions = [{"a": changed(old, 0.01 * step)} for step in range(3)]

    async def run():
        for number, weights in enumerate(versions):
            sent = published(senders, number, weights)
            if number != 1:
                assert equal(await received(receiver, sent), weights)

    asyncio.run(run())
    assert fetched == ["WeightBucket", "WeightBucket"]
    receiver.close()


def test_a_lost_delta_leaves_the_version_before_as_a_base(tiny_config, fetched, old, tmp_path):
    """Its owner died. The next version may come as a delta again, if it is one to the version that is kept."""
    senders, receiver = senders_of(tiny_config, True), BucketReceiver()
    first, second = {"a": old}, {"a": changed(old, 0.01)}

    class Lost(Ref):
        def __await__(self):
            raise ray.exceptions.ObjectLostError("id", None, "")
            yield

    async def run():
        await received(receiver, published(senders, 1, first))
        sent = published(senders, 2, second)
        pieces = tuple([replace(each, delta=Lost(None, fetched)) for each in piece] for piece in sent.pieces)
        with pytest.raises(WeightsLost):
            await received(receiver, replace(sent, pieces=pieces))
        assert len(list(tmp_path.iterdir())) == 1
        assert equal(await received(receiver, sent), second)

    asyncio.run(run())
    assert fetched == ["WeightBucket", "BucketDelta"]
    receiver.close()


def test_one_that_is_closed_while_it_loads_leaves_nothing(tiny_config, fetched, old, tmp_path):
    """As at the end of a run, when the last version has just been published."""
    senders, receiver = senders_of(tiny_config, True), BucketReceiver()

    async def run():
        await received(receiver, published(senders, 1, {"a": old}))
        async with receiver.fetch(published(senders, 2, {"a": changed(old, 0.01)})):
            receiver.close()

    asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


def test_without_deltas_one_version_is_there_and_the_next_one_overwrites_it(tiny_config, fetched, old, tmp_path):
    senders, receiver = senders_of(tiny_config, False), BucketReceiver()
    files = []

    async def run():
        for number in range(3):
            assert await received(receiver, published(senders, number, {"a": changed(old, 0.01 * number)}))
            (file,) = tmp_path.iterdir()
            files.append((file.name, file.stat().st_ino))

    asyncio.run(run())
    assert set(fetched) == {"WeightBucket"}
    assert len(set(files)) == 3 and len({inode for _, inode in files}) == 1
    receiver.close()
    assert list(tmp_path.iterdir()) == []


def test_learners_that_pack_other_buckets_leave_no_spares_of_the_old_ones(tiny_config, fetched, old, tmp_path):
    """As after a restart with another number of ranks."""
    receiver = BucketReceiver()

    async def run():
        for number, weights in enumerate([{"a": old}, {"a": old[:500], "b": old[500:]}]):
            assert equal(await received(receiver, published(senders_of(tiny_config, False), number, weights)), weights)

    asyncio.run(run())
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2.01 * len(old)
    receiver.close()
    assert list(tmp_path.iterdir()) == []
