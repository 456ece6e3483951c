"""The state of Ray's cluster. The only module that calls Ray's private state API."""

import asyncio
import warnings

import ray
from ray._private.state import state
from ray.exceptions import RayError


def draining_nodes() -> set[str]:
    """The ids of the nodes that are being drained.

    Raises:
        RayError, OSError: the cluster's head is unreachable.
    """
    return set(state.get_draining_nodes())


def free_resources() -> list[dict[str, float]]:
    """The free resources of each node, by kind."""
    return list(state.available_resources_per_node().values())


def nodes_alive() -> dict[str, dict[str, float]]:
    """All resources of each living node, free or not, by node id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


async def is_alive(node: str) -> bool:
    """Whether a node is alive. True if Ray cannot be asked."""
    try:
        return node in await asyncio.to_thread(nodes_alive)
    except (RayError, OSError):
        return True


def was_started_again() -> bool:
    """Whether the calling actor has died before and was restarted by Ray."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray 2.60's property itself uses a deprecated one
        return ray.get_runtime_context().was_current_actor_reconstructed
