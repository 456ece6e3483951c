"""The weight store: holds the newest version's buckets by reference, and tells generators when there is a newer one."""

import asyncio

import ray


@ray.remote(num_cpus=0)
class WeightStore:
    def __init__(self):
        self._version = 0  # the weights that every generator loads from disk
        self._buckets: list[ray.ObjectRef] = []
        self._changed = asyncio.Condition()

    async def publish(self, version: int, buckets: list[ray.ObjectRef]) -> None:
        """Replace the held version; the older one's buckets are freed once no generator reads them any more."""
        async with self._changed:
            self._version, self._buckets = version, buckets
            self._changed.notify_all()

    async def newer_than(self, version: int, wait: bool = True) -> tuple[int, list[ray.ObjectRef]] | None:
        """The newest version above `version` and its buckets; waits for one, or returns None."""
        async with self._changed:
            if wait:
                await self._changed.wait_for(lambda: self._version > version)
            return (self._version, self._buckets) if self._version > version else None
