"""Room for learner ranks: a Ray placement group with a bundle a rank, held from one gang to the next."""

import asyncio
from collections.abc import Iterable

from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from actors.lifecycle.cluster import free_resources, nodes_alive
from pipeline.sections import LearnerSection


class NoRoom(RuntimeError):
    """The cluster has no room for so many ranks now."""


class Reservation:
    """While it is held, no other actor takes the room of ranks that are being started again.

    When a node of it has died it has to be made anew: Ray 2.60 tries to place the lost bundles again without a pause,
    which takes a core of the head (35 million times in four minutes).
    """

    def __init__(self, learner: LearnerSection):
        self._learner = learner
        self.group: PlacementGroup | None = None

    @property
    def size(self) -> int:
        """For how many ranks it is."""
        return self.group.bundle_count if self.group else 0

    async def make(self, size: int, limit_s: float) -> None:
        """Wait until there is room for so many ranks. Raises `NoRoom` if there is none in time."""
        self.release()
        self.group = ranks_placement(self._learner, size)
        try:
            async with asyncio.timeout(limit_s):
                await self.group.ready()
        except TimeoutError:
            self.release()
            raise NoRoom(f"no room for {size} learner ranks") from None

    def release(self) -> None:
        """Leave the room to others."""
        if self.group:
            remove_placement_group(self.group)
            self.group = None

    def is_whole(self) -> bool:
        """Whether there is one, and all its nodes live."""
        if not self.group:
            return False
        return nodes_alive().keys() >= set(placement_group_table(self.group)["bundles_to_node_id"].values())

    def reachable(self) -> int:
        """How many ranks there would be room for now, with what is held and what nobody has."""
        return min(self._learner.ranks, self.size + ranks_in(free_resources(), self._learner))


def bundle_of(learner: LearnerSection) -> dict[str, float]:
    """The resources of one rank."""
    return {"CPU": learner.num_cpus} | ({"GPU": learner.num_gpus} if learner.num_gpus else {})


def ranks_placement(learner: LearnerSection, size: int) -> PlacementGroup:
    """Room for so many ranks, on as few nodes as may be, once the cluster has it."""
    return placement_group([bundle_of(learner)] * size, strategy="PACK")


def ranks_in(nodes: Iterable[dict[str, float]], learner: LearnerSection) -> int:
    """How many ranks, up to all that are wanted, nodes with these resources have room for."""
    bundle = bundle_of(learner)
    room = (min(int(has.get(kind, 0) / amount) for kind, amount in bundle.items() if amount) for has in nodes)
    return min(learner.ranks, sum(room))
