"""The evaluator: every question by every method through the generator pool, each answer written down as it comes.

results.jsonl is the state: an evaluation that was stopped is taken up by reading it and asking what is missing.
"""

import asyncio
import json
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import ray

from actors.generator_pool import GeneratorLost, GeneratorPool
from actors.job_actor import JobActor, RunFailed, reason_of
from actors.tracker import start_wandb, wandb_place
from pipeline.episodes import Sampling
from pipeline.evaluation.answer_scores import METRICS, answer_scores
from pipeline.evaluation.answers import Answer
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.questions import Task, read_questions, tasks
from pipeline.evaluation.results import open_results, row_key
from pipeline.evaluation.summary import evaluation_summary, progress_line, write_tables
from pipeline.problems import BadRow, DataError, Problem, Quarantine
from pipeline.report import write_summary
from pipeline.sample_files import SampleFiles
from pipeline.scoring import SCORERS, reward

PROGRESS_EVERY_S = 5.0
SCORER_LIMIT_S = 60.0


@ray.remote(num_cpus=0, max_concurrency=100)
class Evaluator(JobActor):
    def __init__(self, config: EvaluationConfig, folder: str):
        super().__init__()
        self.config, self.folder = config, Path(folder)
        self.quarantine = Quarantine(self.folder / "quarantine.jsonl", config.data.max_bad_share)
        self.rows: list[dict] = []  # of results.jsonl, without what is only there to be read
        self.failures: Counter[str] = Counter()
        self.pool = self.wandb = None
        self.engine_version = ""

    async def stop(self) -> None:
        """End the evaluation now; what is under way is asked again when it is taken up."""
        self.say("· stopping")
        self._stop.set()

    async def run(self) -> dict:
        """Run to the end, to `stop`, or to a failure; return the summary, which is also in summary.json."""
        begin, status, error = time.time(), "failed", None
        try:
            await self._evaluate()
            if self.rows and all(row["error"] for row in self.rows):
                raise RunFailed(f"not one question was answered; the last error: {self.rows[-1]['error']}")
            status = "interrupted" if self._left() else "completed"
        except Exception as failure:
            error = reason_of(failure)
            if not isinstance(failure, (RunFailed, DataError)):
                (self.folder / "error.log").write_text(traceback.format_exc(), encoding="utf-8")
                error += f" (traceback in {self.folder / 'error.log'})"
        self.cancel_all()
        self.rows.sort(key=lambda row: self.config.evaluate.methods.index(row["method"]))  # the order of the tables
        summary = evaluation_summary(
            self.config,
            status,
            self.rows,
            seconds=time.time() - begin,
            failures=self.failures,
            engine_version=self.engine_version,
            rows_quarantined=self.quarantine.bad,
            wandb_run=wandb_place(self.wandb) if self.wandb else "",
            error=error,
        )
        if self.rows:
            await asyncio.to_thread(write_tables, self.rows, self.folder)
        write_summary(self.folder, summary)
        await self._close(summary)
        return summary

    async def _evaluate(self) -> None:
        c = self.config
        await asyncio.to_thread(self._read)
        self.wandb = await asyncio.to_thread(start_wandb, c, self.folder)
        if not self._left():
            return
        self.say(f"· starting {c.generator.count} generator(s) (vLLM)")
        self.say_what_is_missing([(c.generator, c.generator.count)])
        self.pool = GeneratorPool(c, self.say)
        await self.unless_failed(self._start_pool())
        for name in self.pool.names:
            self.spawn(self.pool.watch(name))
        waiting = tasks(self.questions, c, {row_key(row) for row in self.rows})
        # As many questions at a time as an engine decodes together: an agent that reads in order has one response open.
        workers = [
            self.spawn(self._work(name, waiting)) for name in self.pool.names for _ in range(c.generator.max_sequences)
        ]
        reporting = self.spawn(self._report_progress())
        stopping = self.spawn(self._stop.wait())
        working = asyncio.gather(*workers)
        await self.unless_failed(asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED))
        reporting.cancel()
        self._report()

    def _read(self) -> None:
        """Read the questions, and the results that are there already."""
        self.source = SampleFiles.open(self.config.data.path)
        self.quarantine.path.unlink(missing_ok=True)  # an evaluation that is taken up finds the same rows again
        self.questions = read_questions(self.source, self.config, self.quarantine)
        everything = list(tasks(self.questions, self.config, set()))
        self.total, self.work = len(everything), sum(task.work for task in everything)
        self.results, rows = open_results(self.folder / "results.jsonl")
        asked = {task.key: task.work for task in everything}
        if strange := [row for row in rows if row_key(row) not in asked]:
            raise DataError(
                f"results.jsonl answers {len(strange)} questions that the data does not hold, the first one "
                f"{row_key(strange[0])}; choose another run.name"
            )
        self.rows = [_counted(row) for row in rows]
        self.work_done = sum(asked[row_key(row)] for row in self.rows)
        self.work_before, self.tokens = self.work_done, 0
        if self.rows:
            self.say(f"· {len(self.rows)} of {self.total} answers are there already")

    async def _start_pool(self) -> None:
        begin = time.time()
        self.engine_version = await self.pool.start()
        self.say(f"· generators ready after {time.time() - begin:.0f} s")
        self.began = time.time()

    async def _work(self, name: str, waiting: Iterator[Task]) -> None:
        """Answer one question after the other on one generator."""
        for task in waiting:
            begin = time.time()
            problem = await asyncio.to_thread(self.source.sample, task.question.index)
            answer, error = await self._answer(name, task, problem)
            row = await self._row(task, problem, answer, error, time.time() - begin)
            self.results.write(json.dumps(row, ensure_ascii=False) + "\n")
            self.results.flush()
            self.rows.append(_counted(row))
            self.work_done += task.work
            self.tokens += row["prompt_tokens"] + row["response_tokens"]
            self.pool.work_done()

    async def _answer(self, name: str, task: Task, problem: Problem) -> tuple[Answer | None, str | None]:
        """The answer, or after some attempts the reason why there is none."""
        e = self.config.evaluate
        sampling = Sampling(e.temperature, e.top_p, task.seed(self.config.run.seed))
        attempt = 0
        while True:
            try:
                await self.pool.alive(name)
                return await self.pool.answer(name, problem, task.method, sampling, e.memories), None
            except GeneratorLost:
                self.failures["GeneratorLost"] += 1
            except BadRow as error:
                return None, reason_of(error)
            except Exception as error:
                attempt += 1
                self.failures[type(error).__name__] += 1
                if attempt == e.max_attempts:
                    return None, reason_of(error)

    async def _row(
        self, task: Task, problem: Problem, answer: Answer | None, error: str | None, seconds: float
    ) -> dict:
        """The row of results.jsonl. Without an answer, or with one that was cut, all scores are 0."""
        scores = dict.fromkeys(("score", *METRICS), 0.0)
        if answer and not answer.cut:
            scores |= answer_scores(answer.text, problem.answers)
            scores["score"], error = await self._score(problem, answer.text)
        return {
            **dict(zip(("set", "length", "id", "method", "sample"), task.key, strict=True)),
            "task": problem.task,
            "question": problem.question,
            "answers": list(problem.answers),
            "answer": answer.text if answer else None,
            **scores,
            "cut": bool(answer and answer.cut),
            "cut_memories": answer.cut_memories if answer else 0,
            "error": error,
            "document_tokens": answer.document_tokens if answer else None,
            "conversations": answer.conversations if answer else 0,
            "prompt_tokens": answer.prompt_tokens if answer else 0,
            "response_tokens": answer.response_tokens if answer else 0,
            "seconds": round(seconds, 3),
            "memories": list(answer.memories) if answer else [],
        }

    async def _score(self, problem: Problem, answer: str) -> tuple[float, str | None]:
        """The score of the problem's task, or 0 and why there is none."""
        if problem.task in SCORERS:
            return reward(problem.task, answer, problem.answers), None
        try:
            scoring = asyncio.to_thread(reward, problem.task, answer, problem.answers)
            return await asyncio.wait_for(scoring, SCORER_LIMIT_S), None
        except Exception as error:
            return 0.0, f"the scorer of task {problem.task!r}: {type(error).__name__}: {error}"

    def _left(self) -> int:
        return self.total - len(self.rows)

    async def _report_progress(self) -> None:
        reported = len(self.rows)
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            if len(self.rows) > reported:
                reported = len(self.rows)
                self._report()

    def _report(self) -> None:
        seconds, done = time.time() - self.began, self.work_done - self.work_before
        left = seconds * (self.work - self.work_done) / done if done else None
        self.say(progress_line(self.rows, self.total, self.tokens / seconds, left))

    async def _close(self, summary: dict) -> None:
        closing = [self.pool.close()] if self.pool else []
        closing += [asyncio.to_thread(self._finish_wandb, summary)] if self.wandb else []
        for work in closing:
            try:
                await asyncio.wait_for(work, 60)
            except Exception as error:  # the results stand; what is left behind ends with the job
                self.say(f"· while closing: {error!r}")

    def _finish_wandb(self, summary: dict) -> None:
        import wandb

        if (self.folder / "accuracy.png").exists():
            cells = summary["cells"]
            columns = list(cells[0])
            self.wandb.log(
                {
                    "accuracy": wandb.Image(str(self.folder / "accuracy.png")),
                    "results": wandb.Table(columns=columns, data=[[cell[c] for c in columns] for cell in cells]),
                }
            )
        self.wandb.summary.update(summary)
        self.wandb.finish(exit_code=0 if summary["status"] == "completed" else 1)


def _counted(row: dict) -> dict:
    """A row without the memories: all answers of an evaluation are held, to sum them up."""
    return {name: value for name, value in row.items() if name != "memories"}
