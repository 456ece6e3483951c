"""The learner gangs: they start all ranks together, give each its share of a step, and have them publish weights."""

import asyncio
import os
import time
from collections.abc import Coroutine
from pathlib import Path

import numpy as np
import ray
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.learning.fine_tuning_learner import FineTuningLearner, FineTuningUpdate
from actors.learning.learner import Learner
from actors.learning.rank import Description
from actors.learning.reservation import ranks_placement
from actors.lifecycle.failures import DIED, what_happened
from pipeline.errors import RunFailed
from pipeline.files import is_local
from pipeline.fine_tuning.examples import ExampleBatch
from pipeline.learning.environment import rank_environment
from pipeline.learning.objectives import LOSSES
from pipeline.learning.packing import Update, plan_update, split_updates, work_of
from pipeline.rollout.episodes import GroupRecord
from pipeline.rollout.prefix_tree import PrefixTree
from pipeline.run.checkpoints import FileEntry
from pipeline.run.config import TrainingConfig
from pipeline.run.metrics import UpdateResult
from pipeline.run.sampled_episode import samples_at
from pipeline.weights.transport import Weights

START_LIMIT_S = 3600.0  # limit without progress while a model loads
PROGRESS_S = 30.0  # between checks of the ranks' progress; with a short limit a tenth of it
ANSWER_S = 5.0  # limit for a rank's answer about its progress


class GangLost(RuntimeError):
    """A rank died, failed or stalled, so all ranks must restart. The message says what happened."""


class GroupsLost(RuntimeError):
    """Groups of a step can no longer be fetched. `indices` has their indices in the step."""

    def __init__(self, indices: list[int]):
        super().__init__(f"{len(indices)} groups were lost with the nodes that held them")
        self.indices = indices


class Gang:
    """Lives in the job actor; the ranks are actors of the class `LEARNER`.

    Args:
        config: the job's configuration.
        size: the number of ranks.
        placement: a placement group with one bundle per rank; None: make one, which waits until there is room.
    """

    LEARNER: type
    _copied = (0, "")  # version and transport of the copied weights

    def __init__(self, config, size: int, placement: PlacementGroup | None = None):
        self.config, self.size = config, size
        self._placement = None if placement else ranks_placement(config.learner, size)
        places = [PlacementGroupSchedulingStrategy(placement or self._placement, rank) for rank in range(size)]
        le = config.learner
        options = {"num_cpus": le.num_cpus, "num_gpus": le.num_gpus, "resources": dict(le.resources)}
        # Torch reads its variables when it is imported, so they must be there when the process starts.
        if environment := rank_environment(le, os.environ):
            options["runtime_env"] = {"env_vars": environment}
        self.ranks = [
            self.LEARNER.options(scheduling_strategy=place, **options).remote(config, rank, size)
            for rank, place in enumerate(places)
        ]

    async def up(self) -> None:
        """Wait until the processes of all ranks are up. Raises `GangLost`."""
        await self._together([rank.progress.remote() for rank in self.ranks], START_LIMIT_S)

    async def check_folder(self, folder: str | Path, run_id: str, advice: str) -> None:
        """Check that all ranks can write to a folder, and that their nodes share it. A URI needs no check.

        Args:
            folder: the folder or URI. A folder has a file with the run's id.
            run_id: the run's id.
            advice: what else to set.

        Raises:
            RunFailed: a node does not have it, or cannot write there.
            GangLost: a rank died or failed.
        """
        if not is_local(folder):
            return
        if trouble := sorted(set(await self._all("folder_trouble", str(folder), run_id)) - {""}):
            raise RunFailed(f"{folder} is not shared by the nodes of the learner ranks: {'; '.join(trouble)}. {advice}")

    async def start(self, checkpoint: str = "") -> None:
        """Form the process group and load the model on all ranks.

        Args:
            checkpoint: folder or URI of the checkpoint to start from, of any number of ranks; empty: start from the
                model.

        Raises:
            GangLost: a rank died or failed.
        """
        ((host, port),) = await self._together([self.ranks[0].meet.remote()], START_LIMIT_S)
        joining = [rank.join.remote(host, port, checkpoint) for rank in self.ranks]
        await self._together(joining, START_LIMIT_S)

    async def describe(self) -> Description:
        """What the first rank computes on, and what it chose. Raises `GangLost`."""
        (description,) = await self._together([self.ranks[0].describe.remote()])
        return description

    async def copy_weights(self, version: int, transport: str) -> None:
        """Have all ranks copy the weights, for `send_weights`.

        Args:
            version: their version.
            transport: the transport's name.

        Raises:
            GangLost: a rank died or failed.
        """
        await self._all("copy_weights", version, transport)
        self._copied = version, transport

    async def send_weights(self) -> Weights:
        """Have all ranks send the copied weights while training continues. Raises `GangLost`."""
        return Weights(*self._copied, tuple(await self._all("send_weights")))

    async def copy_checkpoint(self, folder: str) -> None:
        """Copy the whole state to host memory, for `write_checkpoint`. Raises `GangLost`."""
        await self._all("copy_checkpoint", folder)

    async def write_checkpoint(self) -> list[FileEntry]:
        """Write the copied state while training continues; return the files once all ranks are done.

        Raises:
            GangLost: the ranks stalled.
            Exception: the error of a rank that could not write or died.
        """
        calls = [rank.write_checkpoint.remote() for rank in self.ranks]
        written = await self._unless_it_stands_still(_all_of(calls, return_exceptions=True))
        for result in written:
            if isinstance(result, Exception):
                raise result
        return [entry for entries in written for entry in entries]

    async def close(self) -> None:
        """Shut down all ranks in order."""
        try:
            await self._all("close")
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill all ranks."""
        for rank in self.ranks:
            ray.kill(rank)
        if self._placement:
            remove_placement_group(self._placement)

    async def _all(self, method: str, *arguments) -> list:
        return await self._together([getattr(rank, method).remote(*arguments) for rank in self.ranks])

    async def _together(self, calls: list[ray.ObjectRef], limit_s: float | None = None) -> list:
        """The results of all ranks. Raises `GangLost` if one dies or fails, or if none makes progress for `limit_s`."""
        try:
            return await self._unless_it_stands_still(_all_of(calls), limit_s)
        except (*DIED, RayTaskError) as error:
            raise GangLost(f"a learner rank {what_happened(error)}") from error

    async def _unless_it_stands_still(self, work: Coroutine, limit_s: float | None = None):
        """The result of `work`. Raises `GangLost` if no rank makes progress for `limit_s` (default learner.stall_s)."""
        limit_s = limit_s or self.config.learner.stall_s
        working = asyncio.ensure_future(work)
        standing = asyncio.ensure_future(self._until_it_stands_still(limit_s))
        try:
            await asyncio.wait([working, standing], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise GangLost(f"the learners made no progress for {limit_s:g} s")
            return working.result()
        finally:
            working.cancel()
            standing.cancel()

    async def _until_it_stands_still(self, limit_s: float) -> None:
        """Return once no rank has made progress for `limit_s`. A rank that does not answer makes none."""
        seen, since = None, time.monotonic()
        while time.monotonic() - since < limit_s:
            progress = await asyncio.gather(*map(_progress_of, self.ranks))
            if progress != seen:
                seen, since = progress, time.monotonic()
            await asyncio.sleep(min(PROGRESS_S, limit_s / 10))


async def _all_of(calls: list[ray.ObjectRef], return_exceptions: bool = False) -> list:
    return await asyncio.gather(*calls, return_exceptions=return_exceptions)


async def _progress_of(rank) -> int | None:
    """A rank's progress; None if it does not answer."""
    try:
        async with asyncio.timeout(ANSWER_S):
            return await rank.progress.remote()
    except (TimeoutError, *DIED):
        return None


class LearnerGang(Gang):
    """The gang that trains a run's policy by reinforcement learning."""

    LEARNER = Learner
    config: TrainingConfig

    async def train(
        self, step: int, version: int, groups: list[tuple[GroupRecord, ray.ObjectRef]], traces: str = ""
    ) -> list[UpdateResult]:
        """Train one step; return the results of its updates.

        Args:
            step: the number of steps trained before.
            version: the version of the weights before the step.
            groups: the records of the step's groups, with references to their episodes.
            traces: folder for a trace of the step from each rank; empty: none.

        Raises:
            GroupsLost: some groups cannot be fetched; nothing was trained.
            GangLost: a rank died, failed or stalled.
        """
        le = self.config.learner
        sets = split_updates(len(groups), self.config.train.updates_per_step, (self.config.run.seed, step))
        shares: list[list[Update]] = [[] for _ in self.ranks]
        work = []
        for chosen in sets:
            records = [groups[index][0] for index in chosen]
            trees = {index: self._to_compute(record) for index, record in zip(chosen, records, strict=True)}
            # In a thread: planning for documents of a million tokens takes seconds.
            plan = await asyncio.to_thread(plan_update, trees, self.size, le.micro_batch_tokens)
            work.append(work_of(records, list(trees.values()), plan, version))
            for share, micro_batches in zip(shares, plan, strict=True):
                share.append(Update(micro_batches, work[-1].tokens))
        indices = [
            sorted({item.group for u in updates for items in u.micro_batches for item in items}) for updates in shares
        ]
        fetching = zip(self.ranks, indices, strict=True)
        # Ray passes references inside lists unresolved.
        lost = await self._together([rank.fetch.remote({i: [groups[i][1]] for i in mine}) for rank, mine in fetching])
        if any(lost):
            raise GroupsLost(sorted({index for of_rank in lost for index in of_rank}))
        calls = []
        for number, (rank, updates, mine) in enumerate(zip(self.ranks, shares, indices, strict=True)):
            advantages: dict[int, np.ndarray] = {index: groups[index][0].advantages for index in mine}
            rewards: dict[int, np.ndarray] = {index: groups[index][0].rewards for index in mine}
            trace = f"{traces}/step-{step + 1}-rank-{number}.json.gz" if traces else ""
            shown = [index for index in mine if index < samples_at(self.config.train, step + 1)]
            calls.append(rank.train.remote(version, updates, advantages, rewards, trace, shown))
        by_rank = await self._together(calls)
        of_updates = map(list, zip(*by_rank, strict=True))
        return [UpdateResult(*result) for result in zip(sets, of_updates, work, strict=True)]

    def _to_compute(self, record: GroupRecord) -> PrefixTree:
        """The conversations that can change the weights."""
        o = self.config.objective
        terms = o.terms()
        if o.entropy_weight == "reward" and not record.rewards.any():
            terms.discard("entropy_coefficient")
        has_response = record.response_lengths > 0
        if terms or o.loss not in LOSSES:  # a user's own loss may have any term
            return record.prefixes.where(has_response)
        return record.prefixes.where(has_response & (record.advantages != 0))


class FineTuningGang(Gang):
    """The gang of supervised fine-tuning."""

    LEARNER = FineTuningLearner

    async def train(self, batch: ExampleBatch) -> list[dict]:
        """Train one optimizer step; return the results of each rank (`FineTuningLearner.train`)."""
        le, tokens = self.config.learner, int(batch.learned.sum())
        examples = {i: PrefixTree.without_sharing(batch.lengths[i : i + 1]) for i in range(len(batch.lengths))}
        plan = plan_update(examples, self.size, le.micro_batch_tokens)
        shares = [[[item.group for item in items] for items in micro_batches] for micro_batches in plan]
        ref = [ray.put(batch)]
        calls = [
            rank.train.remote(FineTuningUpdate(share, tokens), ref)
            for rank, share in zip(self.ranks, shares, strict=True)
        ]
        return await self._together(calls)
