"""The accounts of a run: a row of numbers a step, what was lost and made good, and what the next step waits for."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from actors.generation.generator_pool import GeneratorPool
from actors.groups import Step
from actors.learning.supervisor import LearnerSupervisor
from actors.scoring.scorer_pool import ScorerPool
from pipeline.data.quarantine import Quarantine
from pipeline.rollout.episodes import GroupRecord
from pipeline.run.checkpoints import RunState
from pipeline.run.config import TrainingConfig
from pipeline.run.history import RunTotals
from pipeline.run.ledger import BUFFERED, RUNNING, Ledger
from pipeline.run.metrics import UpdateResult, step_row

SILENCE_S = 60  # without a step, after which is said what the run waits for


class Accounts:
    """Lives in the coordinator.

    Args:
        config: of the run.
        say: takes a progress line.
        ledger: of the run's groups.
        quarantine: of the run's data.
        generators, scorers, learners: of the run.
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
    ):
        self.config, self._say, self.ledger, self.quarantine = config, say, ledger, quarantine
        self.generators, self.scorers, self.learners = generators, scorers, learners
        self.done = RunTotals()  # of the steps that the weights stand for
        self.moves = self.redone = self.steps_lost = self.coordinator_restarts = 0
        self.pauses: list[float] = []  # of weight updates since the last step, in seconds
        self.recovered_before: Counter[str] = Counter()  # in earlier lives of this run, up to the checkpoint
        self._first = 0  # how many steps there were when this life of the run began to train
        self._productive = 0.0  # seconds of the steps since
        self._training_began = self._step_began = time.monotonic()
        self._generated_before = 0

    def training_begins(self) -> None:
        """Time counts from now on."""
        self._first, self._productive, self._training_began = len(self.done), 0.0, time.monotonic()
        self.step_begins()

    def step_begins(self) -> None:
        """The time until now is no step's."""
        self._step_began, self._generated_before = time.monotonic(), self.done.tokens_generated

    def resume(self, state: RunState) -> None:
        """The run goes on from a checkpoint."""
        self.done.tokens_generated = state.tokens_generated
        self.recovered_before.update(state.recoveries)

    def begin_after(self, rows: list[dict]) -> None:
        """This life of the run goes on from a checkpoint, up to which there are these rows (`RunTotals.needed`)."""
        for row in rows:
            self.done.add(row)

    def group_done(self, record: GroupRecord) -> None:
        """A group was generated and scored."""
        self.moves += record.moves
        self.redone += record.redone_conversations
        self.done.tokens_generated += record.response_tokens

    def roll_back(self, step: int) -> None:
        """The learners went back to the checkpoint after this step."""
        self.done.roll_back(step)
        self._first = min(self._first, len(self.done))
        self._productive = sum(self.done.values("seconds", self._first))

    @property
    def seconds(self) -> float:
        """Since the step that is under way began."""
        return time.monotonic() - self._step_began

    def recoveries(self) -> dict[str, int]:
        """What was lost, and made good."""
        recovered = {
            "group_moves": self.moves,
            "groups_lost": self.ledger.lost,
            "conversations_redone": self.redone,
            "generator_restarts": self.generators.restarts,
            "scorer_restarts": self.scorers.restarts,
            "learner_restarts": self.learners.restarts,
            "steps_lost": self.steps_lost,
            "checkpoints_failed": self.learners.saves_failed,
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
        """The row of the step that is done now. The next one begins.

        Args:
            step: its groups.
            updates: the optimizer steps.
            waited: seconds until its groups were there.
            trained: seconds until it was trained.
        """
        ledger, seconds = self.ledger, self.seconds
        records = [record for record, _ in step.groups]
        row = step_row(ledger.step, ledger.version, records, updates, step.discarded) | {
            "positions": step.positions,
            "updates_total": self.done.updates + sum(not update.skipped for update in updates),
            "seconds": seconds,
            "wait_seconds": waited,
            "train_seconds": trained - waited,
            "publish_seconds": seconds - trained,
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
            "generators_waited": self.generators.waited_share(),
            "scorers_waited": self.scorers.waited_share(),
            "learners_waited": waited / seconds,
            **self.recoveries(),
        }
        self._productive += seconds
        row["effective_time_ratio"] = self._productive / (time.monotonic() - self._training_began)
        self.done.add(row)
        self.pauses = []
        self.step_begins()
        return row

    async def watch(self) -> None:
        """Whenever there was no step for long, say where everything is; for ever."""
        c, ledger = self.config, self.ledger
        step, since = ledger.step, time.monotonic()
        while True:
            await asyncio.sleep(SILENCE_S / 4)
            if ledger.step != step:
                step, since = ledger.step, time.monotonic()
            elif time.monotonic() - since > SILENCE_S:
                self._say(
                    f"· no step for {self.seconds:.0f} s: {ledger.count(RUNNING)} groups running, "
                    f"{ledger.count(BUFFERED)} buffered of {c.train.groups_per_step} for a step; in service "
                    f"{self.generators.alive}/{c.generator.count} generators, {self.scorers.alive}/{c.scorer.count} "
                    f"scorers, {self.learners.size}/{c.learner.ranks} learner ranks"
                )
                since = time.monotonic()
