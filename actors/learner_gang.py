"""The learner gangs: all ranks started together, given their shares of a step, and asked for the new weights."""

import asyncio

import numpy as np
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.learner import Learner
from actors.supervised_learner import SupervisedLearner, SupervisedUpdate
from pipeline.config import Config
from pipeline.episodes import GroupRecord
from pipeline.fine_tuning.examples import ExampleBatch
from pipeline.metrics import UpdateResult
from pipeline.packing import Update, plan_update, split_updates


class Gang:
    """Lives in the actor that runs the job; the ranks are actors of their own, of the class `LEARNER`."""

    LEARNER: type

    def __init__(self, config):
        self.config = config
        le = config.learner
        bundle = {"CPU": le.num_cpus} | ({"GPU": le.num_gpus} if le.num_gpus else {})
        self._placement = placement_group([bundle] * le.ranks, strategy="PACK")
        self.ranks = [
            self.LEARNER.options(
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


class LearnerGang(Gang):
    """Of reinforcement learning."""

    LEARNER = Learner
    config: Config

    async def train(self, version: int, groups: list[tuple[GroupRecord, list[ray.ObjectRef]]]) -> list[UpdateResult]:
        """Train one step; return what became of its updates."""
        le = self.config.learner
        sets = split_updates(len(groups), self.config.train.updates_per_step, (self.config.run.seed, version))
        shares: list[list[Update]] = [[] for _ in range(le.ranks)]
        for chosen in sets:
            lengths = {index: self._lengths(groups[index][0]) for index in chosen}
            # Also of the groups without a gradient: the mean is over all that was sampled.
            tokens = sum(groups[index][0].response_tokens for index in chosen)
            for share, micro_batches in zip(shares, plan_update(lengths, le.ranks, le.micro_batch_tokens), strict=True):
                share.append(Update(micro_batches, tokens))
        calls = []
        for learner, updates in zip(self.ranks, shares, strict=True):
            mine = sorted({g for update in updates for items in update.micro_batches for g, _ in items})
            refs: dict[int, list] = {index: groups[index][1] for index in mine}
            advantages: dict[int, np.ndarray] = {index: groups[index][0].advantages for index in mine}
            rewards: dict[int, np.ndarray] = {index: groups[index][0].rewards for index in mine}
            calls.append(learner.train.remote(version, updates, refs, advantages, rewards))
        by_rank = await asyncio.gather(*calls)
        return [UpdateResult(*result) for result in zip(sets, map(list, zip(*by_rank, strict=True)), strict=True)]

    def _lengths(self, record: GroupRecord) -> np.ndarray:
        """Tokens of each conversation to be computed, int64 [C]; 0 for one that cannot change the weights."""
        o = self.config.objective
        of_entropy = o.entropy_coefficient and (o.entropy_weight == "one" or record.rewards.any())
        has_gradient = record.advantages.any() or o.kl_coefficient or of_entropy
        return record.trained_lengths if has_gradient else np.zeros_like(record.trained_lengths)


class SupervisedGang(Gang):
    """Of supervised fine-tuning."""

    LEARNER = SupervisedLearner

    async def train(self, batch: ExampleBatch) -> list[dict]:
        """Train one optimizer step; return what each rank says of it."""
        le, tokens = self.config.learner, int(batch.learned.sum())
        plan = plan_update({0: batch.lengths}, le.ranks, le.micro_batch_tokens)
        shares = [[[example for _, example in items] for items in micro_batches] for micro_batches in plan]
        ref = [ray.put(batch)]
        calls = [
            rank.train.remote(SupervisedUpdate(share, tokens), ref)
            for rank, share in zip(self.ranks, shares, strict=True)
        ]
        return await asyncio.gather(*calls)
