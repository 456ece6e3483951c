"""The evaluator: a job actor that runs all trials on the generator pool and writes each answer when it arrives.

results.jsonl is the state: a resumed evaluation reads it and asks only what is missing.
"""

import asyncio
import contextlib
import functools
import json
import time
import traceback
from collections import Counter
from typing import cast

import ray

from actors.generation.generator_pool import GeneratorLost, GeneratorPool
from actors.job_actor import CLOSING_S, JobActor, Outcome
from actors.trials import DOCUMENTS_UNDER_WAY, Room, TrialRunner, answer_row
from actors.wandb_run import WandbRun
from pipeline.alerts import Alert
from pipeline.data.quarantine import Quarantine
from pipeline.errors import DataError, RunFailed, reason_of
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.questions import Trial, input_states, open_source, read_questions, trials
from pipeline.evaluation.results import KEY, SCORES, open_results, row_key
from pipeline.evaluation.successes import open_successes, success_lines
from pipeline.evaluation.summary import Progress, evaluation_summary, write_tables
from pipeline.lease import Lease
from pipeline.storage import LineFile, Storage

FIRST_PROGRESS_S = 0.5
PROGRESS_EVERY_S = 5.0
PROGRESS_AT_LEAST_S = 60.0  # even if no answer has arrived
TABLES_S = 600.0  # limit for computing and writing tables and figures
OPENING_S = 60.0  # limit for reading the files of a resumed evaluation
ALONE = DOCUMENTS_UNDER_WAY + 1  # a size that leaves no room for other documents
KEPT = (*KEY, *SCORES, "task", "error", "cut", "document_tokens", "memory_trace")  # columns that the tables need


@ray.remote(num_cpus=0, max_concurrency=100)
class Evaluator(JobActor):
    def __init__(self, config: EvaluationConfig, folder: str, lease: Lease):
        super().__init__(folder, lease)
        self.config = config
        self.quarantine = Quarantine.outliving(self.quarantine_file, config.data.max_bad_share)
        self.tables = Storage(self.folder, TABLES_S)  # separate: tables take long, other writes must not wait
        self.results: LineFile | None = None
        self.successes: LineFile | None = None
        self.rows: list[dict] = []  # rows of results.jsonl, with the columns `KEPT`
        self.pool: GeneratorPool | None = None
        self.runner: TrialRunner | None = None
        self.progress: Progress | None = None
        self.wandb: WandbRun | None = None
        self.wandb_place = ""
        self.engine_version = ""
        self._waiting: asyncio.Queue[Trial] = asyncio.Queue()
        self._room = Room(DOCUMENTS_UNDER_WAY)
        self._all_answered = asyncio.Event()
        self._tracking: asyncio.Future | None = None

    async def stop(self) -> None:
        """End the evaluation now. Trials in progress are repeated when it is resumed."""
        self.say("· stopping")
        await super().stop()

    async def work(self) -> str:
        await self._evaluate()
        if self._left():
            return "interrupted"
        if all(row["error"] for row in self.rows):
            raise RunFailed(f"not one question was answered; the last error: {self.rows[-1]['error']}")
        return "completed"

    async def put_away(self, outcome: Outcome) -> dict[str, int]:
        self.cancel_all()
        if self._tracking:
            await asyncio.wait([self._tracking], timeout=CLOSING_S)
        unwritten = await self.finish_files(*self._files())
        if number := unwritten.get("results.jsonl"):
            why = f"{number} answers could not be written to results.jsonl: {self.results.problem}"
            outcome.status, outcome.error = "failed", outcome.error or why
        return unwritten

    def summary(self, outcome: Outcome, seconds: float, unwritten: dict[str, int]) -> dict:
        self.rows.sort(key=lambda row: self.config.evaluate.methods.index(row["method"]))  # the tables' order
        return evaluation_summary(
            self.config,
            outcome.status,
            self.rows,
            seconds=seconds,
            failures=self.runner.failures if self.runner else Counter(),
            engine_version=self.engine_version,
            rows_quarantined=self.quarantine.bad,
            wandb_run=self.wandb_place,
            unwritten=unwritten,
            error=outcome.error,
        )

    async def leave_traceback(self, failure: Exception) -> str:
        path, text = self.folder / "error.log", "".join(traceback.format_exception(failure))
        with contextlib.suppress(OSError):
            await self.stored(path.write_text, text, "utf-8")
            return f" (traceback in {path})"
        return ""

    def abandon_folder(self) -> None:
        self.tables.close(self.lease_lost)

    def _files(self) -> list[LineFile]:
        """The files to which lines are appended."""
        return [file for file in (self.quarantine_file, self.successes, self.results) if file]

    async def _evaluate(self) -> None:
        try:
            await asyncio.to_thread(self._read)
            if self.rows:
                self.say(f"· {len(self.rows)} of {self.progress.total} answers are there already")
        except OSError as error:
            raise RunFailed(f"the evaluation cannot begin: {error}") from error
        self._tracking = asyncio.ensure_future(self._start_wandb())
        if not self._left():
            await self._tracking
            return
        answering, stopping = self.spawn(self._answer_all()), self.spawn(self._stop.wait())
        await self.unless_failed(asyncio.wait([answering, stopping], return_when=asyncio.FIRST_COMPLETED))

    def _read(self) -> None:
        """Read the questions and the answers of earlier runs."""
        self.source = open_source(self.config)
        stored = functools.partial(self.storage.call, limit_s=OPENING_S)
        stored(self.quarantine.path.unlink, True)  # reading finds the same bad rows again
        questions = read_questions(self.source, self.config, self.quarantine)
        self.results, rows = stored(open_results, self.folder / "results.jsonl", self.storage)
        if self.config.evaluate.successes:
            self.successes = stored(open_successes, self.folder / "successes.jsonl", rows, self.storage)
        c = self.config
        states = input_states(c.data, questions, c.model.path, c.agent.prompt_template)
        stored(self._check_inputs, states, bool(rows))
        unanswered = {trial.key: trial for trial in trials(questions, self.config)}
        self.progress = Progress(unanswered.values())
        for row in rows:
            trial = unanswered.pop(row_key(row), None)
            if trial is None:
                raise DataError(f"results.jsonl answers {row_key(row)}, which is not asked; choose another run.name")
            self._count(row, trial)
        for trial in unanswered.values():
            self._waiting.put_nowait(trial)
        self.progress.begins()

    def _check_inputs(self, states: dict[str, dict], begun: bool) -> None:
        """Raise `DataError` if the input files have changed since the first answers."""
        path = self.folder / "inputs.json"
        before = json.loads(path.read_text()) if begun and path.exists() else states
        if changed := [name for name in sorted({*before, *states}) if before.get(name) != states.get(name)]:
            raise DataError(f"{', '.join(changed)} changed since this evaluation began; choose another run.name")
        path.write_text(json.dumps(states, indent=1) + "\n", encoding="utf-8")

    async def _start_wandb(self) -> None:
        self.wandb = WandbRun(self.config, self.folder)
        self.wandb_place, _ = await asyncio.to_thread(self.wandb.started)
        self._say_news()

    def alert(self, alert: Alert) -> None:
        if self.wandb:
            self.wandb.alert(alert.topic, str(alert))

    def _say_news(self) -> None:
        self.say_of(*self._files())
        for line in self.wandb.news() if self.wandb else []:
            self.say(line)

    async def _answer_all(self) -> None:
        """Start the generators and run all waiting trials."""
        c = self.config
        self.say(f"· starting {c.generator.count} generator(s) (vLLM)")
        self.say_what_is_missing([(c.generator, c.generator.count)])
        self.pool = GeneratorPool(c, self.say)
        self.runner = TrialRunner(c, lambda index: asyncio.to_thread(self.source.sample, index), self.pool.answer)
        self.spawn(self.pool.run())
        await self.unless_failed(
            self.start_all(
                {
                    "generators (vLLM)": self.pool.ready(),
                    "tracker (wandb)": asyncio.shield(cast(asyncio.Future, self._tracking)),
                }
            )
        )
        self.engine_version = self.pool.engine_version
        self.began = time.monotonic()
        # As many trials as the engines decode at once: an agent that reads in order has one open response.
        for _ in range(c.generator.count * self.pool.room):
            self.spawn(self._work())
        reporting = self.spawn(self._report_progress())
        await self._all_answered.wait()
        reporting.cancel()
        await self._report()

    async def _work(self) -> None:
        """Run one trial after the other."""
        while True:
            trial = await self._waiting.get()
            async with self._room.of(ALONE if self.runner.is_suspect(trial) else trial.question.size):
                begin = time.monotonic()
                problem = await self.runner.problem(trial)
                try:
                    answer, error = await self.runner.answer(trial, problem, trial.number)
                except GeneratorLost:
                    self._waiting.put_nowait(trial)  # any generator may run it
                    continue
            row = await answer_row(self.config, trial, problem, answer, error, time.monotonic() - begin)
            if answer and answer.transcript and row["score"] == 1:
                self.successes.put(*success_lines(row, answer.transcript))
            self.results.put(json.dumps(row, ensure_ascii=False))
            self._count(row, trial)
            self.pool.work_done()

    def _count(self, row: dict, trial: Trial) -> None:
        self.rows.append({name: row.get(name) for name in KEPT})  # rows of older runs have no memory_trace
        self.progress.add(row, trial)
        if not self._left():
            self._all_answered.set()

    def _left(self) -> int:
        return self.progress.total - self.progress.answered

    async def _report_progress(self) -> None:
        answers, said = self.progress.answered, time.monotonic()
        every_s = FIRST_PROGRESS_S
        while True:
            await asyncio.sleep(every_s)
            if self.progress.answered > answers or time.monotonic() - said > PROGRESS_AT_LEAST_S:
                answers, said, every_s = self.progress.answered, time.monotonic(), PROGRESS_EVERY_S
                await self._report()

    async def _report(self) -> None:
        self._say_news()
        tokens = await self.pool.tokens_done()
        self.say(self.progress.line(tokens, time.monotonic() - self.began))

    async def close(self, summary: dict) -> None:
        if self.rows and not self.lease_lost:
            try:
                await self.tables.call_async(write_tables, self.rows, self.folder)
            except Exception as failure:  # the answers are there all the same
                self.say(f"· not all tables and figures could be made: {reason_of(failure)}")
        closing = [self.pool.close()] if self.pool else []
        closing += [self._finish_wandb(summary)] if self.wandb and not self.lease_lost else []
        await self.close_all(closing)

    async def _finish_wandb(self, summary: dict) -> None:
        figure, cells = self.folder / "accuracy.png", summary["cells"]

        def row(wandb) -> dict:
            columns = list(cells[0])
            table = wandb.Table(columns=columns, data=[[cell[c] for c in columns] for cell in cells])
            return {"results": table} | ({"accuracy": wandb.Image(str(figure))} if figure.exists() else {})

        if cells:
            self.wandb.log(row)
        await asyncio.to_thread(self.wandb.finish, summary)
        self._say_news()
