"""The supervisor of a run's learners: keeps a gang of the size that fits the cluster, and saves checkpoints.

Room for the ranks is held from one gang to the next (actors/learning/reservation.py).

The state of a step is copied to the ranks' host memory and written while the next steps are trained. A gang starts from
the last finished checkpoint, whatever number of ranks wrote it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar, cast

import ray
from ray.exceptions import RayTaskError

from actors.learning.checkpointing import CheckpointKeeper
from actors.learning.gang import GangLost, LearnerGang
from actors.learning.reservation import NoRoom, Reservation, ranks_in
from actors.lifecycle.cluster import nodes_alive
from pipeline.errors import RunFailed
from pipeline.learning.device_memory import Architecture
from pipeline.learning.flops import peak_flops
from pipeline.rollout.episodes import GroupRecord
from pipeline.run.checkpoints import Checkpoint, RunState, Scores, checkpoints_of
from pipeline.run.config import TrainingConfig
from pipeline.run.metrics import UpdateResult
from pipeline.weights.transport import FROM_DISK, Weights, load_transport

NODES_S = 2.0  # between checks of the nodes
PROFILES = "profiles"  # folder of the traces in the run folder
RESTARTS_IN_A_ROW = 5  # more losses without a step in between end the run
SHARE = "Choose a run.folder that they share, or a train.checkpoint_folder such as s3://bucket/checkpoints"

Result = TypeVar("Result")


class LearnerSupervisor:
    """Lives in the coordinator.

    Args:
        config: the run's configuration.
        folder: the run folder.
        run_id: the run's id.
        say: called with each progress line.
        scores: the validations' scores; None: there are no validations.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        run_id: str,
        say: Callable[[str], None],
        scores: Callable[[], Scores | None] = lambda: None,
    ):
        self.config, self.say = config, say
        checkpoints = checkpoints_of(config, folder, run_id)
        self.keeper = CheckpointKeeper(checkpoints, config.train.keep_last, config.train.keep_best, say, scores)
        self.placed = asyncio.Event()  # set once the first gang has its room
        self.restarts = 0
        self.device = ""  # name of a rank's device; empty on CPUs
        self.model: Architecture | None = None  # None: unknown
        self.weight_bytes_share: float | None = None  # of the version that was sent last (`WeightTransport`)
        # The folder of the checkpoints that has a file with the run's id.
        self._claimed = checkpoints.base if config.train.checkpoint_folder else str(folder)
        self._run_folder = str(folder)
        self._run_id = run_id
        self._restarts_in_a_row = 0
        self._room = Reservation(config.learner)
        self.works = False  # whether the gang has started and is not lost
        self._gang: LearnerGang | None = None
        self._saving: asyncio.Future | None = None
        self._sending: asyncio.Future | None = None

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self._gang.size if self._gang else 0

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The last finished one, from which a gang starts."""
        return self.keeper.newest

    @property
    def saved_step(self) -> int:
        return self.keeper.step

    # Starting and ending.

    async def start(self, version: int) -> Weights:
        """Start as many ranks as the cluster has room for, from the last checkpoint if there is one.

        Args:
            version: the version of their weights.

        Returns:
            The weights; version 0 is not sent, since generators load it from disk.

        Raises:
            RunFailed: the learners cannot start.
        """
        le = self.config.learner
        while True:
            if self.keeper.storage.closed:
                raise RunFailed(self.keeper.storage.closed)
            if not self._room.is_whole():
                await self._reserve()
            self.placed.set()
            first, size = self._gang is None, self._room.size
            self._gang = LearnerGang(self.config, size, self._room.group)
            try:
                await self._come_up()
                await self._gang.check_folder(self._claimed, self._run_id, SHARE)
                await self._gang.start(self.checkpoint.folder if self.checkpoint else "")
                self.works = True
                described = await self._gang.describe()
                self.device, self.model = described.device, described.model
                for line in described.choices(self.config):
                    self.say(line)
                if first and self.device and not peak_flops(self.device, self.config.model.dtype):
                    self.say(
                        f"· no MFU: the peak of {self.device} in {self.config.model.dtype} is unknown "
                        "(pipeline/learning/flops.py)"
                    )
                if size < le.ranks:
                    self.say(f"· training with {size} of {le.ranks} learner ranks")
                if not version:
                    return FROM_DISK
                await self._gang.copy_weights(version, self.config.train.weight_transport)
                return await self._gang.send_weights()
            except NoRoom as error:
                self.say(f"· {error}")
                self._gang.kill()
            except GangLost as error:
                if first and isinstance(error.__cause__, RayTaskError):
                    raise RunFailed(f"the learners cannot start: {error}") from error
                self.say(f"· while the learners were starting, {error}")
                self._count_restart(str(error))
                self._gang.kill()

    async def _reserve(self) -> None:
        """Reserve room for as many ranks as the cluster can hold; wait until there is some."""
        le, first = self.config.learner, self._gang is None
        while True:
            # First try the full number, since an autoscaler may add nodes; later, as many as the nodes could hold.
            most = le.ranks if first else max(ranks_in(nodes_alive().values(), le), le.min_ranks)
            for size in range(most, le.min_ranks - 1, -1):
                try:
                    await self._room.make(size, le.wait_s)
                    return
                except NoRoom as error:
                    self.say(f"· {error} after learner.wait_s={le.wait_s:g}")
            first = False

    async def _come_up(self) -> None:
        """Wait until the processes of all ranks are up.

        Raises:
            NoRoom: one of their nodes is gone.
            GangLost: a rank died.
        """
        coming = asyncio.ensure_future(self._gang.up())
        try:
            while not coming.done():
                await asyncio.wait([coming], timeout=NODES_S)
                if not self._room.is_whole():
                    raise NoRoom("a node that was reserved for a learner rank is gone")
            coming.result()
        finally:
            coming.cancel()

    async def lost(self, why: str) -> None:
        """Kill what is left of a lost gang, and find the newest good checkpoint.

        Raises:
            RunFailed: learners were lost too often without a step in between, or no checkpoint is good.
        """
        self.works = False
        self._count_restart(why)
        self._gang.kill()
        self._stop_sending()
        with contextlib.suppress(GangLost):
            await self.saved()
        await self.keeper.find()

    def _count_restart(self, why: str) -> None:
        self.restarts += 1
        self._restarts_in_a_row += 1
        if self._restarts_in_a_row > RESTARTS_IN_A_ROW:
            raise RunFailed(
                f"the learners were lost {self._restarts_in_a_row} times without completing a step; the last time, "
                f"{why}; see their logs in Ray's dashboard"
            )

    def can_grow(self) -> bool:
        """Whether ranks are missing and there is room for another one now."""
        return self.size < self.config.learner.ranks and self.size < self._room.reachable()

    async def make_way(self) -> None:
        """Shut down all ranks and reserve room for more; `start` then starts them."""
        self._stop_sending()  # `start` sends this version
        wanted, self.works = self._room.reachable(), False
        await self._gang.close()
        if wanted > self._room.size:
            with contextlib.suppress(NoRoom):  # then `start` reserves what there is
                await self._room.make(wanted, self.config.learner.wait_s)

    async def close(self) -> None:
        """Shut down all ranks, in order if they work."""
        self._stop_sending()
        try:
            if self.works:
                await self._gang.close()
            elif self._gang:
                self._gang.kill()
        finally:
            self._room.release()

    def abandon(self, why: str) -> None:
        """Kill all ranks, and write and remove nothing more: the checkpoints belong to another run."""
        self.keeper.storage.close(why)
        self._stop_sending()
        self.works = False
        if self._gang:
            self._gang.kill()

    # Training.

    async def train(
        self, step: int, version: int, groups: list[tuple[GroupRecord, ray.ObjectRef]]
    ) -> list[UpdateResult]:
        """See `LearnerGang.train`. Steps of train.profile_steps leave traces in the run folder."""
        first, last = self.config.train.profile_steps or (0, 0)
        traces = f"{self._run_folder}/{PROFILES}" if first <= step + 1 <= last else ""
        return await self._gang.train(step, version, groups, traces)

    async def publish(self, version: int, deliver: Callable[[Weights], Awaitable[None]]) -> None:
        """Copy the weights, and send them as this version while training continues.

        Args:
            version: their version.
            deliver: called with the weights when they are sent.

        Raises:
            GangLost: a rank died, or the version before could not be sent.
        """
        await self.sent()
        gang = cast(LearnerGang, self._gang)
        await gang.copy_weights(version, self.config.train.weight_transport)

        async def send() -> None:
            weights = await gang.send_weights()
            self.weight_bytes_share = load_transport(self.config.train.weight_transport).bytes_share(weights.pieces)
            await deliver(weights)
            self._restarts_in_a_row = 0  # a step was completed

        self._sending = asyncio.ensure_future(send())

    async def sent(self) -> None:
        """Wait until the version that is being sent, if any, is delivered. Raises `GangLost`."""
        if sending := self._sending:
            await asyncio.wait([sending])
            if sending.cancelled():
                raise GangLost("the learners were given up")
            sending.result()
            self._sending = None

    async def unless_unsent(self, work: Awaitable[Result]) -> Result:
        """The result of `work`. Raises `GangLost` if it turns out before that a version cannot be sent."""
        working = asyncio.ensure_future(work)
        try:
            if sending := self._sending:
                await asyncio.wait([working, sending], return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    await self.sent()
            return await working
        finally:
            working.cancel()

    def _stop_sending(self) -> None:
        if self._sending:
            self._sending.add_done_callback(lambda sent: sent.cancelled() or sent.exception())  # nobody waits for it
            self._sending.cancel()
            self._sending = None

    # Checkpoints.

    async def save(self, state: RunState) -> None:
        """Copy the state of this step and start writing it. Raises `GangLost`."""
        await self.saved()
        gang = cast(LearnerGang, self._gang)
        if await self.keeper.copy(gang, state.step):
            self._saving = asyncio.ensure_future(self.keeper.write(gang, state))

    async def saved(self) -> None:
        """Wait for the checkpoint that is being written, if any. Raises `GangLost`."""
        saving, self._saving = self._saving, None
        if saving:
            await saving
