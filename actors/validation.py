"""The validation of a training run: held-out questions, answered by the run's own generators while it trains.

No engine is started for it, no weights are copied, and no step waits for it. While groups are generated, its questions
take at most validation.max_share of the sequences that the engines decode at once. Several weight versions may answer
one question, since generators switch to new weights while they read; each answer names the oldest and the newest.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from actors.generation.generator_pool import GeneratorLost, GeneratorPool
from actors.trials import TrialRunner, answer_row
from pipeline.data.quarantine import Quarantine
from pipeline.errors import DataError, reason_of
from pipeline.evaluation.questions import Trial, open_source, read_questions, trials
from pipeline.run.config import TrainingConfig
from pipeline.run.validation import score_at, tokens_computed, validation_config, validation_row
from pipeline.storage import LineFile

LOOKING_S = 1.0  # at least this often, the number of questions under way is adjusted to the generators in service
PROGRESS_S = 30.0  # between lines about a validation for which the run waits

Report = Callable[[dict, list[dict]], Awaitable[None]]


class Validation:
    """Lives in the coordinator.

    Args:
        config: the run's configuration.
        say: called with each progress line.
        quarantine_file: for the rows of validation.data that are turned away.
        pool: the run's generators.
        number: the number of the group admitted last. A question that is asked now has the priority of this group.
        report: stores a row of validation.jsonl, and the answers behind it (rows of results.jsonl).

    Attributes:
        rows: the rows of validation.jsonl, except those of abandoned steps.
        tokens_computed: what the engines have computed for answers, in tokens.
    """

    def __init__(
        self,
        config: TrainingConfig,
        say: Callable[[str], None],
        quarantine_file: LineFile,
        pool: GeneratorPool,
        number: Callable[[], int],
        report: Report,
    ):
        self.every, self._share = config.train.evaluate_every, config.validation.max_share
        self._config, self._say, self._pool = validation_config(config), say, pool
        self._quarantine = Quarantine.outliving(quarantine_file, config.validation.data.max_bad_share)
        self._number, self._report = number, report
        self.rows: list[dict] = []
        self.tokens_computed = 0
        self._runner: TrialRunner | None = None
        self._questions: list[Trial] = []
        self._running: asyncio.Task | None = None
        self._step = 0  # at which the running validation began
        self._answered = 0  # answers of the running validation

    async def open(self) -> None:
        """Read the questions. Raises `DataError` if they cannot be used."""
        if not self.every:
            return
        try:
            source = await asyncio.to_thread(open_source, self._config)
            found = await asyncio.to_thread(read_questions, source, self._config, self._quarantine)
        except (OSError, DataError) as error:
            raise DataError(f"validation.data: {reason_of(error)}") from error
        if self._quarantine.bad:
            where = self._quarantine.path.name
            self._say(f"· validation.data: {self._quarantine.bad} bad rows; their reasons are in {where}")
        self._questions, self._runner = list(trials(found, self._config)), TrialRunner(self._config, source, self._pool)

    def begin(self, step: int) -> None:
        """Begin a validation if one is due after `step` steps."""
        if not self.every or step % self.every or self._is_done(step):
            return
        if self._running:
            self._say(
                f"· no validation after step {step}, since the one after step {self._step} is not complete; with a "
                "larger train.evaluate_every or validation.max_share there is time for both"
            )
            return
        self._begin(step)

    async def finish(self, step: int) -> None:
        """Complete the running validation, then that of the last step. Both may use the engines' whole room."""
        if not self.every:
            return
        self._share = 1.0
        await self._complete()
        if not self._is_done(step):
            self._begin(step)
            await self._complete()

    def roll_back(self, step: int) -> None:
        """End the running validation, and forget those of later steps: the learners went back to `step`."""
        self.cancel()
        self.rows = [row for row in self.rows if row["step"] <= step]

    def cancel(self) -> None:
        """End the running validation without a result."""
        if self._running:
            self._running.cancel()
            self._running = None

    def score_at(self, step: int) -> float | None:
        """The score of the last validation that began at `step` or before; None if there is none."""
        return score_at(self.rows, step)

    def _is_done(self, step: int) -> bool:
        return any(row["step"] == step for row in self.rows)

    def _begin(self, step: int) -> None:
        self._step, self._answered = step, 0
        self._running = asyncio.create_task(self._validate(step))

    async def _complete(self) -> None:
        """Wait for the running validation, if any, with a progress line now and then."""
        while self._running and not (await asyncio.wait([self._running], timeout=PROGRESS_S))[0]:
            self._say(f"· validation after step {self._step}: {self._answered} of {len(self._questions)} answers")

    async def _validate(self, step: int) -> None:
        """Ask all questions and report the row. A failure costs this validation, not the run."""
        begin, number = time.monotonic(), self._number()
        waiting, answering, rows = deque(self._questions), set[asyncio.Task](), []
        try:
            while waiting or answering:
                while waiting and len(answering) < self._room():
                    answering.add(asyncio.create_task(self._answer(waiting.popleft(), number)))
                done, answering = await asyncio.wait(answering, timeout=LOOKING_S, return_when=asyncio.FIRST_COMPLETED)
                rows += [task.result() for task in done]
                self._answered = len(rows)
            row = validation_row(step, rows, time.monotonic() - begin)
            self.rows.append(row)
            await self._report(row, rows)
        except Exception as error:
            self._say(f"· the validation after step {step} failed, and the run continues: {reason_of(error)}")
        finally:
            for task in answering:
                task.cancel()
            if self._running is asyncio.current_task():
                self._running = None

    def _room(self) -> int:
        """How many questions may be under way."""
        sequences = len(self._pool.versions) * self._config.generator.max_sequences
        return max(1, int(self._share * sequences))

    async def _answer(self, trial: Trial, number: int) -> dict:
        """Ask a question until a generator answers it; return its row of results.jsonl."""
        begin, runner = time.monotonic(), self._runner
        problem = await runner.problem(trial)
        while True:
            try:
                answer, error = await runner.answer(trial, problem, number)
                break
            except GeneratorLost:
                continue  # any generator may answer
        row = await answer_row(self._config, trial, problem, answer, error, time.monotonic() - begin)
        self.tokens_computed += tokens_computed(row)
        return row
