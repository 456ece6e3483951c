"""The learner gang: all ranks started together, given their shares of a step, and asked for the new weights."""

import asyncio

import numpy as np
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.learner import Learner
from pipeline.config import Config
from pipeline.episodes import GroupRecord
from pipeline.packing import plan_step


class LearnerGang:
    """Lives in the coordinator; the ranks are actors."""

    def __init__(self, config: Config):
        self.config = config
        le = config.learner
        bundle = {"CPU": le.num_cpus} | ({"GPU": le.num_gpus} if le.num_gpus else {})
        self._placement = placement_group([bundle] * le.ranks, strategy="PACK")
        self.ranks = [
            Learner.options(
                num_cpus=le.num_cpus,
                num_gpus=le.num_gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._placement, placement_group_bundle_index=rank
                ),
            ).remote(config, rank)
            for rank in range(le.ranks)
        ]

    async def start(self) -> None:
        """Wait for the resources, form the process group and load the model on all ranks."""
        host, port = await self.ranks[0].address.remote()
        await self._all("join", host, port)

    async def train(self, version: int, groups: list[tuple[GroupRecord, list[ray.ObjectRef]]]) -> list[dict]:
        """Train one step; return each rank's sums (actors/learner.py)."""
        le = self.config.learner
        plan = plan_step([record.lengths for record, _ in groups], le.ranks, le.micro_batch_tokens)
        step_tokens = sum(record.response_tokens for record, _ in groups)
        calls = []
        for learner, share in zip(self.ranks, plan, strict=True):
            mine = sorted({group for micro_batch in share for group, _ in micro_batch})
            refs: dict[int, list] = {group: groups[group][1] for group in mine}
            advantages: dict[int, np.ndarray] = {group: groups[group][0].advantages for group in mine}
            calls.append(learner.train.remote(version, share, refs, advantages, step_tokens))
        return await asyncio.gather(*calls)

    async def publish(self) -> list[ray.ObjectRef]:
        """Put the weights into the object store; return the references of their buckets."""
        buckets, *_ = await self._all("publish")
        return buckets

    async def save(self, folder: str) -> None:
        """Write a Hugging Face folder."""
        await self._all("save", folder)

    async def close(self) -> None:
        await self._all("close")
        for rank in self.ranks:
            ray.kill(rank)
        remove_placement_group(self._placement)

    async def _all(self, method: str, *arguments) -> list:
        return await asyncio.gather(*(getattr(rank, method).remote(*arguments) for rank in self.ranks))
