"""What the actor that runs a job has, whatever the job: a life with one kind of end, the lease of its folder, progress
lines, and work in the background."""

import asyncio
import json
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import ray

from pipeline.errors import DataError, RunFailed, reason_of
from pipeline.lease import BEAT_S, Lease, LeaseLost
from pipeline.storage import LineFile, Storage
from pipeline.summary import write_summary

LINES_KEPT = 10_000  # for who follows the job later
AWAITED_EVERY_S = 5.0  # at first; then ever more seldom
CLOSING_S = 60.0
SUMMARY_S = 30.0  # for the storage to take the summary

Result = TypeVar("Result")


@dataclass
class Outcome:
    """How a job ended.

    Attributes:
        status: completed, interrupted or failed.
        error: why it failed.
    """

    status: str
    error: str | None = None


class JobActor:
    """Base of the coordinator, the evaluator and the fine-tuner, which say what `work`, `put_away`, `summary` and
    `close` do; jobs/support/driver.py calls `lines`, `stop` and `run`.

    Args:
        folder: of the run.
        lease: of that folder, which the driver took.
    """

    def __init__(self, folder: str, lease: Lease):
        self.folder, self.lease = Path(folder), lease
        self.lease_lost = ""  # why the folder is another run's now
        self.storage = Storage(folder)
        self._beating: asyncio.Future | None = None
        self._lease_failed = False
        self._unwritable: set[str] = set()  # names of files
        self._stop = asyncio.Event()
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._said = 0  # lines, with those that are not kept
        self._line_added = asyncio.Event()
        self._tasks: set[asyncio.Task] = set()
        self._failure: asyncio.Future | None = None  # its exception ends the run

    # Life.

    async def stop(self) -> None:
        """End the job soon, and keep what was done."""
        self._stop.set()

    async def run(self) -> dict:
        """Run to the end, to `stop`, or to a failure; return the summary, which is also in summary.json."""
        begin = time.monotonic()
        try:
            await self.keep_lease()
            outcome = Outcome(await self.work())
        except Exception as failure:
            known = isinstance(failure, (RunFailed, DataError))
            where = "" if known else await self.leave_traceback(failure)
            outcome = Outcome("failed", reason_of(failure) + where)
        unwritten = await self.put_away(outcome)
        self.say_what_is_lost(unwritten)
        if self.lease_lost:
            outcome = Outcome("failed", self.lease_lost)
        summary = self.summary(outcome, time.monotonic() - begin, unwritten)
        await self.leave_summary(summary)
        await self.close(summary)
        await self.release_lease()
        return summary

    async def work(self) -> str:
        """Do the job. Returns the status that it ends with, completed or interrupted; raises what makes it fail."""
        raise NotImplementedError

    async def put_away(self, outcome: Outcome) -> dict[str, int]:
        """Write what is not written yet, however the job ended; a failure to do so goes into `outcome`.

        Returns:
            How many lines or files are missing, by their name in the run folder.
        """
        raise NotImplementedError

    def summary(self, outcome: Outcome, seconds: float, unwritten: dict[str, int]) -> dict:
        """The content of summary.json; `seconds` is what the job took, `unwritten` is from `put_away`."""
        raise NotImplementedError

    async def close(self, summary: dict) -> None:
        """End all that the job has started."""
        raise NotImplementedError

    async def leave_traceback(self, failure: Exception) -> str:
        """Write the traceback of a failure that is nobody's known mistake, here into the job's log.

        Returns:
            Where it is, as the end of a sentence, unless that is the log.
        """
        traceback.print_exception(failure)
        return ""

    # Progress lines.

    async def lines(self, after: int, wait_s: float) -> tuple[int, list[str]]:
        """The progress lines from number `after` on, and the number of the next one; waits up to `wait_s` for one.

        An actor that was started again has fewer lines than were shown, and begins with its first. Who comes too late
        for some is told how many.
        """
        if after > self._said:
            after = 0
        if self._said <= after:
            self._line_added.clear()
            try:
                await asyncio.wait_for(self._line_added.wait(), wait_s)
            except TimeoutError:
                pass
        dropped = self._said - len(self._lines)
        lines = list(islice(self._lines, max(0, after - dropped), None))
        if after < dropped:
            lines.insert(0, f"· {dropped - after:,} earlier lines were dropped; the log of who followed them has them")
        return self._said, lines

    def say(self, line: str) -> None:
        self._lines.append(line)
        self._said += 1
        self._line_added.set()

    async def start_all(self, parts: dict[str, Awaitable]) -> None:
        """Wait until all parts of the job have started; say when each has, and now and then what is waited for.

        Args:
            parts: by the name that people know.
        """
        begin, left = time.monotonic(), list(parts)

        async def start(name: str, work: Awaitable) -> None:
            await work
            left.remove(name)
            if (seconds := time.monotonic() - begin) > 1:
                self.say(f"· {name} ready after {seconds:.0f} s")

        async def say_what_is_awaited() -> None:
            while True:
                await asyncio.sleep(max(AWAITED_EVERY_S, 0.2 * (time.monotonic() - begin)))
                self.say(f"· {time.monotonic() - begin:.0f} s: waiting for {', '.join(left)}")

        saying = asyncio.ensure_future(say_what_is_awaited())
        try:
            await asyncio.gather(*(start(name, work) for name, work in parts.items()))
        finally:
            saying.cancel()

    def say_what_is_missing(self, pools: list[tuple[object, int]]) -> None:
        """A cluster that is too small is waited for, as an autoscaler may be on its way; but not in silence.

        Args:
            pools: the section of the configuration (num_cpus, num_gpus) and the number of actors of each pool.
        """
        has = ray.cluster_resources()
        for kind, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
            needs = sum(getattr(section, field, 0) * count for section, count in pools)
            if needs > has.get(kind, 0):
                self.say(
                    f"· the cluster has {has.get(kind, 0):g} {kind} and the pools ask for {needs:g}: waiting for more"
                )

    # The run folder.

    async def stored(self, function: Callable[..., Result], *arguments, limit_s: float | None = None) -> Result:
        """What the function returns, which touches the run folder: it may hang, and nothing else does with it.

        Raises:
            OSError: the storage failed, or did not answer in time.
        """
        return await self.storage.call_async(function, *arguments, limit_s=limit_s)

    async def keep_lease(self) -> None:
        """Take the lease over from the driver, and keep it alive. Raises `RunFailed` if another run has it by now."""
        await self._heartbeat(self.storage)
        if self.lease_lost:
            await self.unless_failed(asyncio.sleep(0))
        self._beating = asyncio.ensure_future(self._beat())

    async def _beat(self) -> None:
        storage = Storage(self.folder)  # of its own: a long write is no reason to lose the lease
        while not self.lease_lost:
            await asyncio.sleep(BEAT_S)
            await self._heartbeat(storage)

    async def _heartbeat(self, storage: Storage) -> None:
        try:
            await storage.call_async(self._keep)
        except LeaseLost as error:
            self._lose_lease(str(error))
        except OSError as error:
            self._lease_fails(error)

    def _keep(self) -> None:
        """One heartbeat, which may come so late that nobody waits for it."""
        try:
            self.lease.keep()
        except LeaseLost as error:
            self.storage.close(str(error))
            raise

    def _lose_lease(self, why: str) -> None:
        self.lease_lost = why
        self.storage.close(why)
        self.fail(RunFailed(why))
        self.abandon_folder()

    def abandon_folder(self) -> None:
        """End whatever writes into the run folder, other than by `storage`: it is another run's."""

    def check_lease(self) -> None:
        """Raise `RunFailed` if the run folder is another run's by now."""
        if self.lease_lost:
            raise RunFailed(self.lease_lost)

    def _lease_fails(self, error: OSError) -> None:
        if not self._lease_failed:
            self._lease_failed = True
            self.say(f"· the lease of the run folder could not be written: {error}; the run goes on")

    async def release_lease(self) -> None:
        """Give the folder free; the last thing that a job does."""
        if self._beating:
            self._beating.cancel()
        if self.lease_lost:
            return
        try:
            await self.stored(self.lease.release)
        except OSError as error:
            self._lease_fails(error)

    async def leave_summary(self, summary: dict) -> None:
        """Write summary.json; where that cannot be done, it is said instead."""
        if self.lease_lost:
            return
        try:
            await self.stored(write_summary, self.folder, summary, limit_s=SUMMARY_S)
        except OSError as error:
            self.say(f"· summary.json could not be written: {error}; it is: {json.dumps(summary)}")

    def say_of(self, *files: LineFile) -> None:
        """Say once of each file that it cannot be written, and once that it is again."""
        for file in files:
            name, was_said = file.path.name, file.path.name in self._unwritable
            if file.problem and not was_said:
                self._unwritable.add(name)
                self.say(f"· {name} could not be written, and is tried again with its next line: {file.problem}")
            elif was_said and not file.problem:
                self._unwritable.discard(name)
                self.say(f"· {name} is written again")

    async def finish_files(self, *files: LineFile) -> dict[str, int]:
        """Try once more to write what waits; return how many lines each file lacks that is not whole.

        Nothing is written, and nothing counted, when the folder is another run's.
        """
        if self.lease_lost:
            return {}
        for file in files:
            await asyncio.to_thread(file.write)
        self.say_of(*files)
        return {file.path.name: file.unwritten for file in files if file.unwritten}

    def say_what_is_lost(self, unwritten: dict[str, int]) -> None:
        """Name the files of the run folder that are not whole.

        Args:
            unwritten: how many lines, or files, each lacks.
        """
        for file, number in unwritten.items():
            self.say(f"· {file} lacks {number} that could not be written")

    # Failing.

    def fail(self, error: Exception) -> None:
        """End the run with this error."""
        if not self._failed.done():
            self._failed.set_exception(error)

    async def unless_failed(self, work: Awaitable) -> None:
        """Wait for `work`, or raise the failure that ends the run, whichever comes first."""
        work = asyncio.ensure_future(work)
        await asyncio.wait([work, self._failed], return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            work.cancel()
            self._failed.result()
        work.result()

    def spawn(self, coroutine: Coroutine) -> asyncio.Task:
        """Run in the background; an error there ends the run instead of being lost."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)

        def done(task: asyncio.Task) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and task.exception():
                self.fail(task.exception())

        task.add_done_callback(done)
        return task

    async def close_all(self, closing: list[Awaitable]) -> None:
        """Wait until all parts have closed, but not for ever: what is left ends with the job."""
        for done in await asyncio.gather(*(asyncio.wait_for(w, CLOSING_S) for w in closing), return_exceptions=True):
            if isinstance(done, Exception):
                self.say(f"· while closing: {done!r}")
        self._line_added.set()  # who waits for a line need not any longer

    def cancel_all(self) -> None:
        """Cancel what runs in the background."""
        for task in list(self._tasks):
            task.cancel()

    @property
    def _failed(self) -> asyncio.Future:
        if self._failure is None:  # made where there is a running loop
            self._failure = asyncio.get_running_loop().create_future()
        return self._failure
