"""What Ray knows of its cluster. The one file that calls Ray's private state API."""

import asyncio
import warnings

import ray
from ray._private.state import state
from ray.exceptions import RayError


def draining_nodes() -> set[str]:
    """The ids of the nodes that are being drained.

    Raises:
        RayError, OSError: the cluster's head is away.
    """
    return set(state.get_draining_nodes())


def free_resources() -> list[dict[str, float]]:
    """What nobody has of each node's resources, by their kind."""
    return list(state.available_resources_per_node().values())


def nodes_alive() -> dict[str, dict[str, float]]:
    """All resources of each node that is alive, by its id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


async def is_alive(node: str) -> bool:
    """Whether Ray knows a node to be there; if Ray cannot say, it is taken to be."""
    try:
        return node in await asyncio.to_thread(nodes_alive)
    except (RayError, OSError):
        return True


def was_started_again() -> bool:
    """Whether the actor that this is called in died before, and Ray started it again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray 2.60's property uses another one that is deprecated
        return ray.get_runtime_context().was_current_actor_reconstructed
