"""Which work is to blame for a lost generator, without any."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError


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

        async def start(check_room):
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
        async with pool._drained:
            if "drained" in ends:
                pool._draining = {"a node"}
            if "too long" in ends:
                pool._drained.notify_all()
        if "dies" in ends:
            actor.kill()
        with pytest.raises(module.GeneratorLost) as error:
            await asyncio.wait_for(work, 10)
        running.cancel()
        return error.value

    lost = asyncio.run(main())
    assert lost.blame == blame and not isinstance(lost, module.GeneratorLeft)
