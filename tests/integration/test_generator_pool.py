"""What the pool makes of generators that die, hang, or leave. These are doubles; real ones are in test_recovery."""

import asyncio
import os
import time
from dataclasses import replace

import pytest

from pipeline.weights.transport import FROM_DISK, Weights
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

        async def start(self, check_room):
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
            if what == "raise":
                raise TimeoutError("the agent's tool did not answer")
            if what == "hang":
                self.hung = True
                await asyncio.Event().wait()
            if what == "drained":
                await self.draining.wait()
                await asyncio.sleep(1)  # for the conversations that are open
                raise Draining("begins no more")
            return what, "notes"

        async def load_weights(self, weights):
            if weights.version == 1:
                os._exit(1)
            if weights.version == 2:
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
    sizes = replace(tiny_config.generator, count=1, stall_s=10.0, drain_s=float(LIMIT_S))

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


def test_a_timeout_that_an_agent_raises_is_its_own(pool):
    async def work(generators):
        with pytest.raises(TimeoutError, match="the agent's tool did not answer"):
            await generators.rollout("generator-0", "raise")
        assert generators.versions == {"generator-0": 0} and not pool.gone

    pool.run(work)


@pytest.mark.parametrize("version", [1, 2])
def test_work_is_not_to_blame_for_a_generator_that_died_or_failed_with_new_weights(pool, version):
    from actors.generation.generator_pool import GeneratorLost

    async def work(generators):
        rolling = asyncio.create_task(generators.rollout("generator-0", "drained"))
        await asyncio.sleep(0.5)
        await generators.publish(Weights(version))
        with pytest.raises(GeneratorLost) as error:
            await rolling
        assert not error.value.blame
        generators._weights = FROM_DISK  # the next one starts without
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
