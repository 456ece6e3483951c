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

from actors.buffer import TrajectoryBuffer
from actors.generator_pool import GeneratorLost, GeneratorPool
from actors.job_actor import JobActor, RunFailed, reason_of
from actors.learner_gang import LearnerGang
from actors.scorer_pool import ScorerPool
from actors.tracker import Tracker
from actors.weight_store import WeightStore
from pipeline.config import Config
from pipeline.episodes import GroupRecord, Sampling
from pipeline.ledger import too_many_failed
from pipeline.metrics import DROPPED_STALE, RunTotals, UpdateResult, step_row
from pipeline.problem_stream import Cursor, problem_stream, save_cursor, training_source
from pipeline.problems import BadRow, DataError, Problem, Quarantine
from pipeline.report import run_summary, step_line, write_summary

SAVE_LIMIT_S = 600


@ray.remote(num_cpus=0, max_concurrency=100)
class Coordinator(JobActor):
    def __init__(self, config: Config, folder: str):
        super().__init__()
        self.config, self.folder = config, Path(folder)
        self.quarantine = Quarantine(self.folder / "quarantine.jsonl", config.data.max_bad_share)
        self.totals = RunTotals()
        self.failures: Counter[str] = Counter()
        self.position = 0  # in the data, of the next problem
        self.problems_in_hand: dict[int, Problem] = {}  # by position, until they are trained or given up
        self.attempts: Counter[str] = Counter()  # by problem id: a later pass over the data makes no new ones
        self.retry: deque[int] = deque()
        self.groups: dict[str, int] = {}  # the position of the problem of each group that was begun
        self.discarded: list[GroupRecord] = []  # by dynamic sampling, while the next step's groups come together
        self.version = 0
        self.skipped_in_a_row = 0
        self.checkpoint: Path | None = None
        self.engine_version = self.wandb_run = ""
        self.sampling = Sampling(config.train.temperature)
        self.generators = self.gang = self.tracker = None

    # What the driver calls.

    async def stop(self) -> None:
        """End the run after the step that is under way, and keep what was trained."""
        self.say("· stopping after this step")
        self._stop.set()

    async def run(self) -> dict:
        """Run to the end, to `stop`, or to a failure; return the summary, which is also in summary.json."""
        begin, status, error = time.time(), "failed", None
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
        self.say(
            f"· starting {c.generator.count} generator(s) (vLLM), {c.learner.ranks} learner ranks (DeepSpeed ZeRO-3), "
            f"{c.scorer.count} scorer(s)"
        )
        source = await asyncio.to_thread(training_source, c)
        self.problems = problem_stream(source, c.run.seed, self.quarantine)
        self.store, self.buffer = WeightStore.remote(), TrajectoryBuffer.remote(c)
        self.tracker = Tracker.remote(c, str(self.folder))
        self.gang, self.scorers = LearnerGang(c), ScorerPool(c)
        self.generators = GeneratorPool(c, self.say, self.buffer.generator_gone.remote, self.buffer, self.store)
        self.spawn(self._dispatch())  # the buffer admits when a generator is there; a wrong file shows before
        self.say_what_is_missing(
            [(c.generator, c.generator.count), (c.learner, c.learner.ranks), (c.scorer, c.scorer.count)]
        )
        begin = time.time()
        self.wandb_run = await self.tracker.where.remote()
        starting = [self._timed(self.gang.start(), "learners"), self._timed(self._start_generators(), "generators")]
        await self.unless_failed(asyncio.gather(*starting))
        self.say(f"· all started in {time.time() - begin:.0f} s")
        for name in self.generators.names:
            self.spawn(self.generators.watch(name))

    async def _start_generators(self) -> None:
        self.engine_version = await self.generators.start()

    async def _timed(self, work, name: str) -> None:
        begin = time.time()
        await work
        self.say(f"· {name} ready after {time.time() - begin:.0f} s")

    async def _close(self, summary: dict) -> None:
        self.cancel_all()
        closing = [self.generators.close()] if self.generators else []
        closing += [self.gang.close()] if self.gang else []
        closing += [_result(self.tracker.finish.remote(summary))] if self.tracker else []
        for work in closing:
            try:
                await asyncio.wait_for(work, 60)
            except Exception as error:  # the run's result stands; what is left behind ends with the job
                self.say(f"· while closing: {error!r}")

    # The two loops.

    async def _dispatch(self) -> None:
        """Start a group whenever the buffer admits one."""
        for number in itertools.count():
            position = self.retry.popleft() if self.retry else await self._next_position()
            group_id = f"{self.problems_in_hand[position].id}#{number}"
            name = await self.buffer.admit.remote(group_id)
            self.groups[group_id] = position
            self.spawn(self._run_group(group_id, name))

    async def _next_position(self) -> int:
        """Take one more problem in hand."""
        position, problem = await asyncio.to_thread(next, self.problems)
        self.problems_in_hand[position] = problem
        self.position = position + 1
        return position

    async def _run_group(self, group_id: str, name: str) -> None:
        """Generate and score one group; whatever goes wrong costs this group only."""
        t, problem = self.config.train, self.problems_in_hand[self.groups[group_id]]
        try:
            group, took = await self.generators.rollout(name, problem, t.method, t.group_size, self.sampling)
            record = await self.scorers.score(group_id, group, problem.task, problem.answers, name, took)
        except BadRow as error:
            self._withdraw(group_id, str(error))
            await self.buffer.withdraw.remote(group_id)
        except Exception as error:
            self._count_failure(group_id, error)
            await self.buffer.fail.remote(group_id)
        else:
            self.totals.tokens_generated += record.response_tokens
            if not await self.buffer.add.remote(group_id, record, [group]):
                self.discarded.append(record)
                self._done_with(group_id)

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
            problems = [self._done_with(record.group_id) for record, _ in groups]
            await self.store.publish.remote(self.version, await self.gang.publish())
            await self.buffer.step_done.remote()
            self.generators.work_done()
            await self._report(groups, problems, updates, discarded, waited, trained)
            self._check_updates(groups, updates)
            if self.version % t.checkpoint_every == 0:
                await self._save_if_new()

    async def _take(self) -> list | None:
        """The groups of the next step; None if the run is stopped before they are there."""
        while True:
            taking = asyncio.ensure_future(_result(self.buffer.take.remote()))
            stopping = asyncio.ensure_future(self._stop.wait())
            await self.unless_failed(asyncio.wait([taking, stopping], return_when=asyncio.FIRST_COMPLETED))
            stopping.cancel()
            if not taking.done():
                taking.cancel()
                return None
            groups, dropped = taking.result()
            for group_id in dropped:
                self.failures[DROPPED_STALE] += 1
                self.retry.append(self.groups.pop(group_id))
            if groups is not None:
                return groups

    async def _save_if_new(self) -> None:
        """Write the checkpoint of the current version unless it is the one the run began with or is there already."""
        folder = self.folder / "checkpoints" / str(self.version)
        if self.version == 0 or folder == self.checkpoint:
            return
        folder.mkdir(parents=True, exist_ok=True)
        cursor = Cursor(self.position, tuple(self.problems_in_hand))
        await self.gang.save(str(folder / "hf"))
        save_cursor(cursor, folder / "data.json")
        self.checkpoint = folder
        self.say(f"· saved checkpoints/{self.version}")

    # Failures and reporting.

    def _done_with(self, group_id: str) -> Problem:
        """The problem of this group will not be run again."""
        return self.problems_in_hand.pop(self.groups.pop(group_id))

    def _withdraw(self, group_id: str, reason: str) -> None:
        problem = self._done_with(group_id)
        self.say(f"· quarantined {problem.id}: {reason}")
        try:
            self.quarantine.add(problem.id, reason, {"question": problem.question, "answers": problem.answers})
        except DataError as error:
            self.fail(error)

    def _count_failure(self, group_id: str, error: Exception) -> None:
        t, reason = self.config.train, reason_of(error)
        problem_id = self.problems_in_hand[self.groups[group_id]].id
        self.failures[type(error).__name__] += 1
        self.attempts[problem_id] += not isinstance(error, GeneratorLost)
        if self.attempts[problem_id] < t.max_attempts:
            self.retry.append(self.groups.pop(group_id))
            self.say(f"· group {group_id} failed and will be run again: {reason}")
        else:
            self._withdraw(group_id, f"given up after {t.max_attempts} attempts: {reason}")
        failed = self.failures.total() - self.failures[DROPPED_STALE] - self.failures["GeneratorLost"]
        done = self.version * t.groups_per_step + self.totals.groups_discarded + len(self.discarded)
        if too_many_failed(failed, done, t):
            self.fail(RunFailed(f"{failed} groups failed and {done} did not; the last failure: {reason}"))

    async def _report(
        self,
        groups: list,
        problems: list[Problem],
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
        self.say(step_line(row, t.steps))
        if (row["logprob_mismatch_mean"] or 0) > t.mismatch_warning:
            self.say(
                f"· warning: vLLM's and the learner's log-probs differ by {row['logprob_mismatch_mean']:.2g} on "
                f"average, more than train.mismatch_warning={t.mismatch_warning:g}; with the same weights they should "
                "agree"
            )
        await self.tracker.log.remote(row)
        if self.version == 1 or self.version % t.episodes_every == 0 or self.version == t.steps:
            shown = list(zip(problems, groups, strict=True))[: t.episodes_shown]
            samples = [(problem.question, record, ref) for problem, (record, ref) in shown]
            await self.tracker.episodes.remote(self.version, samples)
            self.tracker.draw.remote()  # nobody waits for the figure

    def _check_updates(self, groups: list, updates: list[UpdateResult]) -> None:
        """Name the groups of skipped updates; end the run when there were too many in a row."""
        for number, update in enumerate(updates, 1):
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if update.skipped else 0
            if update.skipped:
                names = ", ".join(groups[index][0].group_id for index in update.suspects)
                self.say(
                    f"· step {self.version}: update {number} of {len(updates)} was skipped, its loss or gradient is "
                    f"not finite; groups: {names}"
                )
            if self.skipped_in_a_row >= self.config.train.max_skipped_updates:
                raise RunFailed(
                    f"{self.skipped_in_a_row} updates in a row were skipped, their loss or gradient is not finite; "
                    "the weights are those of the last good update. Look at the groups named above, or lower "
                    "learner.learning_rate"
                )


async def _result(ref: ray.ObjectRef):
    return await ref
