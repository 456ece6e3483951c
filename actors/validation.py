"""The validation of a training run: held-out questions, answered by the run's own generators while it trains.

No engine is started for it, no weights are copied, and no step waits for it. While groups are generated, its questions
under way are at most validation.max_share of the sequences that the engines decode at once. Several weight versions may
answer one question, since generators switch to new weights while they read; each answer names the oldest and the
newest.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

from actors.generation.generator_pool import GeneratorLost, GeneratorPool
from actors.trials import DOCUMENTS_UNDER_WAY, Room, TrialRunner, answer_row
from pipeline.data.quarantine import Quarantine
from pipeline.data.samples import SampleSource
from pipeline.errors import DataError, reason_of
from pipeline.evaluation.questions import Trial, open_source, read_questions, trials
from pipeline.problems import Problem
from pipeline.run.checkpoints import Scores
from pipeline.run.config import TrainingConfig
from pipeline.run.ledger import SUSPECT_DEATHS, Ledger
from pipeline.run.validation import digest_of, tokens_computed, validation_config, validation_row
from pipeline.storage import LineFile, Storage

LOOKING_S = 1.0  # at least this often, the number of questions under way is adjusted to the generators in service
PROGRESS_S = 30.0  # between lines about a validation for which the run waits
READING_S = 120.0  # limit for reading one document


class Validation:
    """Lives in the coordinator.

    Args:
        config: the run's configuration.
        say: called with each progress line.
        quarantine_file: for the rows of validation.data that are turned away.
        pool: the run's generators.
        ledger: the run's ledger, for the version of the weights and the generators reserved for suspects.
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
        ledger: Ledger,
        report: Callable[[dict, list[dict]], Awaitable[None]],
    ):
        self.every, self._share = config.train.evaluate_every, config.validation.max_share
        self._config, self._say, self._pool, self._ledger = validation_config(config), say, pool, ledger
        self._quarantine = Quarantine.outliving(quarantine_file, config.validation.data.max_bad_share)
        self._report = report
        self.rows: list[dict] = []
        self.tokens_computed = 0
        # Documents are read one after the other, in a thread of their own: storage that hangs must not block training.
        self._storage, self._reading = Storage(self._config.data.path, READING_S), asyncio.Lock()
        self._room = Room(DOCUMENTS_UNDER_WAY)
        self._source: SampleSource | None = None
        self._questions: list[Trial] = []
        self._digest = ""  # of the questions and how they are asked
        self._runner = self._new_runner()
        self._running: asyncio.Task | None = None
        self._step = self._version = 0  # steps trained and version of the weights when the running validation began
        self._answered = 0  # answers of the running validation

    async def open(self) -> None:
        """Read the questions. Raises `DataError` if they cannot be used."""
        if not self.every:
            return
        try:
            self._source = await asyncio.to_thread(open_source, self._config)
            found = await asyncio.to_thread(read_questions, self._source, self._config, self._quarantine)
        except (OSError, DataError) as error:
            raise DataError(f"validation.data: {reason_of(error)}") from error
        if self._quarantine.bad:
            where = self._quarantine.path.name
            self._say(f"· validation.data: {self._quarantine.bad} bad rows; their reasons are in {where}")
        self._questions = list(trials(found, self._config))
        self._digest = digest_of(self._questions, self._config)

    def begin(self) -> None:
        """Begin a validation if one is due after the steps trained so far."""
        step = self._ledger.step
        if not self.every or step % self.every or step in self.scores().by_step:
            return
        if self._running:
            self._say(
                f"· no validation after step {step}, since the one after step {self._step} is not complete; with a "
                "larger train.evaluate_every or validation.max_share there is time for both"
            )
            return
        self._begin()

    async def finish(self) -> None:
        """Complete the running validation, then that of the last step. Both may use the engines' whole room."""
        if not self.every:
            return
        self._share = 1.0
        await self._complete()
        if self._ledger.step not in self.scores().by_step:
            self._begin()
            await self._complete()

    def roll_back(self, step: int) -> None:
        """End the running validation, and forget those of later steps: the learners go back to `step`."""
        self.cancel()
        self.rows = [row for row in self.rows if row["step"] <= step]

    def cancel(self) -> None:
        """End the running validation without a result."""
        if self._running:
            self._say(f"· the validation after step {self._step} ends without a result")
            self._running.cancel()
            self._running = None

    def scores(self) -> Scores:
        """The scores by which checkpoints are compared: of the present questions only."""
        known = {row["step"]: row["score"] for row in self.comparable_rows()}
        return Scores(known, frozenset({self._step} if self._running else ()))

    def comparable_rows(self) -> list[dict]:
        """The rows of the present questions, asked as now."""
        return [row for row in self.rows if row["questions"] == self._digest]

    def _begin(self) -> None:
        self._step, self._version, self._answered = self._ledger.step, self._ledger.version, 0
        self._runner = self._new_runner()  # which blames no question for deaths during an earlier validation
        self._running = asyncio.create_task(self._validate(self._step, self._version))

    async def _complete(self) -> None:
        """Wait for the running validation, if any, with a progress line now and then.

        It is given up if no generator may answer for generator.stall_s: if the learners died, nobody publishes the
        weights to validate.
        """
        since = time.monotonic()
        while self._running and not (await asyncio.wait([self._running], timeout=PROGRESS_S))[0]:
            self._say(f"· validation after step {self._step}: {self._answered} of {len(self._questions)} answers")
            if any(self._usable(name, version) for name, version in self._pool.versions.items()):
                since = time.monotonic()
            elif time.monotonic() - since > self._config.generator.stall_s:
                self._say(f"· no generator has the weights of version {self._version}")
                self.cancel()

    async def _validate(self, step: int, version: int) -> None:
        """Ask all questions and report the row. A failure costs this validation, not the run."""
        begin, number = time.monotonic(), self._ledger.numbered
        waiting, answering, rows = deque(self._questions), set[asyncio.Task](), []
        try:
            while waiting or answering:
                while waiting and len(answering) < self._most_under_way():
                    answering.add(asyncio.create_task(self._answer(waiting.popleft(), number)))
                done, answering = await asyncio.wait(answering, timeout=LOOKING_S, return_when=asyncio.FIRST_COMPLETED)
                rows += [task.result() for task in done]
                self._answered = len(rows)
            # In a thread: its intervals may be bootstraps.
            row = await asyncio.to_thread(validation_row, step, version, self._digest, rows, time.monotonic() - begin)
            await self._report(row, rows)
            self.rows = [*(other for other in self.rows if other["step"] != step), row]
        except Exception as error:
            self._say(f"· the validation after step {step} failed, and the run continues: {reason_of(error)}")
        finally:
            for task in answering:
                task.cancel()
            if self._running is asyncio.current_task():
                self._running = None

    def _most_under_way(self) -> int:
        """How many questions may be under way."""
        return max(1, int(self._share * self._pool.sequences))

    def _usable(self, name: str, version: int) -> bool:
        """Whether a generator may answer: it has the weights to validate or newer ones, and no suspect runs there."""
        return version >= self._version and name not in self._ledger.reserved()

    def _new_runner(self) -> TrialRunner:
        return TrialRunner(self._config, self._read, partial(self._pool.answer, usable=self._usable))

    async def _read(self, index: int) -> Problem:
        async with self._reading:
            return await self._storage.call_async(self._source.sample, index)

    async def _answer(self, trial: Trial, number: int) -> dict:
        """Ask a question until a generator answers it; return its row of results.jsonl.

        A suspect is not asked again: beside groups it cannot run alone, and it must not cost them their generators.
        """
        begin, answer, error, runner = time.monotonic(), None, None, self._runner
        async with self._room.of(trial.question.size):
            problem = await runner.problem(trial)
            while not answer and not error:
                if runner.is_suspect(trial):
                    error = f"{SUSPECT_DEATHS} generators died under it, so it is not asked again"
                    break
                try:
                    answer, error = await runner.answer(trial, problem, number)
                except GeneratorLost:
                    continue  # any generator may answer
        self._pool.work_done()  # else generators that several questions killed are given up
        row = await answer_row(self._config, trial, problem, answer, error, time.monotonic() - begin)
        self.tokens_computed += tokens_computed(row)
        return row
