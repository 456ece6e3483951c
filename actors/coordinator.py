"""The coordinator: the job actor of a training run. It starts the pools, trains step by step and ends the run.

    problems ─▶ rollout (generator) ─▶ score (scorer) ─▶ buffered ─▶ take ─▶ train ─▶ publish
    ╰───────── actors/rollouts.py ──────────────────╯               ╰──── `_train` ────╯

The two loops share only the groups (actors/groups.py): the rollouts start groups whenever there is room; `_train` takes
whole steps. The coordinator holds problems, records and references, never tokens.

Failures are repaired where they happen: a group continues on another generator from its last finished conversation, a
scorer is replaced, and the learners restart from the last checkpoint while the generators keep working. If the
coordinator dies, Ray restarts it, and it resumes from the last checkpoint with new pools.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import cast

import ray

from actors.accounts import Accounts
from actors.generation.generator_pool import GeneratorPool
from actors.generation.journal import Journal
from actors.groups import Groups, Step
from actors.job_actor import CLOSING_S, JobActor, Outcome
from actors.learning.gang import GangLost, GroupsLost
from actors.learning.supervisor import LearnerSupervisor
from actors.lifecycle.cluster import was_started_again
from actors.rollouts import Rollouts
from actors.scoring.scorer_pool import ScorerPool
from actors.step_reports import StepReports
from actors.tracking import Tracking, start_tracker
from actors.validation import Validation
from pipeline.alerts import Alert
from pipeline.data.problem_stream import START
from pipeline.data.quarantine import Quarantine, withdrawn_ids
from pipeline.errors import RunFailed, reason_of
from pipeline.lease import Lease
from pipeline.run.checkpoints import RunState, Scores
from pipeline.run.config import TrainingConfig
from pipeline.run.report import run_summary
from pipeline.run.timeline import Timeline
from pipeline.storage import LineFile, has_lines

LEARNERS_FIRST_S = 10  # head start in which learners reserve resources before generators take the rest
OPENING_S = 60.0  # limit for reading the ids that this run has withdrawn
LINGER_S = 300  # lifetime after the end, so that drivers can fetch the summary


class Stopped(Exception):
    """The run was asked to stop while it waited for something."""


@ray.remote(num_cpus=0, max_concurrency=100, max_restarts=-1, max_task_retries=-1)
class Coordinator(JobActor):
    GENERATORS: Callable[..., GeneratorPool] = GeneratorPool
    LEARNERS: Callable[..., LearnerSupervisor] = LearnerSupervisor

    def __init__(self, config: TrainingConfig, folder: str, lease: Lease):
        super().__init__(folder, lease)
        self.config = config
        self.quarantine = Quarantine.outliving(self.quarantine_file, config.data.max_bad_share)
        self.started_again = was_started_again()
        journal = Journal.remote()
        self.generators = self.GENERATORS(config, self.say, journal, self._generator_joined, self._generator_left)
        self.scorers = ScorerPool(config, self.say)
        self.learners = self.LEARNERS(config, self.folder, lease.run, self.say, self._scores)
        self.groups = Groups(config, self.say, journal, self.quarantine, self.generators.versions)
        self.validation_quarantine = LineFile(self.folder / "quarantine-validation.jsonl", self.storage)
        ledger = self.groups.ledger
        self.validation = Validation(
            config, self.say, self.validation_quarantine, self.generators, ledger, self._report_validation
        )
        pools = self.generators, self.scorers, self.learners
        self.accounts = Accounts(config, self.say, ledger, self.quarantine, *pools, self.validation)
        self.timeline = Timeline(LineFile(self.folder / "timeline.json", self.storage))
        self.rollouts = Rollouts(
            config, self.groups, self.generators, self.scorers, self.accounts, self.timeline, self.spawn
        )
        self.reports = StepReports(config, self.say)
        self.wandb_run = self.wandb_id = ""
        self.tracker: Tracking | None = None
        self._tracking: asyncio.Future | None = None
        self._ended: asyncio.Future | None = None  # its result is the summary
        if self.started_again:  # perhaps no driver is left to call `run`
            ray.get_runtime_context().current_actor.run.remote()

    # Called by the driver.

    def settings(self) -> TrainingConfig:
        """The configuration that this run was started with."""
        return self.config

    async def stop(self) -> None:
        """End the run after the current step and save what was trained."""
        self.say("· stopping after this step")
        await super().stop()

    async def run(self) -> dict:
        """Run to the end, to `stop`, or to a failure; return the summary, which is also in summary.json.

        Further calls return the same summary, so several drivers can follow one run.
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
        self.validation.cancel()
        try:
            if not self.lease_lost:
                await self._save_the_last()
        except Exception as failure:
            why = f"{outcome.error or ''}\nthe last version could not be saved: {failure!r}"
            outcome.status, outcome.error = "failed", why.strip()
        if self._tracking:  # a run that could not start still needs the rows of earlier steps for its summary
            await asyncio.wait([self._tracking], timeout=CLOSING_S)
        unwritten = await self.tracker.flush() if self.tracker and not self.lease_lost else {}
        self.timeline.write()
        return unwritten | await self.finish_files(*self._files)

    @property
    def _files(self) -> list[LineFile]:
        """The files to which lines are appended here."""
        return [self.quarantine_file, self.validation_quarantine, self.timeline.file]

    def summary(self, outcome: Outcome, seconds: float, unwritten: dict[str, int]) -> dict:
        return run_summary(
            self.config,
            outcome.status,
            self.accounts.done,
            steps=self.step,
            seconds=seconds,
            failures=self.groups.failures,
            recoveries=self.accounts.recoveries(),
            engine_version=self.generators.engine_version,
            weight_version=self.groups.ledger.version,
            rows_quarantined=self.quarantine.bad,
            checkpoint=self.learners.checkpoint.folder if self.learners.checkpoint else None,
            wandb_run=self.wandb_run,
            validation=self.validation.comparable_rows(),
            unwritten=unwritten,
            error=outcome.error,
        )

    @property
    def step(self) -> int:
        """The number of steps trained."""
        return self.groups.ledger.step

    def alert(self, alert: Alert) -> None:
        if self.tracker:
            self.tracker.alert(alert)

    # Starting and ending.

    async def _start(self) -> None:
        c = self.config
        state = await self._state_to_resume()
        if state:
            self.groups.resume(state)
            self.accounts.resume(state)
            self.wandb_id = state.wandb_id
        self.say(
            f"· starting {c.generator.count} generator(s) (vLLM), {c.learner.ranks} learner ranks (DeepSpeed ZeRO-3), "
            f"{c.scorer.count} scorer(s)"
        )
        self.say_what_is_missing(
            [(c.generator, c.generator.count), (c.learner, c.learner.ranks), (c.scorer, c.scorer.count)]
        )
        self.timeline.begin(continues=await self.stored(has_lines, self.timeline.file.path, limit_s=OPENING_S))
        # All slow parts start concurrently; the slowest, the engines, as soon as the learners have their room.
        begin = time.monotonic()
        learners = self.spawn(self._start_learners())
        reading = self.spawn(self._read(state))
        self.tracker = Tracking(start_tracker(c, str(self.folder), self.step, self.wandb_id), self.say)
        self._tracking = asyncio.ensure_future(self._begin_tracking())
        placing = self.spawn(self.learners.placed.wait())
        first = asyncio.wait([learners, placing], timeout=LEARNERS_FIRST_S, return_when=asyncio.FIRST_COMPLETED)
        await self._unless_stopped(first)
        placing.cancel()
        for pool in (self.generators, self.scorers):
            self.spawn(pool.run())
        parts = {
            "data": reading,
            "held-out questions": self._open_validation(),
            "learners (DeepSpeed)": learners,
            "generators (vLLM)": self.generators.ready(),
            "scorers": self.scorers.ready(),
            "tracker (wandb)": asyncio.shield(self._tracking),
        }
        await self._unless_stopped(self.start_all(parts))
        self.say(f"· all started in {time.monotonic() - begin:.0f} s")
        self.spawn(self.accounts.watch())

    async def _read(self, state: RunState | None) -> None:
        """Open the data and start the rollouts."""
        try:  # the file also has those withdrawn after the last checkpoint
            withdrawn = await self.stored(withdrawn_ids, self.quarantine.path, limit_s=OPENING_S)
        except OSError as error:
            raise RunFailed(f"the quarantine of this run so far cannot be read: {reason_of(error)}") from error
        await self.groups.open_data(state, withdrawn)
        self.spawn(self.rollouts.run())

    async def _open_validation(self) -> None:
        with contextlib.suppress(OSError):  # reading finds the same bad rows again
            await self.stored(self.validation_quarantine.path.unlink, True, limit_s=OPENING_S)
        await self.validation.open()

    async def _begin_tracking(self) -> None:
        try:
            rows, self.validation.rows, self.wandb_run, self.wandb_id = await self.tracker.begun()
        except OSError as error:
            raise RunFailed(f"the rows of this run so far cannot be read: {reason_of(error)}") from error
        self.accounts.begin_after(rows)
        if "://" in self.wandb_run:
            self.say(f"· wandb run {self.wandb_run}")

    async def _state_to_resume(self) -> RunState | None:
        """The state of the checkpoint to resume from; None: start from the beginning."""
        if self.started_again:
            self.accounts.coordinator_restarts = 1
            self.say("· the coordinator died and was started again")
        if self.config.resume == "auto" or self.started_again:
            await self.learners.keeper.find()
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

    # Generators and steps.

    def _generator_joined(self, name: str, pause_s: float | None) -> None:
        if pause_s is not None:
            self.accounts.pauses.append(pause_s)
            self.timeline.add(name, "load weights", time.time() - pause_s, time.time())
        self.groups.changed()

    def _generator_left(self, name: str) -> None:
        self.groups.changed()

    async def _train(self) -> None:
        self.accounts.training_begins()
        self.validation.begin()
        while not self._stop.is_set():
            try:
                if self.step < self.config.train.steps:
                    with self.timeline.span("learners", "wait"):
                        step = await self._unless_stopped(self.learners.unless_unsent(self.groups.take()))
                    await self._train_on(step)
                    continue
                await self.learners.sent()
                await self.learners.saved()
                if self.step != self.learners.saved_step:  # before the last validation, which may take long
                    await self._save()
                    await self.learners.saved()
                break
            except GangLost as error:
                await self._go_back(str(error))
        if self.config.train.evaluate_every and not self._stop.is_set():
            await self._unless_stopped(self.validation.finish())
            await self.learners.keeper.prune()  # now that the last checkpoint has its score

    def _scores(self) -> Scores | None:
        return self.validation.scores() if self.config.train.evaluate_every else None

    async def _report_validation(self, row: dict, answers: list[dict]) -> None:
        await self.reports.report_validation(cast(Tracking, self.tracker), row, answers)

    async def _train_on(self, step: Step) -> None:
        """Train one step. If groups of it were lost, nothing is trained and they are remade."""
        ledger, waited = self.groups.ledger, self.accounts.seconds
        try:
            with self.timeline.span("learners", "train", step=self.step + 1):
                updates = await self.learners.train(self.step, ledger.version, step.groups)
        except GroupsLost as error:
            self.say(Alert("groups lost", f"· {error}; they are remade from their finished conversations"))
            for group_id in self.groups.lose(step, error.indices):
                self.rollouts.make_again(group_id)
            return
        trained = self.accounts.seconds
        with self.timeline.span("learners", "publish", version=ledger.version + 1):
            await self.learners.publish(ledger.version + 1, self.generators.publish)
        self.groups.step_done(step)
        self.validation.begin()
        for pool in (self.generators, self.scorers):
            pool.work_done()
        self.check_lease()
        row = self.accounts.step_done(step, updates, waited, trained)
        await self.reports.report(cast(Tracking, self.tracker), row, step, updates)
        self.timeline.write()
        self.say_of(*self._files)
        self.reports.check_updates(self.step, step, updates)
        if self.step % self.config.train.checkpoint_every == 0:
            await self._save()
            await self._grow()

    # Starting, restarting and saving the learners.

    async def _start_learners(self) -> None:
        await self.generators.publish(await self.learners.start(self.groups.ledger.version))

    async def _go_back(self, why: str) -> None:
        """Return to the last checkpoint, with the groups, the rows and all counters. Generators keep working."""
        self.check_lease()
        begin = time.monotonic()
        await self.learners.lost(why)
        checkpoint, step = self.learners.checkpoint, self.learners.saved_step
        self.accounts.steps_lost += self.step - step
        self.say(Alert("learners lost", f"· {why}; going back from step {self.step} to step {step}"))
        self.groups.roll_back(step, checkpoint.state.cursor if checkpoint else START)
        self.validation.roll_back(step)
        await self.tracker.roll_back(step)
        self.accounts.roll_back(step)
        await self._unless_stopped(self._start_learners())
        self.validation.begin()
        self.say(f"· learners are back after {time.monotonic() - begin:.0f} s")
        self.accounts.step_begins()

    async def _unless_stopped(self, work: Awaitable):
        """The result of `work`. Raises `Stopped`, or the failure that ends the run, if either comes first."""
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
        """Restart the learners with more ranks if there is room. Call it right after a checkpoint."""
        if not self.learners.can_grow():
            return
        await self.learners.saved()
        if self.learners.saved_step != self.step:
            return  # the save failed, so a restart would lose steps
        self.say(f"· there is room for more than {self.learners.size} learner ranks: starting them again")
        await self.learners.make_way()
        await self._unless_stopped(self._start_learners())
        self.accounts.step_begins()

    async def _save(self) -> None:
        """Copy the state of this step; it is written while training continues."""
        await self.learners.saved()
        self.check_lease()
        ledger = self.groups.ledger
        state = RunState(
            step=ledger.step,
            version=ledger.version,
            cursor=self.groups.problems.cursor(),
            ranks=self.learners.size,
            wandb_id=self.wandb_id,
            tokens_generated=self.accounts.done.tokens_generated,
            failures=dict(self.groups.failures),
            discarded=ledger.discarded,
            recoveries=self.accounts.recoveries(),
            withdrawn=self.groups.problems.withdrawn,
            reward=self.accounts.done.reward_after(self.learners.saved_step),
        )
        with self.timeline.span("learners", "copy checkpoint", step=self.step):
            await self.learners.save(state)

    async def _save_the_last(self) -> None:
        """Save the last step unless it is already saved. Raises `RunFailed` if it cannot be saved."""
        await self.learners.saved()
        if self.learners.works and self.step != self.learners.saved_step:
            await self._save()
            await self.learners.saved()
            if self.learners.saved_step != self.step:
                raise RunFailed("see the lines above")
