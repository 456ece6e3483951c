"""A gang's checkpoints: found, written and removed. Trouble with their storage is reported, and training goes on."""

import contextlib
import time
from collections.abc import Callable, Sequence

from actors.learning.gang import Gang, GangLost
from pipeline.errors import RunFailed, reason_of
from pipeline.run.checkpoints import Checkpoint, CheckpointError, Checkpoints, FileEntry, RunState, Scores
from pipeline.storage import Storage

STORAGE_S = 3600.0  # limit for reading, writing or removing checkpoints
BEGIN_S = 60.0  # limit for making the folder of a new checkpoint, while training waits


class CheckpointKeeper:
    """Lives in the job actor.

    Args:
        checkpoints: the job's checkpoints.
        keep_last, keep_best: how many stay (`Checkpoints.prune`).
        say: called with each progress line.
        scores: the validations' scores; None: there are no validations.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        keep_last: int,
        keep_best: int,
        say: Callable[[str], None],
        scores: Callable[[], Scores | None] = lambda: None,
    ):
        self.checkpoints, self.keep_last, self.keep_best = checkpoints, keep_last, keep_best
        self.say, self._scores = say, scores
        self.storage = Storage(checkpoints.base, STORAGE_S)
        self.newest: Checkpoint | None = None  # the last finished one, from which a gang starts
        self.failed = 0  # checkpoints that could not be saved

    @property
    def step(self) -> int:
        """The step of the last finished checkpoint; 0: there is none."""
        return self.newest.step if self.newest else 0

    async def find(self) -> None:
        """Set `newest` to the newest good one, None if there are none. Raises `RunFailed` if none is good."""
        news: list[str] = []  # reported here, not in the storage's thread
        try:
            self.newest = await self.storage.call_async(self.checkpoints.newest_good, news.append)
        except (CheckpointError, OSError) as error:
            raise RunFailed(f"no checkpoint to resume from: {reason_of(error)}") from error
        finally:
            for line in news:
                self.say(line)

    async def copy(self, gang: Gang, step: int) -> bool:
        """Have the ranks copy their state, the one after this step, for `write`.

        Returns:
            Whether there is a place to write it to.

        Raises:
            GangLost: a rank died.
        """
        try:
            await self.storage.call_async(self.checkpoints.begin, step, limit_s=BEGIN_S)
        except OSError as error:
            self._not_saved(step, reason_of(error))
            return False
        await gang.copy_checkpoint(self.checkpoints.folder(step))
        return True

    async def write(
        self, gang: Gang, state: RunState, add_files: Callable[[], Sequence[FileEntry]] = lambda: ()
    ) -> None:
        """Write the copied state and remove old checkpoints. If that fails, the previous checkpoint is kept.

        Args:
            gang: the ranks that have the copy.
            state: the run's state.
            add_files: writes further files once the ranks' are written.

        Raises:
            GangLost: a rank died.
        """
        begin = time.monotonic()
        try:
            files = await gang.write_checkpoint()
            files += await self.storage.call_async(add_files)
            checkpoint = await self.storage.call_async(self.checkpoints.finish, state, files)
        except GangLost as error:
            self._not_saved(state.step, str(error))
            raise
        except Exception as error:
            self._not_saved(state.step, reason_of(error))
            with contextlib.suppress(OSError):  # without a manifest it does not count anyway
                await self.storage.call_async(self.checkpoints.clear, state.step)
            return
        self.newest = checkpoint
        self.say(f"· saved checkpoints/{state.step} in {time.monotonic() - begin:.0f} s")
        await self.prune()

    async def prune(self) -> None:
        """Remove the checkpoints that are neither among the last nor among the best."""
        keep = self.step, self.keep_last, self.keep_best, self._scores()
        try:
            await self.storage.call_async(self.checkpoints.prune, *keep)
        except OSError as error:
            self.say(f"· older checkpoints could not be removed: {reason_of(error)}")

    def _not_saved(self, step: int, why: str) -> None:
        self.failed += 1
        last = f"checkpoints/{self.step}" if self.newest else "none"
        self.say(f"· checkpoints/{step} could not be saved: {why}; the last good one is {last}")
