"""What the pool makes of generators that die, hang, or leave. These are doubles; real ones are in test_recovery."""

import asyncio
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from tests.support.faults import LIMIT_S


@pytest.fixture
def pool(ray_session, tiny_config, monkeypatch):
    """Runs `work(pool)` with a pool of doubles; `said` has its lines."""
    from actors.generation import generator_pool as module
    from actors.generation.generator import Draining

    @ray_session.remote(num_cpus=0, max_concurrency=100)
    class Double:
        def __init__(self):
            self.draining, self.hung = asyncio.Event(), False

        async def start(self):
            return "vLLM", ray_session.get_runtime_context().get_node_id()

        async def until_death(self):
            await asyncio.Event().wait()

        async def heartbeat(self):
            if self.hung:
                await asyncio.Event().wait()

        async def rollout(self, what):
            """Does what it is told."""
            if what == "die":
                os._exit(1)
            if what == "hang":
                self.hung = True
                await asyncio.Event().wait()
            if what == "drained":
                await self.draining.wait()
                await asyncio.sleep(1)  # for the conversations that are open
                raise Draining("begins no more")
            return what, "notes"

        async def update_weights(self, version, buckets):
            if version == 1:
                os._exit(1)
            if version == 2:
                raise ValueError("no room for new weights")
            return 0.1

        async def drain(self):
            self.draining.set()

        async def close(self):
            pass

    class Doubles(module.GeneratorPool):
        def make(self, number):
            return Double.remote()

    drained = set()
    monkeypatch.setattr(module, "draining_nodes", lambda: set(drained))
    monkeypatch.setattr(module, "DRAINING_S", 0.1)
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.1)
    sizes = replace(tiny_config.generator, count=1, stall_s=5.0, drain_s=float(LIMIT_S))

    class Running:
        def __init__(self):
            self.said: list[str] = []
            self.gone: list[str] = []

        def drain_this_node(self):
            drained.update(node["NodeID"] for node in ray_session.nodes())

        def run(self, work):
            async def main():
                config = replace(tiny_config, generator=sizes)
                pool = Doubles(config, self.said.append, left=self.gone.append)
                running = asyncio.create_task(pool.run())
                await pool.ready()
                try:
                    return await asyncio.wait_for(work(pool), LIMIT_S)
                finally:
                    running.cancel()
                    await pool.close()

            return asyncio.run(main())

        async def until_said(self, text):
            while not any(text in line for line in self.said):
                await asyncio.sleep(0.1)

    return Running()


@pytest.mark.parametrize(("how", "said"), [("die", "died; starting it again"), ("hang", "hung: its engine")])
def test_one_that_is_lost_fails_its_work_and_another_takes_its_place(pool, how, said):
    from actors.generation.generator_pool import GeneratorLeft, GeneratorLost

    async def work(generators):
        with pytest.raises(GeneratorLost) as error:
            await generators.rollout("generator-0", how)
        assert not isinstance(error.value, GeneratorLeft) and error.value.blame
        assert pool.gone == ["generator-0"] and not generators.versions  # at once: the work is not given to it again
        await pool.until_said("generator-0 is in service")
        group, notes = await generators.rollout("generator-0", "work")
        assert generators.versions == {"generator-0": 0}
        assert (await group, notes) == ("work", "notes")
        assert generators.restarts == 1 and pool.gone == ["generator-0"]

    pool.run(work)
    assert any(said in line for line in pool.said)


@pytest.mark.parametrize("version", [1, 2])
def test_work_is_not_to_blame_for_a_generator_that_died_or_failed_with_new_weights(pool, version):
    from actors.generation.generator_pool import GeneratorLost

    async def work(generators):
        rolling = asyncio.create_task(generators.rollout("generator-0", "drained"))
        await asyncio.sleep(0.5)
        await generators.publish(version, [])
        with pytest.raises(GeneratorLost) as error:
            await rolling
        assert not error.value.blame
        generators._weights = (0, [])  # the next one starts without
        await pool.until_said("starting it again")

    pool.run(work)
    assert version == 1 or any("no room for new weights; starting it again" in line for line in pool.said)


def test_work_is_not_to_blame_for_a_generator_whose_node_is_gone(pool, monkeypatch):
    from actors.generation import generator_pool as module

    monkeypatch.setattr(module.ray, "nodes", lambda: [])

    async def work(generators):
        with pytest.raises(module.GeneratorLost) as error:
            await generators.rollout("generator-0", "die")
        assert not error.value.blame

    pool.run(work)


def test_one_on_a_drained_node_is_let_finish_what_is_open(pool):
    from actors.generation.generator_pool import GeneratorLeft

    async def work(generators):
        rolling = asyncio.create_task(generators.rollout("generator-0", "drained"))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        pool.drain_this_node()
        with pytest.raises(GeneratorLeft):
            await rolling
        assert time.monotonic() - began > 1

    pool.run(work)
    assert any("leaves a node that is being drained" in line for line in pool.said)


class Never:
    """What a call that does not end returns."""

    def __await__(self):
        yield from asyncio.Event().wait().__await__()


class Actor:
    """A generator in this process that dies under its work when it is killed, and ends it in no other way.

    Args:
        pulse: what its heartbeat raises, if it does.
    """

    def __init__(self, pulse: Exception | None):
        self.work: list[asyncio.Future] = []

        async def beat():
            if not pulse or not self.work:
                return
            raise pulse

        def begin(*_):
            self.work.append(asyncio.get_running_loop().create_future())
            return self.work[-1]

        async def start():
            return "vLLM", "a node"

        calls = {"start": start, "heartbeat": beat, "answer": begin, "until_death": Never, "drain": Never}
        for name, call in calls.items():
            setattr(self, name, SimpleNamespace(remote=call))
        rollout = SimpleNamespace(remote=lambda *_: (work := begin(), work))  # the group and the notes
        self.rollout = SimpleNamespace(options=lambda **_: rollout)

    def kill(self):
        for work in self.work:
            if not work.done():
                work.set_exception(RayActorError())


@pytest.mark.parametrize("kind", ["rollout", "answer"])
@pytest.mark.parametrize(
    ("ends", "blame"),
    [
        ("it dies", True),
        ("it hangs", True),
        ("it dies on a node that is drained", False),
        ("it was drained for too long", False),
        ("its heartbeat fails", False),
    ],
)
def test_work_is_to_blame_only_for_a_generator_that_died_or_hung_of_itself(tiny_config, monkeypatch, ends, blame, kind):
    """A node that is drained is still alive."""
    from actors.generation import generator_pool as module
    from actors.lifecycle.failures import Hung

    async def alive(node):
        return True

    monkeypatch.setattr(module, "is_alive", alive)
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(ray, "kill", lambda actor: actor.kill())
    pulse = {"it hangs": Hung("hung"), "its heartbeat fails": RayTaskError("heartbeat", "failed", ValueError())}

    async def main():
        config = replace(tiny_config, generator=replace(tiny_config.generator, count=1, drain_s=0.05))
        pool = module.GeneratorPool(config, lambda line: None)
        actor = Actor(pulse.get(ends))
        monkeypatch.setattr(pool, "make", lambda number: actor)
        monkeypatch.setattr(pool, "_look_for_drained_nodes", lambda: asyncio.sleep(60))
        running = asyncio.create_task(pool.run())
        await pool.ready()
        work = asyncio.create_task(
            pool.rollout("generator-0", "group") if kind == "rollout" else pool.answer("question")
        )
        await asyncio.sleep(0.005)
        async with pool._changed:
            if "drained" in ends:
                pool._draining = {"a node"}
            if "too long" in ends:
                pool._changed.notify_all()
        if "dies" in ends:
            actor.kill()
        with pytest.raises(module.GeneratorLost) as error:
            await asyncio.wait_for(work, 10)
        running.cancel()
        return error.value

    lost = asyncio.run(main())
    assert lost.blame == blame and not isinstance(lost, module.GeneratorLeft)
