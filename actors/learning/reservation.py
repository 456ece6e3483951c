"""Room for learner ranks: a Ray placement group with one bundle per rank, held from one gang to the next."""

import asyncio
from collections.abc import Iterable

from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from actors.lifecycle.cluster import free_resources, nodes_alive
from pipeline.sections import LearnerSection


class NoRoom(RuntimeError):
    """The cluster has no room for this many ranks now."""


class Reservation:
    """Reserves room for learner ranks, so that no other actor takes it while they restart.

    If one of its nodes has died, make a new reservation: Ray 2.60 retries to place the lost bundles without a pause
    (35 million times in four minutes), which occupies a core of the head.
    """

    def __init__(self, learner: LearnerSection):
        self._learner = learner
        self.group: PlacementGroup | None = None

    @property
    def size(self) -> int:
        """The number of ranks for which there is a reservation."""
        return self.group.bundle_count if self.group else 0

    async def make(self, size: int, limit_s: float) -> None:
        """Reserve room for `size` ranks. Raises `NoRoom` if there is none within `limit_s` seconds."""
        self.release()
        self.group = ranks_placement(self._learner, size)
        try:
            async with asyncio.timeout(limit_s):
                await self.group.ready()
        except TimeoutError:
            self.release()
            raise NoRoom(f"no room for {size} learner ranks") from None

    def release(self) -> None:
        """Give up the room."""
        if self.group:
            remove_placement_group(self.group)
            self.group = None

    def is_whole(self) -> bool:
        """Whether there is a reservation and all its nodes are alive."""
        if not self.group:
            return False
        return nodes_alive().keys() >= set(placement_group_table(self.group)["bundles_to_node_id"].values())

    def reachable(self) -> int:
        """How many ranks the reserved and the free resources have room for now, at most `learner.ranks`."""
        return min(self._learner.ranks, self.size + ranks_in(free_resources(), self._learner))


def bundle_of(learner: LearnerSection) -> dict[str, float]:
    """The resources of one rank."""
    gpus = {"GPU": learner.num_gpus} if learner.num_gpus else {}
    return {"CPU": learner.num_cpus, **gpus, **learner.resources}


def ranks_placement(learner: LearnerSection, size: int) -> PlacementGroup:
    """A placement group for `size` ranks on as few nodes as possible; it waits until there is room."""
    return placement_group([bundle_of(learner)] * size, strategy="PACK")


def ranks_in(nodes: Iterable[dict[str, float]], learner: LearnerSection) -> int:
    """How many ranks fit on nodes with these resources, at most `learner.ranks`."""
    bundle = bundle_of(learner)
    room = (min(int(has.get(kind, 0) / amount) for kind, amount in bundle.items() if amount) for has in nodes)
    return min(learner.ranks, sum(room))
