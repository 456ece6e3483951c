"""The coordinator: starts the pools, keeps groups flowing from problems to the learners, and ends the run well.

    problems ─▶ admit (buffer) ─▶ rollout (generator) ─▶ score (scorer) ─▶ add (buffer) ─▶ take ─▶ train ─▶ publish

Two loops: `_dispatch` starts groups as the buffer admits them, `_train` takes whole steps from the buffer. They
meet only in the buffer. The coordinator holds problems, records and references, never tokens.
"""

import asyncio
import itertools
import time
import traceback
from collections import Counter, deque
from pathlib import Path

import ray
from ray.exceptions import RayActorError

from actors.buffer import TrajectoryBuffer
from actors.generator import Generator
from actors.learner_gang import LearnerGang
from actors.scorer_pool import ScorerPool
from actors.tracker import Tracker
from actors.weight_store import WeightStore
from pipeline.config import Config
from pipeline.episodes import GroupRecord
from pipeline.ledger import too_many_failed
from pipeline.metrics import DROPPED_STALE, RunTotals, UpdateResult, step_row
from pipeline.problems import BadRow, DataError, Problem, Quarantine
from pipeline.report import run_summary, step_line, write_summary
from pipeline.sources import training_problems

REVIVE_ATTEMPTS = 8  # with waits of 1, 2, 4 … seconds between them
DEATHS_PER_STEP = 5  # a generator that dies more often before a step is done will not get better
SAVE_LIMIT_S = 600


class RunFailed(RuntimeError):
    """The run cannot go on. The message says why and what to look at."""


class GeneratorLost(RuntimeError):
    """The generator's process died under the group, which is nothing that the group's problem did."""


@ray.remote(num_cpus=0, max_concurrency=100)
class Coordinator:
    def __init__(self, config: Config, folder: str):
        self.config, self.folder = config, Path(folder)
        self.quarantine = Quarantine(self.folder / "quarantine.jsonl", config.data.max_bad_share)
        self.totals = RunTotals()
        self.failures: Counter[str] = Counter()
        self.problems_in_hand: dict[str, Problem] = {}  # by group id, until the group is trained
        self.attempts: Counter[str] = Counter()
        self.retry: deque[Problem] = deque()
        self.discarded: list[GroupRecord] = []  # by dynamic sampling, while the next step's groups come together
        self.version = 0
        self.skipped_in_a_row = 0
        self.checkpoint: Path | None = None
        self.engine_version = self.wandb_run = ""
        self._stop = asyncio.Event()
        self._lines: list[str] = []
        self._line_added = asyncio.Event()
        self._tasks: set[asyncio.Task] = set()
        self._deaths: Counter[str] = Counter()
        self.generators: dict = {}
        self.gang = self.tracker = None

    # What the driver calls.

    async def lines(self, after: int, wait_s: float) -> list[str]:
        """The progress lines from number `after` on; waits up to `wait_s` seconds for one."""
        if len(self._lines) <= after:
            self._line_added.clear()
            try:
                await asyncio.wait_for(self._line_added.wait(), wait_s)
            except TimeoutError:
                pass
        return self._lines[after:]

    async def stop(self) -> None:
        """End the run after the step that is under way, and keep what was trained."""
        self._say("· stopping after this step")
        self._stop.set()

    async def run(self) -> dict:
        """Run to the end, to `stop`, or to a failure; return the summary, which is also in summary.json."""
        begin, status, error = time.time(), "failed", None
        self._failed = asyncio.get_running_loop().create_future()  # its exception ends the run
        try:
            await self._start()
            await self._train()
            status = "interrupted" if self._stop.is_set() and self.version < self.config.train.steps else "completed"
        except Exception as failure:
            error = reason_of(failure)
            if not isinstance(failure, (RunFailed, DataError)):
                traceback.print_exc()  # into the job's log; the summary has the last line
        try:
            await asyncio.wait_for(self._save_if_new(), SAVE_LIMIT_S)
        except Exception as failure:
            status, error = "failed", f"{error or ''}\nthe last version could not be saved: {failure!r}".strip()
        summary = run_summary(
            self.config,
            status,
            self.totals,
            seconds=time.time() - begin,
            failures=self.failures,
            engine_version=self.engine_version,
            weight_version=self.version,
            rows_quarantined=self.quarantine.bad,
            checkpoint=self.checkpoint,
            wandb_run=self.wandb_run,
            error=error,
        )
        write_summary(self.folder, summary)
        await self._close(summary)
        return summary

    # Starting and ending.

    async def _start(self) -> None:
        c = self.config
        self._say(
            f"· starting {c.generator.count} generator(s) (vLLM), {c.learner.ranks} learner ranks (DeepSpeed ZeRO-3), "
            f"{c.scorer.count} scorer(s)"
        )
        self.problems = training_problems(c, self.quarantine)
        self.retry.append(await asyncio.to_thread(next, self.problems))  # a wrong file shows before engines start
        self.store, self.buffer = WeightStore.remote(), TrajectoryBuffer.remote(c)
        self.tracker = Tracker.remote(c, str(self.folder))
        self.gang, self.scorers = LearnerGang(c), ScorerPool(c)
        self.generators = {
            name: Generator.options(num_cpus=c.generator.num_cpus, num_gpus=c.generator.num_gpus).remote(
                name, c, c.run.seed + number, self.buffer, self.store
            )
            for number, name in enumerate(f"generator-{i}" for i in range(c.generator.count))
        }
        self._say_what_is_missing()
        begin = time.time()
        self.wandb_run = await self.tracker.where.remote()
        starting = [self._timed(self.gang.start(), "learners"), self._timed(self._start_generators(), "generators")]
        await self._unless_failed(asyncio.gather(*starting))
        self._say(f"· all started in {time.time() - begin:.0f} s")
        for name in self.generators:
            self._spawn(self._watch(name))
        self._spawn(self._dispatch())

    def _say_what_is_missing(self) -> None:
        """A cluster that is too small is waited for, as an autoscaler may be on its way; but not in silence."""
        c = self.config
        pools = [(c.generator, c.generator.count), (c.learner, c.learner.ranks), (c.scorer, c.scorer.count)]
        has = ray.cluster_resources()
        for kind, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
            needs = sum(getattr(pool, field, 0) * count for pool, count in pools)
            if needs > has.get(kind, 0):
                self._say(
                    f"· the cluster has {has.get(kind, 0):g} {kind} and the pools ask for {needs:g}: waiting for more"
                )

    async def _start_generators(self) -> None:
        self.engine_version, *_ = await asyncio.gather(*(g.start.remote() for g in self.generators.values()))

    async def _timed(self, work, name: str) -> None:
        begin = time.time()
        await work
        self._say(f"· {name} ready after {time.time() - begin:.0f} s")

    async def _close(self, summary: dict) -> None:
        for task in list(self._tasks):
            task.cancel()
        closing = [asyncio.gather(*(g.close.remote() for g in self.generators.values()))]
        closing += [self.gang.close()] if self.gang else []
        closing += [_result(self.tracker.finish.remote(summary))] if self.tracker else []
        for work in closing:
            try:
                await asyncio.wait_for(work, 60)
            except Exception as error:  # the run's result stands; what is left behind ends with the job
                self._say(f"· while closing: {error!r}")

    # The two loops.

    async def _dispatch(self) -> None:
        """Start a group whenever the buffer admits one."""
        for number in itertools.count():
            problem = self.retry.popleft() if self.retry else await asyncio.to_thread(next, self.problems)
            group_id = f"{problem.id}#{number}"
            name = await self.buffer.admit.remote(group_id)
            self.problems_in_hand[group_id] = problem
            self._spawn(self._run_group(group_id, problem, name))

    async def _run_group(self, group_id: str, problem: Problem, name: str) -> None:
        """Generate and score one group; whatever goes wrong costs this group only."""
        try:
            group, took = await self._rollout(problem, name)
            record = await self.scorers.score(group_id, group, problem.task, problem.answers, name, took)
        except BadRow as error:
            self._withdraw(group_id, problem, str(error))
            await self.buffer.withdraw.remote(group_id)
        except Exception as error:
            self._count_failure(group_id, problem, error)
            await self.buffer.fail.remote(group_id)
        else:
            self.totals.tokens_generated += record.response_tokens
            if not await self.buffer.add.remote(group_id, record, [group]):
                self.discarded.append(record)
                del self.problems_in_hand[group_id]

    async def _rollout(self, problem: Problem, name: str) -> tuple[ray.ObjectRef, float]:
        """Run a group's episodes; return the reference to them and the seconds it took."""
        limit = self.config.generator.group_timeout_s
        rollout = self.generators[name].rollout.options(num_returns=2)
        group, seconds = rollout.remote(problem, self.config.train.group_size)
        try:
            async with asyncio.timeout(limit):
                return group, await seconds
        except TimeoutError:
            ray.cancel(seconds)
            raise TimeoutError(f"no episodes within generator.group_timeout_s={limit}") from None
        except RayActorError as error:
            raise GeneratorLost(f"{name} died") from error

    async def _watch(self, name: str) -> None:
        """Bring a generator back whenever it dies, busy or idle."""
        while True:
            try:
                await self.generators[name].until_death.remote()
            except RayActorError:
                await self._revive(name)

    async def _revive(self, name: str) -> None:
        """Take a dead generator out of admission until Ray has started it again and it has the current weights."""
        self._deaths[name] += 1
        if self._deaths[name] > DEATHS_PER_STEP:
            raise RunFailed(f"{name} died {self._deaths[name]} times within a step; see its log in Ray's dashboard")
        self._say(f"· {name} died; starting it again")
        await self.buffer.generator_gone.remote(name)
        for attempt in range(REVIVE_ATTEMPTS):
            try:
                await self.generators[name].start.remote()
                break
            except RayActorError:
                await asyncio.sleep(2**attempt)
        else:
            raise RunFailed(f"{name} did not come back in {REVIVE_ATTEMPTS} attempts; see its log in Ray's dashboard")
        self._say(f"· {name} is back")

    async def _train(self) -> None:
        t = self.config.train
        self._generated_before, self._step_began = 0, time.time()
        while self.version < t.steps and not self._stop.is_set():
            groups = await self._take()
            if groups is None:
                break
            discarded, self.discarded = self.discarded, []
            waited = time.time() - self._step_began
            updates = await self.gang.train(self.version, groups)
            trained = time.time() - self._step_began
            self.version += 1
            await self.store.publish.remote(self.version, await self.gang.publish())
            await self.buffer.step_done.remote()
            self._deaths.clear()
            await self._report(groups, updates, discarded, waited, trained)
            self._check_updates(groups, updates)
            if self.version % t.checkpoint_every == 0:
                await self._save_if_new()

    async def _take(self) -> list | None:
        """The groups of the next step; None if the run is stopped before they are there."""
        while True:
            taking = asyncio.ensure_future(_result(self.buffer.take.remote()))
            stopping = asyncio.ensure_future(self._stop.wait())
            await self._unless_failed(asyncio.wait([taking, stopping], return_when=asyncio.FIRST_COMPLETED))
            stopping.cancel()
            if not taking.done():
                taking.cancel()
                return None
            groups, dropped = taking.result()
            for group_id in dropped:
                self.failures[DROPPED_STALE] += 1
                self.retry.append(self.problems_in_hand.pop(group_id))
            if groups is not None:
                return groups

    async def _save_if_new(self) -> None:
        """Write the checkpoint of the current version unless it is the one the run began with or is there already."""
        folder = self.folder / "checkpoints" / str(self.version)
        if self.version == 0 or folder == self.checkpoint:
            return
        folder.mkdir(parents=True, exist_ok=True)
        await self.gang.save(str(folder / "hf"))
        self.checkpoint = folder
        self._say(f"· saved checkpoints/{self.version}")

    # Failures and reporting.

    def _withdraw(self, group_id: str, problem: Problem, reason: str) -> None:
        del self.problems_in_hand[group_id]
        self._say(f"· quarantined {problem.id}: {reason}")
        try:
            self.quarantine.add(problem.id, reason, {"question": problem.question, "answers": problem.answers})
        except DataError as error:
            self._fail(error)

    def _count_failure(self, group_id: str, problem: Problem, error: Exception) -> None:
        del self.problems_in_hand[group_id]
        self.failures[type(error).__name__] += 1
        self.attempts[problem.id] += not isinstance(error, GeneratorLost)
        reason = reason_of(error)
        if self.attempts[problem.id] < self.config.train.max_attempts:
            self.retry.append(problem)
            self._say(f"· group {group_id} failed and will be run again: {reason}")
        else:
            self._withdraw_given_up(problem, reason)
        t = self.config.train
        failed = self.failures.total() - self.failures[DROPPED_STALE] - self.failures["GeneratorLost"]
        done = self.version * t.groups_per_step + self.totals.groups_discarded + len(self.discarded)
        if too_many_failed(failed, done, t):
            self._fail(RunFailed(f"{failed} groups failed and {done} did not; the last failure: {reason}"))

    def _withdraw_given_up(self, problem: Problem, reason: str) -> None:
        self._say(f"· giving {problem.id} up after {self.config.train.max_attempts} attempts: {reason}")
        self.quarantine.add(problem.id, reason, {"question": problem.question, "answers": problem.answers})

    async def _report(
        self,
        groups: list,
        updates: list[UpdateResult],
        discarded: list[GroupRecord],
        waited: float,
        trained: float,
    ) -> None:
        t, now = self.config.train, time.time()
        counts = await self.buffer.counts.remote()
        row = step_row(self.version, [record for record, _ in groups], updates, discarded) | {
            "updates_total": self.totals.updates + sum(not update.skipped for update in updates),
            "seconds": now - self._step_began,
            "wait_seconds": waited,
            "train_seconds": trained - waited,
            "publish_seconds": now - self._step_began - trained,
            "update_pause_max": counts["update_pause_max"],
            "tokens_generated_total": self.totals.tokens_generated,
            "tokens_per_second": (self.totals.tokens_generated - self._generated_before) / (now - self._step_began),
            "groups_running": counts["running"],
            "groups_buffered": counts["buffered"],
            "groups_failed": counts["failed"],
            "groups_dropped_stale": counts["dropped_stale"],
            "groups_discarded_total": counts["discarded"],
            "rows_quarantined": self.quarantine.bad,
        }
        self._generated_before, self._step_began = self.totals.tokens_generated, now
        self.totals.add(row)
        self._say(step_line(row, t.steps))
        if (row["logprob_mismatch_mean"] or 0) > t.mismatch_warning:
            self._say(
                f"· warning: vLLM's and the learner's log-probs differ by {row['logprob_mismatch_mean']:.2g} on "
                f"average, more than train.mismatch_warning={t.mismatch_warning:g}; with the same weights they should "
                "agree"
            )
        await self.tracker.log.remote(row)
        w = self.config.wandb
        if self.version == 1 or self.version % w.episodes_every == 0 or self.version == t.steps:
            samples = [(self.problems_in_hand[r.group_id].question, r, ref) for r, ref in groups[: w.episodes]]
            await self.tracker.episodes.remote(self.version, samples)
        for record, _ in groups:
            self.problems_in_hand.pop(record.group_id)

    def _check_updates(self, groups: list, updates: list[UpdateResult]) -> None:
        """Name the groups of skipped updates; end the run when there were too many in a row."""
        for number, update in enumerate(updates, 1):
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if update.skipped else 0
            if update.skipped:
                names = ", ".join(groups[index][0].group_id for index in update.suspects)
                self._say(
                    f"· step {self.version}: update {number} of {len(updates)} was skipped, its loss or gradient is "
                    f"not finite; groups: {names}"
                )
            if self.skipped_in_a_row >= self.config.train.max_skipped_updates:
                raise RunFailed(
                    f"{self.skipped_in_a_row} updates in a row were skipped, their loss or gradient is not finite; "
                    "the weights are those of the last good update. Look at the groups named above, or lower "
                    "learner.learning_rate"
                )

    def _say(self, line: str) -> None:
        self._lines.append(line)
        self._line_added.set()

    def _fail(self, error: Exception) -> None:
        if not self._failed.done():
            self._failed.set_exception(error)

    async def _unless_failed(self, work) -> None:
        """Wait for `work`, or raise the failure that ends the run, whichever comes first."""
        work = asyncio.ensure_future(work)
        await asyncio.wait([work, self._failed], return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            work.cancel()
            self._failed.result()
        work.result()

    def _spawn(self, coroutine) -> None:
        """Run in the background; an error there ends the run instead of being lost."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)

        def done(task: asyncio.Task) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and task.exception():
                self._fail(task.exception())

        task.add_done_callback(done)


def reason_of(error: Exception) -> str:
    """One line: an error that crossed processes carries their tracebacks, and what it says comes last."""
    last = (str(error).strip().splitlines() or [""])[-1]
    return last if isinstance(error, (RunFailed, DataError)) else f"{type(error).__name__}: {last}"


async def _result(ref: ray.ObjectRef):
    return await ref
