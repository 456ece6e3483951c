"""The accounts of a run: one row of metrics per step, counts of recoveries, and reports when no step gets done."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from actors.generation.generator_pool import GeneratorPool
from actors.groups import Step
from actors.learning.supervisor import LearnerSupervisor
from actors.scoring.scorer_pool import ScorerPool
from actors.validation import Validation
from pipeline.alerts import Alert
from pipeline.data.quarantine import Quarantine
from pipeline.learning.flops import FORWARD, FORWARD_AND_BACKWARD, Computed, peak_flops, speeds
from pipeline.rollout.episodes import GroupRecord
from pipeline.run.checkpoints import RunState
from pipeline.run.config import TrainingConfig
from pipeline.run.history import RunTotals
from pipeline.run.ledger import BUFFERED, RUNNING, Ledger
from pipeline.run.metrics import UpdateResult, step_row

SILENCE_S = 60  # without a step, before the state of the run is reported


class Accounts:
    """Lives in the coordinator.

    Args:
        config: the run's configuration.
        say: called with each progress line.
        ledger: the ledger of the run's groups.
        quarantine: the quarantine of the run's data.
        generators, scorers: the run's pools.
        learners: the supervisor of the run's learners.
        validation: the run's validation.
    """

    def __init__(
        self,
        config: TrainingConfig,
        say: Callable[[str], None],
        ledger: Ledger,
        quarantine: Quarantine,
        generators: GeneratorPool,
        scorers: ScorerPool,
        learners: LearnerSupervisor,
        validation: Validation,
    ):
        self.config, self._say, self.ledger, self.quarantine = config, say, ledger, quarantine
        self.generators, self.scorers, self.learners = generators, scorers, learners
        self.validation = validation
        self.done = RunTotals()  # over the steps in the weights' history
        self.moves = self.redone = self.steps_lost = self.coordinator_restarts = 0
        self.pauses: list[float] = []  # seconds of each weight update since the last step
        self.recovered_before: Counter[str] = Counter()  # before this resume or restart, up to the checkpoint
        self._first = 0  # number of steps trained when training began here
        self._productive = 0.0  # seconds of the steps since then
        self._training_began = self._step_began = time.monotonic()
        self._generated_before = 0
        self._computed = self._computed_before = Computed()  # by the engines, for groups
        self._validated_before = 0

    def training_begins(self) -> None:
        """Start the clock of training."""
        self._first, self._productive, self._training_began = len(self.done), 0.0, time.monotonic()
        self.step_begins()

    def step_begins(self) -> None:
        """Start the clock of the next step. Time before now counts for no step."""
        self._step_began, self._generated_before = time.monotonic(), self.done.tokens_generated
        for pool in (self.generators, self.scorers):
            pool.waited_share()  # the next one is of the step
        self._computed_before, self._validated_before = self._computed, self.validation.tokens_computed

    def resume(self, state: RunState) -> None:
        """Continue from a checkpoint."""
        self.done.tokens_generated = state.tokens_generated
        self.recovered_before.update(state.recoveries)

    def begin_after(self, rows: list[dict]) -> None:
        """Add the rows up to the checkpoint (with the columns of `RunTotals.needed`) to the totals."""
        for row in rows:
            self.done.add(row)

    def group_done(self, record: GroupRecord) -> None:
        """Count a group that was generated and scored."""
        self.moves += record.moves
        self.redone += record.redone_conversations
        self.done.tokens_generated += record.response_tokens
        prompts = record.prompt_tokens.total() - record.cached_tokens.total()
        # The last token of a response goes through no model.
        tokens = prompts + record.response_tokens - len(record.lengths)
        self._computed += Computed(tokens, record.engine_pairs, record.response_tokens)

    def roll_back(self, step: int) -> None:
        """Return to the totals after `step`, to whose checkpoint the learners went back."""
        self.done.roll_back(step)
        self._first = min(self._first, len(self.done))
        self._productive = sum(self.done.values("seconds", self._first))

    @property
    def seconds(self) -> float:
        """Seconds since the current step began."""
        return time.monotonic() - self._step_began

    def recoveries(self) -> dict[str, int]:
        """Counts of losses and restarts over the whole run, by name."""
        recovered = {
            "group_moves": self.moves,
            "groups_lost": self.ledger.lost,
            "conversations_redone": self.redone,
            "generator_restarts": self.generators.restarts,
            "scorer_restarts": self.scorers.restarts,
            "learner_restarts": self.learners.restarts,
            "steps_lost": self.steps_lost,
            "checkpoints_failed": self.learners.keeper.failed,
            "coordinator_restarts": self.coordinator_restarts,
        }
        return {name: number + self.recovered_before[name] for name, number in recovered.items()}

    def step_done(
        self,
        step: Step,
        updates: list[UpdateResult],
        waited: float,
        trained: float,
    ) -> dict:
        """Return the row of metrics of the step that is done, and start the next step's clock.

        Args:
            step: the step's groups.
            updates: the results of its optimizer steps.
            waited: seconds from the step's beginning until its groups were there.
            trained: seconds from the step's beginning until it was trained.
        """
        ledger, seconds = self.ledger, self.seconds
        records = [record for record, _ in step.groups]
        generators_waited = self.generators.waited_share()
        row = step_row(ledger.step, ledger.version, records, updates, step.discarded) | {
            "positions": step.positions,
            "updates_total": self.done.updates + sum(not update.skipped for update in updates),
            "seconds": seconds,
            "wait_seconds": waited,
            "train_seconds": trained - waited,
            "publish_seconds": seconds - trained,
            "weight_bytes_share": self.learners.weight_bytes_share,
            "update_pause_max": max(self.pauses, default=None),
            "tokens_generated_total": self.done.tokens_generated,
            "tokens_per_second": (self.done.tokens_generated - self._generated_before) / seconds,
            "groups_running": ledger.count(RUNNING),
            "groups_buffered": ledger.count(BUFFERED),
            "groups_unscored": self.scorers.waiting,
            "groups_failed": ledger.failed,
            "groups_dropped_stale": ledger.dropped_stale,
            "groups_discarded_total": ledger.discarded,
            "rows_quarantined": self.quarantine.bad,
            "generators": self.generators.alive,
            "scorers": self.scorers.alive,
            "learner_ranks": self.learners.size,
            "generators_waited": generators_waited,
            "scorers_waited": self.scorers.waited_share(),
            "learners_waited": waited / seconds,
            "validation_share": self._validation_share(),
            **self._speeds(updates, trained - waited, seconds, generators_waited),
            **self.recoveries(),
        }
        self._productive += seconds
        row["effective_time_ratio"] = self._productive / (time.monotonic() - self._training_began)
        self.done.add(row)
        self.pauses = []
        self.step_begins()
        return row

    def _validation_share(self) -> float:
        """Of all tokens that engines computed since the step began, the share of validation answers."""
        validation = self.validation.tokens_computed - self._validated_before
        groups = (self._computed - self._computed_before).tokens
        return validation / max(1, validation + groups)

    def _speeds(self, updates: list[UpdateResult], train_s: float, seconds: float, waited: float) -> dict:
        """How fast the devices computed while they were at work.

        Args:
            updates: the results of the step's optimizer steps.
            train_s: seconds in which the learner ranks trained.
            seconds: the step's duration.
            waited: the idle share of the generators' time.
        """
        parts = (Computed(u.work.computed, u.work.pairs, u.work.predicted) for u in updates)
        trained = sum(parts, Computed())
        generated, g = self._computed - self._computed_before, self.config.generator
        generators_s = g.count * g.tensor_parallel * (1 - waited) * seconds
        model, peak = self.learners.model, peak_flops(self.learners.device, self.config.model.dtype)
        return {
            **speeds("learner", trained, self.learners.size * train_s, model, peak, FORWARD_AND_BACKWARD),
            **speeds("generator", generated, generators_s, model, peak, FORWARD),
        }

    async def watch(self) -> None:
        """Report where groups and actors stand whenever no step was done for `SILENCE_S`. Runs forever."""
        c, ledger = self.config, self.ledger
        step, since = ledger.step, time.monotonic()
        while True:
            await asyncio.sleep(SILENCE_S / 4)
            if ledger.step != step or step == c.train.steps:  # after the last step there is no next one
                step, since = ledger.step, time.monotonic()
            elif time.monotonic() - since > SILENCE_S:
                line = (
                    f"· no step for {self.seconds:.0f} s: {ledger.count(RUNNING)} groups running, "
                    f"{ledger.count(BUFFERED)} buffered of {c.train.groups_per_step} for a step; in service "
                    f"{self.generators.alive}/{c.generator.count} generators, {self.scorers.alive}/{c.scorer.count} "
                    f"scorers, {self.learners.size}/{c.learner.ranks} learner ranks"
                )
                self._say(Alert("no step", line))
                since = time.monotonic()
