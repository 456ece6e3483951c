"""The base class of job actors: start and end, the lease of the run folder, progress lines, background tasks."""

import asyncio
import json
import time
import traceback
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import ray

from pipeline.alerts import Alert
from pipeline.errors import DataError, RunFailed, reason_of
from pipeline.lease import BEAT_S, Lease, LeaseLost
from pipeline.storage import LineFile, Storage
from pipeline.summary import write_summary

LINES_KEPT = 10_000  # for drivers that follow the job later
AWAITED_EVERY_S = 5.0  # at first; the interval then grows
CLOSING_S = 60.0
SUMMARY_S = 30.0  # limit for writing the summary

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
    """Base of coordinator, evaluator and fine-tuner, which define `work`, `put_away`, `summary` and `close`.

    jobs/support/driver.py calls `lines`, `stop` and `run`.

    Args:
        folder: the run folder.
        lease: the run folder's lease, which the driver took.
    """

    def __init__(self, folder: str, lease: Lease):
        self.folder, self.lease = Path(folder), lease
        self.lease_lost = ""  # why the folder now belongs to another run
        self.storage = Storage(folder)
        self.quarantine_file = LineFile(self.folder / "quarantine.jsonl", self.storage)
        self._beating: asyncio.Future | None = None
        self._lease_failed = False
        self._unwritable: set[str] = set()  # names of files that were reported
        self._stop = asyncio.Event()
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._said = 0  # number of lines, including dropped ones
        self._line_added = asyncio.Event()
        self._tasks: set[asyncio.Task] = set()
        self._failure: asyncio.Future | None = None  # its exception ends the run

    # Running and ending.

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
        """Do the job; return its status, completed or interrupted. An error makes the job fail."""
        raise NotImplementedError

    async def put_away(self, outcome: Outcome) -> dict[str, int]:
        """Write all pending output, however the job ended. If that fails, `outcome` becomes a failure.

        Returns:
            The number of missing lines or files, by name in the run folder.
        """
        raise NotImplementedError

    def summary(self, outcome: Outcome, seconds: float, unwritten: dict[str, int]) -> dict:
        """The content of summary.json, from the job's duration in seconds and the result of `put_away`."""
        raise NotImplementedError

    async def close(self, summary: dict) -> None:
        """Close everything that the job has started."""
        raise NotImplementedError

    async def leave_traceback(self, failure: Exception) -> str:
        """Write the traceback of an unexpected failure, by default to the job's log.

        Returns:
            Where the traceback is, as the end of a sentence; empty for the log.
        """
        traceback.print_exception(failure)
        return ""

    # Progress lines.

    async def lines(self, after: int, wait_s: float) -> tuple[int, list[str]]:
        """Wait up to `wait_s` seconds for progress lines from number `after`.

        A restarted actor may have fewer lines than were shown and then returns all. If lines were dropped, the first
        one returned says how many.

        Returns:
            The number of the next line, and the lines.
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
            lines.insert(
                0, f"· {dropped - after:,} earlier lines were dropped; only the log of an earlier driver has them"
            )
        return self._said, lines

    def say(self, line: str) -> None:
        self._lines.append(str(line))
        self._said += 1
        self._line_added.set()
        if isinstance(line, Alert):
            self.alert(line)

    def alert(self, alert: Alert) -> None:
        """Send an alert to the job's wandb run, if it has begun."""
        raise NotImplementedError

    async def start_all(self, parts: dict[str, Awaitable]) -> None:
        """Wait until all parts of the job have started. Report each start, and at intervals what is missing.

        Args:
            parts: the starting parts, by the name to show.
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
        """Report if the cluster is too small for the pools. The job waits for it, as an autoscaler may add nodes.

        Args:
            pools: each pool's section of the configuration (with its resources) and its number of actors.
        """
        has, needs = ray.cluster_resources(), Counter[str]()
        for section, count in pools:
            one = {"CPU": getattr(section, "num_cpus", 0), "GPU": getattr(section, "num_gpus", 0)}
            for kind, amount in (one | dict(getattr(section, "resources", {}))).items():
                needs[kind] += amount * count
        for kind, needed in needs.items():
            if needed > has.get(kind, 0):
                self.say(
                    f"· the cluster has {has.get(kind, 0):g} {kind} and the pools ask for {needed:g}: waiting for more"
                )

    # The run folder.

    async def stored(self, function: Callable[..., Result], *arguments, limit_s: float | None = None) -> Result:
        """Call a function that uses the run folder, and return its result. If it hangs, nothing else does.

        Raises:
            OSError: the storage failed, or did not answer within `limit_s` seconds.
        """
        return await self.storage.call_async(function, *arguments, limit_s=limit_s)

    async def keep_lease(self) -> None:
        """Take over the lease from the driver and keep it alive. Raises `RunFailed` if another run has taken it."""
        await self._heartbeat(self.storage)
        if self.lease_lost:
            await self.unless_failed(asyncio.sleep(0))
        self._beating = asyncio.ensure_future(self._beat())

    async def _beat(self) -> None:
        storage = Storage(self.folder)  # separate: a long write must not cost the lease
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
        """Keep the lease once. A late call that nobody awaits still closes the storage if the lease is lost."""
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
        """Stop all writers to the run folder other than `storage`: it belongs to another run."""

    def check_lease(self) -> None:
        """Raise `RunFailed` if the run folder now belongs to another run."""
        if self.lease_lost:
            raise RunFailed(self.lease_lost)

    def _lease_fails(self, error: OSError) -> None:
        if not self._lease_failed:
            self._lease_failed = True
            self.say(f"· the lease of the run folder could not be written: {error}; the run continues")

    async def release_lease(self) -> None:
        """Release the run folder, as the job's last act."""
        if self._beating:
            self._beating.cancel()
        if self.lease_lost:
            return
        try:
            await self.stored(self.lease.release)
        except OSError as error:
            self._lease_fails(error)

    async def leave_summary(self, summary: dict) -> None:
        """Write summary.json; if this fails, report the summary as a progress line."""
        if self.lease_lost:
            return
        try:
            await self.stored(write_summary, self.folder, summary, limit_s=SUMMARY_S)
        except OSError as error:
            self.say(f"· summary.json could not be written: {error}; it is: {json.dumps(summary)}")

    def say_of(self, *files: LineFile) -> None:
        """Report once if a file cannot be written, and once when it works again."""
        for file in files:
            name, was_said = file.path.name, file.path.name in self._unwritable
            if file.problem and not was_said:
                self._unwritable.add(name)
                self.say(f"· {name} could not be written; the next line tries again: {file.problem}")
            elif was_said and not file.problem:
                self._unwritable.discard(name)
                self.say(f"· {name} is written again")

    async def finish_files(self, *files: LineFile) -> dict[str, int]:
        """Try once more to write all waiting lines; return the number of missing lines by file, if any.

        If the folder belongs to another run, nothing is written or counted.
        """
        if self.lease_lost:
            return {}
        for file in files:
            await asyncio.to_thread(file.write)
        self.say_of(*files)
        return {file.path.name: file.unwritten for file in files if file.unwritten}

    def say_what_is_lost(self, unwritten: dict[str, int]) -> None:
        """Report the incomplete files of the run folder.

        Args:
            unwritten: the number of missing lines or files, by file.
        """
        for file, number in unwritten.items():
            self.say(f"· {file} lacks {number} that could not be written")

    # Failing.

    def fail(self, error: BaseException) -> None:
        """End the run with this error."""
        if not self._failed.done():
            self._failed.set_exception(error)

    async def unless_failed(self, work: Awaitable) -> None:
        """Wait for `work`, but raise the failure that ends the run if it comes first."""
        work = asyncio.ensure_future(work)
        await asyncio.wait([work, self._failed], return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            work.cancel()
            self._failed.result()
        work.result()

    def spawn(self, coroutine: Coroutine) -> asyncio.Task:
        """Run a coroutine in the background. An error in it ends the run."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)

        def done(task: asyncio.Task) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()):
                self.fail(error)

        task.add_done_callback(done)
        return task

    async def close_all(self, closing: Sequence[Awaitable]) -> None:
        """Wait until all parts have closed, at most `CLOSING_S` seconds each; the rest ends with the job."""
        for done in await asyncio.gather(*(asyncio.wait_for(w, CLOSING_S) for w in closing), return_exceptions=True):
            if isinstance(done, Exception):
                self.say(f"· while closing: {done!r}")
        self._line_added.set()  # release callers that wait for a line

    def cancel_all(self) -> None:
        """Cancel all background tasks."""
        for task in list(self._tasks):
            task.cancel()

    @property
    def _failed(self) -> asyncio.Future:
        if self._failure is None:  # made here since it needs a running event loop
            self._failure = asyncio.get_running_loop().create_future()
        return self._failure
