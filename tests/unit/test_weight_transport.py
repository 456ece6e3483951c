"""How weights travel: what a generator makes of a transport whose ends fail, and how a transport is named."""

import asyncio
import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import RayTaskError

from actors.lifecycle.failures import Hung, what_happened
from pipeline.errors import ConfigError
from pipeline.weights.bucket_files import stage
from pipeline.weights.bucket_transport import TRANSPORT, BucketReceiver
from pipeline.weights.transport import BUCKETS, Receivers, Weights, WeightsLost, load_transport


class Died(BaseException):
    """The generator's process has ended itself."""


class Engine:
    """Notes what it loads.

    Args:
        error: what loading raises, if it does.
    """

    is_dead = False

    def __init__(self, error: Exception | None = None):
        self.error, self.loaded = error, []

    async def load_weights(self, version: int, transport: str, parts: list[dict]) -> float:
        self.loaded.append((version, transport, parts))
        if self.error:
            raise self.error
        return 0.5


class Receiver:
    """Fetches the pieces of all ranks.

    Args:
        error: what fetching raises, if it does.
    """

    def __init__(self, error: Exception | None = None):
        self.error, self.fetched = error, 0

    @contextlib.asynccontextmanager
    async def fetch(self, weights: Weights):
        if self.error:
            raise self.error
        self.fetched += 1
        try:
            yield [{"piece": piece} for piece in weights.pieces]
        finally:
            self.fetched -= 1


WEIGHTS = Weights(3, "mine", ("of rank 0", "of rank 1"))


@pytest.fixture
def generator(tiny_config, monkeypatch):
    """Makes a generator of an engine and a receiver."""
    from actors.generation import generator as module

    def exit_process(status):
        raise Died

    monkeypatch.setattr(module.os, "_exit", exit_process)

    def make(engine, receiver):
        made = module.Generator.__ray_metadata__.modified_class("generator-0", tiny_config, 0)
        made.engine, made._receivers = engine, {"mine": receiver}
        return made

    return make


def test_what_is_fetched_is_loaded_and_then_let_go(generator):
    engine, receiver = Engine(), Receiver()
    assert asyncio.run(generator(engine, receiver).load_weights(WEIGHTS)) == 0.5
    assert engine.loaded == [(3, "mine", [{"piece": "of rank 0"}, {"piece": "of rank 1"}])]
    assert receiver.fetched == 0


@pytest.mark.parametrize("error", [WeightsLost("gone"), OSError("no such file"), ValueError("damaged")])
def test_weights_that_cannot_be_fetched_leave_the_engine_as_it_is(generator, error):
    engine = Engine()
    with pytest.raises(type(error), match=str(error)):
        asyncio.run(generator(engine, Receiver(error)).load_weights(WEIGHTS))
    assert engine.loaded == []


def test_a_generator_ends_itself_when_its_weights_are_in_doubt(generator):
    receiver = Receiver()
    with pytest.raises(Died):
        asyncio.run(generator(Engine(OSError("unreadable")), receiver).load_weights(WEIGHTS))
    assert receiver.fetched == 0


def test_only_loading_counts_as_standing_still(generator, tiny_config, monkeypatch):
    """Fetching may take as long as the network does."""
    monkeypatch.setattr(tiny_config.generator, "stall_s", 0.1)

    class SlowReceiver(Receiver):
        @contextlib.asynccontextmanager
        async def fetch(self, weights: Weights):
            await asyncio.sleep(0.3)
            yield []

    class SlowEngine(Engine):
        async def load_weights(self, *arguments) -> float:
            await asyncio.sleep(0.3)
            return await super().load_weights(*arguments)

    assert asyncio.run(generator(Engine(), SlowReceiver()).load_weights(WEIGHTS)) == 0.5
    with pytest.raises(Hung, match=r"^took longer than generator.stall_s=0.1 to load new weights"):
        asyncio.run(generator(SlowEngine(), Receiver()).load_weights(WEIGHTS))


def test_fetching_has_a_limit_and_a_receivers_own_error_is_not_taken_for_it(generator, monkeypatch):
    class HangingReceiver(Receiver):
        @contextlib.asynccontextmanager
        async def fetch(self, weights: Weights):
            await asyncio.sleep(60)
            yield []

    monkeypatch.setattr("actors.generation.generator.FETCH_S", 0.1)
    with pytest.raises(Hung, match=r"^took longer than 0.1 s to fetch new weights"):
        asyncio.run(generator(Engine(), HangingReceiver()).load_weights(WEIGHTS))
    with pytest.raises(TimeoutError, match="my server"):
        asyncio.run(generator(Engine(), Receiver(TimeoutError("my server"))).load_weights(WEIGHTS))


def test_one_that_freezes_before_it_is_in_service_is_found(tiny_config, monkeypatch):
    """It may hold the lock on a bucket for which the node's other generators wait."""
    from actors.generation.generator_pool import GeneratorPool, Member

    monkeypatch.setattr(tiny_config.generator, "stall_s", 0.1)

    async def never():
        await asyncio.Event().wait()

    async def join() -> None:
        actor = SimpleNamespace(heartbeat=SimpleNamespace(remote=never))
        await GeneratorPool(tiny_config, print)._while_alive("generator-0", Member(actor, "node", version=0), never())

    with pytest.raises(Hung, match="its engine did nothing for generator.stall_s=0.1"):
        asyncio.run(asyncio.wait_for(join(), 10))


def test_a_generator_asks_for_its_resources(tiny_config, monkeypatch):
    from actors.generation import generator_pool as module

    asked = {}
    made = SimpleNamespace(remote=lambda *_: "a generator")
    monkeypatch.setattr(module, "Generator", SimpleNamespace(options=lambda **options: asked.update(options) or made))
    monkeypatch.setattr(tiny_config.generator, "resources", {"spot": 1.0})
    assert module.GeneratorPool(tiny_config, print).make(0) == "a generator"
    assert asked["resources"] == {"spot": 1.0}


def test_the_pool_says_that_a_generator_stood_still(tiny_config):
    from actors.generation.generator_pool import GeneratorPool, Member

    async def load() -> None:
        pool = GeneratorPool(tiny_config, print)
        await pool.publish(WEIGHTS)

        async def fail():
            raise RayTaskError("load_weights", "a traceback", Hung("took longer")).as_instanceof_cause()

        actor = SimpleNamespace(load_weights=SimpleNamespace(remote=lambda weights: fail()))
        await pool._load_newer("generator-0", Member(actor, "node", version=0))

    with pytest.raises(Hung) as error:
        asyncio.run(load())
    assert what_happened(error.value) == "took longer"


def test_one_that_is_closed_while_it_loads_just_ends(generator):
    closing = generator(Engine(RuntimeError("the engine was shut down")), Receiver())
    closing._closing = True
    assert asyncio.run(closing.load_weights(WEIGHTS)) == 0.0


def test_a_transport_is_named_or_named_as_code():
    assert load_transport(BUCKETS) is TRANSPORT
    assert load_transport("pipeline.weights.bucket_transport:TRANSPORT") is TRANSPORT
    receivers = Receivers()
    assert isinstance(receivers[BUCKETS], BucketReceiver) and receivers[BUCKETS] is receivers[BUCKETS]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pigeons", "'pigeons' is none of buckets, nor a module:name"),
        ("no_such_module:TRANSPORT", "No module named 'no_such_module'"),
        ("pipeline.weights.bucket_transport:BucketSender", "is no WeightTransport"),
    ],
)
def test_what_is_no_transport_is_refused(name, said):
    with pytest.raises(ConfigError, match=said):
        load_transport(name)


def test_what_a_killed_generator_left_makes_room_for_the_next_version(monkeypatch):
    removed = []
    monkeypatch.setattr("pipeline.weights.bucket_transport.remove_orphans", lambda: removed.append(True))

    async def fetch():
        async with BucketReceiver().fetch(Weights(1, BUCKETS, ([],))) as parts:
            assert parts == [] and removed

    asyncio.run(fetch())


def test_every_rank_gathers_the_whole_model_and_sends_its_share(tiny_config, monkeypatch):
    import torch

    from pipeline.weights import bucket_transport as module

    monkeypatch.setattr(module, "ray", SimpleNamespace(put=lambda bucket: bucket, ObjectRef=object))
    asked = []

    def parameters(group_bytes):
        asked.append(group_bytes)
        yield from {"a": torch.ones(6), "b": torch.zeros(2), "c": torch.zeros(3), "d": torch.ones(4)}.items()
        asked.append("end")

    senders = [TRANSPORT.sender(tiny_config, rank, 3) for rank in range(3)]
    for version in (1, 2):
        for sender in senders:
            sender.copy(version, parameters)
        pieces = [sender.send() for sender in senders]
        names = [[(sent.place, *(entry[0] for entry in sent.bucket.entries)) for sent in piece] for piece in pieces]
        assert names == [[(0, "a")], [(1, "b", "d")], [(2, "c")]]
    assert asked == [2**20, "end"] * 6


def test_parts_come_in_the_models_order_whichever_rank_sent_them(tiny_config, monkeypatch, tmp_path):
    """So an engine completes one layer after the other."""
    import torch

    from pipeline.weights import bucket_transport as module
    from pipeline.weights.buckets import WeightBucket

    async def published(bucket: WeightBucket) -> WeightBucket:
        return bucket

    monkeypatch.setattr(module, "ray", SimpleNamespace(put=lambda bucket: bucket, exceptions=ray.exceptions))
    monkeypatch.setattr(module, "stage", lambda bucket, spares: stage(bucket, tmp_path, spares))
    monkeypatch.setattr(tiny_config.learner, "bucket_mib", 1)
    sizes = torch.randint(1, 300_000, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    model = {f"t{number:02}": torch.full((size,), float(number)) for number, size in enumerate(sizes)}
    pieces = []
    for rank in range(3):
        sender = TRANSPORT.sender(tiny_config, rank, 3)
        sender.copy(1, lambda group_bytes: iter(model.items()))
        pieces.append([replace(sent, bucket=published(sent.bucket)) for sent in sender.send()])

    async def fetch() -> list[list[str]]:
        async with BucketReceiver().fetch(Weights(1, BUCKETS, tuple(pieces))) as parts:
            return [[entry[0] for entry in part["entries"]] for part in parts]

    parts = asyncio.run(fetch())
    assert sorted(name for part in parts for name in part) == list(model) and len(parts) > 12
    assert [part[0] for part in parts] == sorted(part[0] for part in parts)


def test_a_run_with_an_unknown_transport_is_refused_before_it_starts(capsys):
    from jobs.train import main

    assert main(["preset=tiny", "train.weight_transport=pigeons"]) == 2
    assert "the weight transport 'pigeons' is none of buckets" in capsys.readouterr().err
