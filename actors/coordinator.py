"""The coordinator: starts the pools, keeps groups flowing from problems to the learners, and ends the run well.

    problems ─▶ admit (buffer) ─▶ rollout (generator) ─▶ score (scorer) ─▶ add (buffer) ─▶ take ─▶ train ─▶ publish

Two loops: `_dispatch` starts groups as the buffer admits them, `_train` takes whole steps from the buffer. They
meet only in the buffer. The coordinator holds problems, records and references, never tokens.

What fails is put right where it is: a group goes on with another generator from its last finished conversation, a
scorer is replaced, the learners start again from the last checkpoint while the generators go on. When the coordinator
itself dies, Ray starts it again and it goes on from the last checkpoint with pools of its own.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable

import ray

from actors.accounts import Accounts
from actors.buffer import TrajectoryBuffer
from actors.generation.generator_pool import GeneratorLeft, GeneratorLost, GeneratorPool
from actors.generation.journal import Journal
from actors.job_actor import CLOSING_S, JobActor, Outcome
from actors.learning.gang import GangLost, GroupsLost
from actors.learning.supervisor import LearnerSupervisor
from actors.lifecycle.cluster import was_started_again
from actors.scoring.scorer_pool import ScorerPool
from actors.tracker import Tracker, Tracking
from pipeline.data.problem_queue import ProblemQueue
from pipeline.data.problem_stream import START
from pipeline.data.quarantine import Quarantine, withdrawn_ids
from pipeline.dtype import MISMATCH_WARNING
from pipeline.errors import BadRow, DataError, RunFailed, reason_of
from pipeline.lease import Lease
from pipeline.problems import Problem
from pipeline.rollout.episodes import GroupRecord, Sampling
from pipeline.run.checkpoints import RunState
from pipeline.run.config import TrainingConfig
from pipeline.run.ledger import DROPPED_STALE, SUSPECT_DEATHS, too_many_failed
from pipeline.run.metrics import UpdateResult
from pipeline.run.report import run_summary, step_line
from pipeline.run.source import training_source

LEARNERS_FIRST_S = 10  # in which learners get their room before generators take what there is
OPENING_S = 60.0  # for the storage to say what was quarantined
LINGER_S = 300  # after the end, for a driver to ask for the summary


class Stopped(Exception):
    """The run was asked to end while it waited for something."""


@ray.remote(num_cpus=0, max_concurrency=100, max_restarts=-1, max_task_retries=-1)
class Coordinator(JobActor):
    def __init__(self, config: TrainingConfig, folder: str, lease: Lease):
        super().__init__(folder, lease)
        self.config = config
        self.quarantine = Quarantine.outliving(
            self.folder / "quarantine.jsonl", config.data.max_bad_share, self.storage
        )
        self.started_again = was_started_again()
        self.buffer = TrajectoryBuffer(config)
        self.journal = Journal.remote()
        self.generators = GeneratorPool(
            config, self.say, self.journal, self._generator_joined, self.buffer.generator_gone
        )
        self.scorers = ScorerPool(config, self.say)
        self.learners = LearnerSupervisor(config, self.folder, lease.run, self.say)
        self.accounts = Accounts(
            config, self.say, self.buffer.ledger, self.quarantine, self.generators, self.scorers, self.learners
        )
        self.failures: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()  # that failed, by problem id, of problems that were not done since
        self.groups: dict[str, int] = {}  # the position of the problem of each group that was begun
        self.discarded: list[GroupRecord] = []  # by dynamic sampling, while the next step's groups come together
        self.skipped_in_a_row = 0
        self.wandb_run = self.wandb_id = ""
        self.sampling = Sampling(config.train.temperature)
        self.tracker: Tracking | None = None
        self._tracking: asyncio.Future | None = None
        self._ended: asyncio.Future | None = None  # its result is the summary
        if self.started_again:  # the driver may be dead too
            ray.get_runtime_context().current_actor.run.remote()

    # What the driver calls.

    def settings(self) -> TrainingConfig:
        """What this run was started with."""
        return self.config

    async def stop(self) -> None:
        """End the run after the step that is under way, and keep what was trained."""
        self.say("· stopping after this step")
        await super().stop()

    async def run(self) -> dict:
        """Run to the end, to `stop`, or to a failure; return the summary, which is also in summary.json.

        Who calls it again gets the same summary: a run has one life, however many drivers follow it.
        """
        if self._ended is None:
            self._ended = asyncio.ensure_future(self._run())
        return await asyncio.shield(self._ended)

    async def _run(self) -> dict:
        summary = await super().run()
        asyncio.get_running_loop().call_later(LINGER_S, ray.kill, ray.get_runtime_context().current_actor)
        return summary

    async def work(self) -> str:
        try:
            await self._start()
            await self._train()
        except Stopped:
            return "interrupted"
        self.check_lease()
        return "interrupted" if self._stop.is_set() and self.step < self.config.train.steps else "completed"

    async def put_away(self, outcome: Outcome) -> dict[str, int]:
        try:
            if not self.lease_lost:
                await self._save_the_last()
        except Exception as failure:
            why = f"{outcome.error or ''}\nthe last version could not be saved: {failure!r}"
            outcome.status, outcome.error = "failed", why.strip()
        if self._tracking:  # what it has of earlier steps belongs to the summary of a run that could not start, too
            await asyncio.wait([self._tracking], timeout=CLOSING_S)
        unwritten = await self.tracker.flush() if self.tracker and not self.lease_lost else {}
        return unwritten | await self.finish_files(self.quarantine.file)

    def summary(self, outcome: Outcome, seconds: float, unwritten: dict[str, int]) -> dict:
        return run_summary(
            self.config,
            outcome.status,
            self.accounts.done,
            steps=self.step,
            seconds=seconds,
            failures=self.failures,
            recoveries=self.accounts.recoveries(),
            engine_version=self.generators.engine_version,
            weight_version=self.buffer.ledger.version,
            rows_quarantined=self.quarantine.bad,
            checkpoint=self.learners.checkpoint.folder if self.learners.checkpoint else None,
            wandb_run=self.wandb_run,
            unwritten=unwritten,
            error=outcome.error,
        )

    @property
    def step(self) -> int:
        """Steps that were trained."""
        return self.buffer.ledger.step

    # Starting and ending.

    async def _start(self) -> None:
        c = self.config
        state = await self._where_to_go_on()
        if state:
            self.buffer.ledger.step, self.buffer.ledger.version = state.step, state.version
            self.accounts.done.tokens_generated = state.tokens_generated
            self.accounts.recovered_before.update(state.recoveries)
            self.failures.update(state.failures)
            self.wandb_id = state.wandb_id
        self.say(
            f"· starting {c.generator.count} generator(s) (vLLM), {c.learner.ranks} learner ranks (DeepSpeed ZeRO-3), "
            f"{c.scorer.count} scorer(s)"
        )
        self.say_what_is_missing(
            [(c.generator, c.generator.count), (c.learner, c.learner.ranks), (c.scorer, c.scorer.count)]
        )
        # All that takes seconds is under way at once; the engines, which take longest, as early as they may be.
        begin = time.monotonic()
        learners = self.spawn(self._start_learners())
        reading = self.spawn(self._read(state))
        self.tracker = Tracking(Tracker.remote(c, str(self.folder), self.step, self.wandb_id), self.say)
        self._tracking = asyncio.ensure_future(self._begin_tracking())
        placing = self.spawn(self.learners.placed.wait())
        first = asyncio.wait([learners, placing], timeout=LEARNERS_FIRST_S, return_when=asyncio.FIRST_COMPLETED)
        await self._unless_stopped(first)
        placing.cancel()
        for pool in (self.generators, self.scorers):
            self.spawn(pool.run())
        parts = {
            "data": reading,
            "learners (DeepSpeed)": learners,
            "generators (vLLM)": self.generators.ready(),
            "scorers": self.scorers.ready(),
            "tracker (wandb)": asyncio.shield(self._tracking),
        }
        await self._unless_stopped(self.start_all(parts))
        self.say(f"· all started in {time.monotonic() - begin:.0f} s")
        self.spawn(self.accounts.watch())

    async def _read(self, state: RunState | None) -> None:
        """Open the data, and begin to start groups."""
        source = await asyncio.to_thread(training_source, self.config)
        cursor, withdrawn = (state.cursor, set(state.withdrawn)) if state else (START, set())
        withdrawn |= await self._withdrawn_since()
        self.quarantine.resume(withdrawn)
        self.problems = ProblemQueue(source, self.config.run.seed, self.quarantine, cursor, withdrawn)
        self.spawn(self._dispatch())

    async def _withdrawn_since(self) -> set[str]:
        """The ids of problems that were withdrawn in this run folder, those after the last checkpoint, too."""
        try:
            return await self.stored(withdrawn_ids, self.quarantine.path, limit_s=OPENING_S)
        except OSError as error:
            raise RunFailed(f"the quarantine of this run so far cannot be read: {reason_of(error)}") from error

    async def _begin_tracking(self) -> None:
        try:
            rows, self.wandb_run, self.wandb_id = await self.tracker.begun()
        except OSError as error:
            raise RunFailed(f"the rows of this run so far cannot be read: {reason_of(error)}") from error
        self.accounts.begin_after(rows)
        if "://" in self.wandb_run:
            self.say(f"· wandb run {self.wandb_run}")

    async def _where_to_go_on(self) -> RunState | None:
        """What the checkpoint to resume from says; None: the beginning."""
        if self.started_again:
            self.accounts.coordinator_restarts = 1
            self.say("· the coordinator died and was started again")
        if self.config.resume == "auto" or self.started_again:
            await self.learners.find_checkpoint()
        if not self.learners.checkpoint:
            return None
        self.say(f"· resuming after step {self.learners.saved_step}")
        return self.learners.checkpoint.state

    def abandon_folder(self) -> None:
        self.learners.abandon(self.lease_lost)
        if self.tracker:
            self.tracker.abandon()

    async def close(self, summary: dict) -> None:
        self.cancel_all()
        closing = [pool.close() for pool in (self.generators, self.scorers, self.learners)]
        closing += [self.tracker.finish(summary)] if self.tracker and not self.lease_lost else []
        await self.close_all(closing)

    # Groups.

    async def _dispatch(self) -> None:
        """Start a group whenever the buffer admits one."""
        # Read before the first generator is up: a file that cannot be used shows now.
        self.problems.again(await asyncio.to_thread(self.problems.next))
        for number in itertools.count():
            await self.buffer.room()
            position = await asyncio.to_thread(self.problems.next)
            group_id = f"{self.problems.problem(position).id}#{number}"
            name = self.buffer.admit(group_id, position)
            if name is None:  # a generator died meanwhile
                self.problems.again(position)
                continue
            self.groups[group_id] = position
            self.spawn(self._run_group(group_id, name))

    async def _run_group(self, group_id: str, name: str | None) -> None:
        """Generate and score one group; whatever goes wrong costs this group only.

        Args:
            group_id: of the group.
            name: of the generator; None: it was finished before, and its object was lost.
        """
        t, position = self.config.train, self.groups[group_id]
        problem = self.problems.problem(position)
        seed = (self.config.run.seed, position) if t.seeded_sampling else None
        moves = deaths = 0
        go_on = name is None
        try:
            while True:
                name = name or await self.buffer.move(group_id)
                try:
                    group, notes = await self.generators.rollout(
                        name, group_id, problem, t.method, t.group_size, self.sampling, seed, go_on
                    )
                    break
                except GeneratorLost as lost:
                    moves, deaths = moves + 1, deaths + (not isinstance(lost, GeneratorLeft))
                    self._suspect(group_id, lost.blame)
                    name, go_on = None, True
            scored = await self.scorers.score(group, problem.task, problem.answers)
        except BadRow as error:
            self._withdraw(group_id, reason_of(error))
            self.buffer.withdraw(group_id)
        except Exception as error:
            self._count_failure(group_id, error)
            self.buffer.fail(group_id)
        else:
            # What the generators between the first and the last lost is not known better than by its bound.
            redone = notes.went_on + (deaths - 1) * t.group_size if deaths else 0
            record = GroupRecord.of(
                scored,
                group_id=group_id,
                generator=name,
                generation_seconds=notes.seconds,
                moves=moves,
                redone_conversations=redone,
            )
            self.accounts.moves += moves
            self.accounts.redone += redone
            self.accounts.done.tokens_generated += record.response_tokens
            self.generators.work_done()  # else those that die of several problems before a step is done are given up
            if not self.buffer.add(group_id, record, group):
                self.discarded.append(record)
                self._done_with(group_id)

    def _suspect(self, group_id: str, blame: bool) -> None:
        """A group has lost its generator. Raises `BadRow` if it ran alone there, and killed it.

        Args:
            blame: nothing but what it ran is known to have killed it.
        """
        entry = self.buffer.generator_lost(group_id, blame)
        if blame and entry.kept:
            raise BadRow(f"{entry.deaths} generators died under it, the last one while it ran nothing else")
        if blame and entry.deaths == SUSPECT_DEATHS:
            self.say(f"· {entry.deaths} generators died under group {group_id}, which goes on alone on one")

    def _generator_joined(self, name: str, version: int, pause_s: float | None) -> None:
        self.accounts.pauses += [] if pause_s is None else [pause_s]
        self.buffer.generator_has(name, version)

    # Steps.

    async def _train(self) -> None:
        t = self.config.train
        self.accounts.training_begins()
        while self.step < t.steps and not self._stop.is_set():
            try:
                groups = await self._take()
                await self._train_on(groups)
            except GroupsLost as error:
                lost = [groups[index][0].group_id for index in error.indices]
                self.say(f"· {error}; they are made again from their conversations")
                self.buffer.lose(lost)
                for group_id in lost:
                    self.spawn(self._run_group(group_id, None))
            except GangLost as error:
                await self._go_back(str(error))

    async def _train_on(self, groups: list) -> None:
        """Train one step."""
        ledger, t = self.buffer.ledger, self.config.train
        waited = self.accounts.seconds
        discarded = len(self.discarded)  # those that come while it trains are the next step's
        updates = await self.learners.train(self.step, ledger.version, groups)
        trained = self.accounts.seconds
        buckets = await self.learners.publish()
        self.buffer.step_done()
        await self.generators.publish(ledger.version, buckets)
        records = [record for record, _ in groups]
        positions = [self.groups.pop(record.group_id) for record in records]
        problems = [self.problems.done(position) for position in positions]
        for problem in problems:
            self.attempts.pop(problem.id, None)
        self.journal.drop.remote([record.group_id for record in records])
        discarded, self.discarded = self.discarded[:discarded], self.discarded[discarded:]
        for pool in (self.generators, self.scorers, self.learners):
            pool.work_done()
        self.check_lease()
        row = self.accounts.step_done(records, positions, updates, discarded, waited, trained)
        await self._report(row, problems, groups)
        self._check_updates(groups, updates)
        if self.step % t.checkpoint_every == 0:
            await self._save()
            await self._grow()

    async def _take(self) -> list:
        """The groups of the next step. Raises `Stopped`."""
        while True:
            groups, dropped = await self._unless_stopped(self.buffer.take())
            for group_id in dropped:
                self.failures[DROPPED_STALE] += 1
                self._again(group_id)
            if groups is not None:
                return groups

    # The learners' life.

    async def _start_learners(self) -> None:
        version = self.buffer.ledger.version
        # The weights of version 0 are what generators begin with.
        if buckets := await self.learners.start(publish=version > 0):
            await self.generators.publish(version, buckets)

    async def _go_back(self, why: str) -> None:
        """Go back to the last checkpoint, with the ledger and all that was counted. Generators go on meanwhile."""
        self.check_lease()
        begin = time.monotonic()
        await self.learners.lost(why)
        checkpoint, step = self.learners.checkpoint, self.learners.saved_step
        self.accounts.steps_lost += self.step - step
        self.say(f"· {why}; going back from step {self.step} to step {step}")
        self.buffer.roll_back(step)
        self.problems.roll_back(checkpoint.state.cursor if checkpoint else START)
        await self.tracker.roll_back(step)
        self.accounts.roll_back(step)
        self.discarded = []
        await self._unless_stopped(self._start_learners())
        self.say(f"· learners are back after {time.monotonic() - begin:.0f} s")
        self.accounts.step_begins()

    async def _unless_stopped(self, work: Awaitable):
        """The result of `work`. Raises `Stopped`, or the failure that ends the run, if that comes first."""
        work, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        try:
            await self.unless_failed(asyncio.wait([work, stopping], return_when=asyncio.FIRST_COMPLETED))
            if not work.done():
                raise Stopped
            return work.result()
        finally:
            work.cancel()
            stopping.cancel()

    async def _grow(self) -> None:
        """Right after a checkpoint: start the learners again with more ranks if there is room for more."""
        if not self.learners.can_grow():
            return
        await self.learners.saved()
        if self.learners.saved_step != self.step:
            return  # it could not be saved
        self.say(f"· there is room for more than {self.learners.size} learner ranks: starting them again")
        await self.learners.make_way()
        await self._unless_stopped(self._start_learners())
        self.accounts.step_begins()

    async def _save(self) -> None:
        """Copy the state of this step, and write it while training goes on."""
        await self.learners.saved()
        self.check_lease()
        ledger = self.buffer.ledger
        state = RunState(
            step=ledger.step,
            version=ledger.version,
            cursor=self.problems.cursor(),
            ranks=self.learners.size,
            wandb_id=self.wandb_id,
            tokens_generated=self.accounts.done.tokens_generated,
            failures=dict(self.failures),
            recoveries=self.accounts.recoveries(),
            withdrawn=self.problems.withdrawn,
            reward=self.accounts.done.reward_after(self.learners.saved_step),
        )
        await self.learners.save(state)

    async def _save_the_last(self) -> None:
        """Write the checkpoint of the last step, unless it is there already. Raises `RunFailed` if that fails."""
        await self.learners.saved()
        if self.learners.works and self.step != self.learners.saved_step:
            await self._save()
            await self.learners.saved()
            if self.learners.saved_step != self.step:
                raise RunFailed("see the lines above")

    # Failures and reporting.

    def _done_with(self, group_id: str) -> Problem:
        """The problem of this group need not be run again."""
        self.journal.drop.remote([group_id])
        problem = self.problems.done(self.groups.pop(group_id))
        self.attempts.pop(problem.id, None)
        return problem

    def _again(self, group_id: str) -> None:
        """The problem of this group is run again, from its beginning, as another group."""
        self.journal.drop.remote([group_id])
        self.problems.again(self.groups.pop(group_id))

    def _withdraw(self, group_id: str, reason: str) -> None:
        self.journal.drop.remote([group_id])
        problem = self.problems.withdraw(self.groups.pop(group_id))
        self.attempts.pop(problem.id, None)
        self.say(f"· quarantined {problem.id}: {reason}")
        try:
            self.quarantine.add(problem.id, reason, {"question": problem.question, "answers": problem.answers}, True)
        except DataError as error:
            self.fail(error)

    def _count_failure(self, group_id: str, error: Exception) -> None:
        t, reason = self.config.train, reason_of(error)
        problem_id = self.problems.problem(self.groups[group_id]).id
        self.failures[type(error).__name__] += 1
        self.attempts[problem_id] += 1
        if self.attempts[problem_id] < t.max_attempts:
            self._again(group_id)
            self.say(f"· group {group_id} failed and will be run again: {reason}")
        else:
            self._withdraw(group_id, f"given up after {t.max_attempts} attempts: {reason}")
        failed = self.failures.total() - self.failures[DROPPED_STALE]
        done = self.step * t.groups_per_step + self.buffer.ledger.discarded
        if too_many_failed(failed, done, t):
            self.fail(RunFailed(f"{failed} groups failed and {done} did not; the last failure: {reason}"))

    async def _report(self, row: dict, problems: list[Problem], groups: list) -> None:
        """Write and say what a step did; now and then, write some of its episodes."""
        t = self.config.train
        await self.tracker.log(row)
        self.say(step_line(row, t.steps))  # who sees the line finds the row
        self.say_of(self.quarantine.file)
        mismatch_warning = t.mismatch_warning or MISMATCH_WARNING[self.config.model.dtype]
        if (row["logprob_mismatch_mean"] or 0) > mismatch_warning:
            self.say(
                f"· warning: vLLM's and the learner's log-probs differ by {row['logprob_mismatch_mean']:.2g} on "
                f"average, more than train.mismatch_warning={mismatch_warning:g}; with the same weights they should "
                "agree"
            )
        if self.step == 1 or self.step % t.episodes_every == 0 or self.step == t.steps:
            shown = list(zip(problems, groups, strict=True))[: t.episodes_shown]
            # The references are in lists, so that Ray hands them on unresolved.
            samples = [(problem.question, record, [ref]) for problem, (record, ref) in shown]
            await self.tracker.episodes(self.step, samples)
            self.tracker.draw()  # nobody waits for the figure

    def _check_updates(self, groups: list, updates: list[UpdateResult]) -> None:
        """Name the groups of skipped updates; end the run when there were too many in a row."""
        for number, update in enumerate(updates, 1):
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if update.skipped else 0
            if update.skipped:
                names = ", ".join(groups[index][0].group_id for index in update.suspects)
                self.say(
                    f"· step {self.step}: update {number} of {len(updates)} was skipped, its loss or gradient is "
                    f"not finite; groups: {names}"
                )
            if self.skipped_in_a_row >= self.config.train.max_skipped_updates:
                raise RunFailed(
                    f"{self.skipped_in_a_row} updates in a row were skipped, their loss or gradient is not finite; "
                    "the weights are those of the last good update. Look at the groups named above, or lower "
                    "learner.learning_rate"
                )
