"""The tracker: writes metrics.jsonl, sampled episodes and a figure into the run's folder, and shows them in wandb, and
to Prometheus by Ray's metrics. And a job's way to its tracker, which never waits for ever."""

import asyncio
import bisect
import concurrent.futures
import contextlib
import json
import sys
import threading
from array import array
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from copy import deepcopy
from itertools import islice, takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import ray
from ray.exceptions import RayError
from ray.util.metrics import Gauge

from actors.job_actor import was_started_again
from actors.wandb_run import WandbRun
from pipeline.errors import reason_of
from pipeline.files import write_text
from pipeline.rollout.episodes import EpisodeGroup, GroupRecord
from pipeline.run.config import TrainingConfig
from pipeline.run.metrics import Curves, RunTotals
from pipeline.storage import MOST_KEPT, Storage, append
from pipeline.text import load_tokenizer

ANSWER_S = 60.0  # a tracker that takes longer is not waited for
READING_S = 120.0  # for the rows of a run that is resumed
FIGURE_S = 15.0  # that the end of a run waits for its last figure
ROWS_AT_ONCE = 1000  # that are written together
METRICS, ABANDONED, EPISODES, FIGURE = "metrics.jsonl", "abandoned.jsonl", "episodes", "training.png"


class Row(NamedTuple):
    """A line of metrics.jsonl, with its end."""

    step: int
    line: str


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Tracker:
    """Keeps the rows of a run. When its process dies, Ray starts it again and it goes on with them.

    A full disk, storage that hangs and whatever wandb does never make a method raise or take long. What is to be said
    about it is in the lines that methods return. Rows that cannot be written are written later, in their order, unless
    more than `MOST_KEPT` characters wait, or this process dies meanwhile; then they are counted as missing.

    Args:
        config: of the run.
        folder: of the run.
        step: the last one that counts; rows of later ones are set aside.
        wandb_id: of the run so far; empty: it is a new one.
    """

    def __init__(self, config: TrainingConfig, folder: str, step: int = 0, wandb_id: str = ""):
        self.folder = Path(folder)
        self.model = config.model
        self._metrics = self.folder / METRICS
        self._storage, self._drawing = Storage(self.folder), Storage(self.folder)
        self._lock = threading.Lock()  # of the four below
        # What is to be done to metrics.jsonl, in this order: a row to be added, or a step to go back to.
        self._waiting: deque[Row | int] = deque([sys.maxsize if was_started_again() else step])
        self._size = 0  # characters of the rows that wait
        self._step = step  # up to which there is to be a row of every step
        self._curves = Curves()  # of the rows of metrics.jsonl
        self._steps: array | None = None  # of the rows of metrics.jsonl; None: not read yet, as going back begins with
        self._set_aside = False  # the rows that the first one waiting goes back over are in abandoned.jsonl
        self._lost: Counter[str] = Counter()  # files that could not be written, by kind
        self._failing: set[str] = set()  # what was said not to work
        self._figure: Future | None = None  # that is drawn, or was
        self._gauges: dict[str, Gauge] = {}
        self._run_name = config.run.name
        self._wandb = WandbRun(config, self.folder, wandb_id)
        self._storage.begin(self._catch_up)  # if it fails, again with the first row

    def begun(self) -> tuple[list[dict], str, str, list[str]]:
        """What `RunTotals` needs of the rows so far; the address of the wandb run, or the folder of an offline one,
        empty when disabled; its id; and lines to say.

        Raises:
            OSError: the rows cannot be read.
        """
        place, wandb_id = self._wandb.started()
        news = self._written(READING_S)
        return self._storage.call(self._counted, limit_s=READING_S), place, wandb_id, news

    def log(self, row: dict) -> list[str]:
        """Append a row to metrics.jsonl, and show it in wandb and to Prometheus; return lines to say."""
        added = Row(row["step"], json.dumps(row) + "\n")
        with self._lock:
            self._step = added.step
            if self._size + len(added.line) <= MOST_KEPT:  # else it is lost, and `flush` counts it
                self._waiting.append(added)
                self._size += len(added.line)
        news = self._written()
        shown = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        ages = row.get("staleness_tokens")
        self._wandb.log(lambda wandb: shown | ({"staleness_tokens": _histogram(wandb, ages)} if ages else {}))
        for name, value in shown.items():
            self._gauge(name).set(value, {"run": self._run_name})
        return news + self._drawn() + self._wandb.news()

    def roll_back(self, step: int) -> list[str]:
        """Move the rows of later steps to abandoned.jsonl: metrics.jsonl is the history that the weights stand for.

        Returns:
            Lines to say.
        """
        with self._lock:
            self._waiting.append(step)
            self._step = step
        return self._written()

    def _written(self, limit_s: float | None = None) -> list[str]:
        """Bring the files up to date; return lines to say."""
        return self._try(METRICS, self._catch_up, limit_s)

    def _try(self, what: str, write: Callable[[], None], limit_s: float | None = None) -> list[str]:
        """Let the storage's thread write something. Returns a line when that fails, and when it works again."""
        try:
            self._storage.call(write, limit_s=limit_s)
        except OSError as error:
            return self._fails(what, error)
        return self._works(what)

    def _fails(self, what: str, error: Exception) -> list[str]:
        was_said = what in self._failing
        self._failing.add(what)
        return [] if was_said else [f"· {what} could not be written: {error}"]

    def _works(self, what: str) -> list[str]:
        if what not in self._failing:
            return []
        self._failing.discard(what)
        return [f"· {what} is written again"]

    # In the storage's thread.

    def _catch_up(self) -> None:
        """Do what waits, in its order; what fails stays the first. Raises `OSError`."""
        while self._waiting:
            with self._lock:
                first = self._waiting[0]
                rows = list(islice(takewhile(lambda waiting: isinstance(waiting, Row), self._waiting), ROWS_AT_ONCE))
            if rows:
                self._append(rows)
            else:
                self._go_back(first)
            with self._lock:
                for _ in rows or [first]:
                    self._waiting.popleft()
                self._size -= sum(len(row.line) for row in rows)

    def _append(self, rows: list[Row]) -> None:
        """Add rows to metrics.jsonl, but for those that are there: this actor died when it had written them."""
        last, new = self._steps[-1] if self._steps else 0, []
        for row in rows:
            if row.step <= last:
                if row in (*new, *self._rows()):
                    continue
                self._go_back(row.step - 1)  # this actor died before it had done so
            new.append(row)
            last = row.step
        if new:
            append("".join(row.line for row in new), self._metrics)
        with self._lock:
            for row in new:
                self._steps.append(row.step)
                self._curves.add(json.loads(row.line))

    def _go_back(self, step: int) -> None:
        """Move the rows of later steps to abandoned.jsonl, and drop a last line that was cut off with its writer."""
        lines = self._lines()
        rows = self._rows(lines)
        kept, gone = ([row for row in rows if (row.step <= step) == keep] for keep in (True, False))
        if gone and not self._set_aside:
            append("".join(row.line for row in gone), self.folder / ABANDONED)
            self._set_aside = True
        if len(kept) < len(lines):
            write_text(self._metrics, "".join(row.line for row in kept))
        self._set_aside = False
        self._know(kept)

    def _know(self, rows: list[Row]) -> None:
        """These are the rows of metrics.jsonl."""
        steps, curves = array("q", (row.step for row in rows)), Curves(json.loads(row.line) for row in rows)
        with self._lock:
            self._steps, self._curves = steps, curves

    def _counted(self) -> list[dict]:
        """What `RunTotals` needs of the rows that count."""
        with self._lock:
            last = min((waiting for waiting in self._waiting if isinstance(waiting, int)), default=sys.maxsize)
        return [RunTotals.needed(json.loads(row.line)) for row in self._rows() if row.step <= last]

    def _lines(self) -> list[str]:
        return self._metrics.read_text(encoding="utf-8").splitlines() if self._metrics.exists() else []

    def _rows(self, lines: list[str] | None = None) -> list[Row]:
        """The rows of metrics.jsonl. A last line that was cut off with its writer is not one.

        Args:
            lines: of the file; None: they are read.
        """
        rows = []
        for line in self._lines() if lines is None else lines:
            with contextlib.suppress(ValueError):
                rows.append(Row(json.loads(line)["step"], line + "\n"))
        return rows

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(f"palimpsest_{name}", f"{name} of the last step", ("run",))
        return self._gauges[name]

    def episodes(self, step: int, samples: list[tuple[str, GroupRecord, list[ray.ObjectRef]]]) -> list[str]:
        """Write one episode of each sample (question, record, reference to the group) to read, and to wandb.

        Returns:
            Lines to say.
        """
        tokenizer, shown = load_tokenizer(self.model.path, self.model.trust_remote_code), []
        for question, record, (ref,) in samples:
            try:
                group = ray.get(ref)
            except ray.exceptions.RayError:
                continue  # lost with its node; there will be others to read
            shown.append(readable_episode(tokenizer, question, record, group))
        lines = "".join(json.dumps(episode, ensure_ascii=False) + "\n" for episode in shown)
        news = self._try(EPISODES, lambda: write_text(self.folder / EPISODES / f"step-{step:06d}.jsonl", lines))
        self._lost[EPISODES] += EPISODES in self._failing
        columns = ["problem", "conversations", "answer", "reward"]
        data = [[_cell(e[c]) for c in columns] for e in shown]
        self._wandb.log(lambda wandb: {"episodes": wandb.Table(columns=columns, data=data), "step": step})
        return news + self._wandb.news()

    def draw(self) -> None:
        """Begin to draw all steps so far into training.png. `log` and `finish` return lines about it."""
        if self._figure is None or self._figure.done():
            self._begin_figure()

    def _begin_figure(self) -> None:
        with self._lock:
            curves = deepcopy(self._curves)
        if curves.last_step:
            self._figure = self._drawing.begin(_draw, curves, self.folder / FIGURE)

    def _drawn(self) -> list[str]:
        """Lines to say about the last figure, if it is done."""
        if self._figure is None or not self._figure.done():
            return []
        error = self._figure.exception()
        return self._fails(FIGURE, error) if error else self._works(FIGURE)

    def flush(self) -> tuple[dict[str, int], list[str]]:
        """Try once more to write what is not written.

        Returns:
            How many rows, or files of episodes, are not there, by file; lines to say.
        """
        news = self._written()
        return {**self._missing(), **self._lost}, news

    def _missing(self) -> dict[str, int]:
        """Rows that are not where they belong, by file."""
        with self._lock:
            left, aside = [], 0  # of the rows that wait: steps that are gone back over belong to abandoned.jsonl
            last = sys.maxsize
            for waiting in self._waiting:
                if isinstance(waiting, Row):
                    left.append(waiting.step)
                    continue
                last = min(last, waiting)
                while left and left[-1] > waiting:
                    left.pop()
                    aside += 1
            if self._steps is None:
                return {METRICS: len(left), ABANDONED: aside}
            return {METRICS: max(0, self._step - bisect.bisect_right(self._steps, last)), ABANDONED: aside}

    def finish(self, summary: dict) -> list[str]:
        """Draw the last figure, and end the wandb run; return lines to say."""
        news, figure = self._written(), self.folder / FIGURE
        self._begin_figure()
        if self._figure and not concurrent.futures.wait([self._figure], FIGURE_S).done:
            news.append(f"· {FIGURE} is not done after {FIGURE_S:g} s; the run does not wait for it")
        news += self._drawn()
        self._wandb.log(lambda wandb: {"training": wandb.Image(str(figure))} if figure.exists() else {})
        self._wandb.finish(summary)
        return news + self._wandb.news()


class Tracking:
    """A job's tracker, as the job sees it: nothing that happens to it ends the job or holds it up for long.

    Args:
        tracker: the actor.
        say: takes a progress line.
    """

    def __init__(self, tracker, say: Callable[[str], None]):
        self.tracker, self._say = tracker, say
        self._late: asyncio.Future | None = None  # a call that has not been answered in time
        self._unanswered = 0  # rows
        self._said = False

    async def begun(self) -> tuple[list[dict], str, str]:
        """See `Tracker.begun`. Raises what that raises."""
        rows, place, wandb_id, news = await self.tracker.begun.remote()
        self._tell(news)
        return rows, place, wandb_id

    async def log(self, row: dict) -> None:
        """See `Tracker.log`. Returns when the row is on disk, or after some time."""
        news = await self._answer(self.tracker.log.remote(row))
        self._unanswered += news is None
        self._tell(news or [])

    async def roll_back(self, step: int) -> None:
        """See `Tracker.roll_back`."""
        self._tell(await self._answer(self.tracker.roll_back.remote(step)) or [])

    async def episodes(self, step: int, samples: list) -> None:
        """See `Tracker.episodes`."""
        self._tell(await self._answer(self.tracker.episodes.remote(step, samples)) or [])

    def draw(self) -> None:
        """See `Tracker.draw`; nobody waits for it."""
        self.tracker.draw.remote()

    def abandon(self) -> None:
        """End the tracker's process, with all that it may still write: the run folder is another run's."""
        ray.kill(self.tracker)

    async def flush(self) -> dict[str, int]:
        """What could not be written, by file; see `Tracker.flush`."""
        unwritten, news = await self._answer(self.tracker.flush.remote()) or ({METRICS: self._unanswered}, [])
        self._tell(news)
        return {file: number for file, number in unwritten.items() if number}

    async def finish(self, summary: dict) -> None:
        """See `Tracker.finish`."""
        self._tell(await self._answer(self.tracker.finish.remote(summary)) or [])

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            self._say(line)

    async def _answer(self, call: ray.ObjectRef):
        """What the tracker returns; None if it fails, or takes too long, which is said once. It still gets to it."""
        if self._late and not self._late.done():
            return None  # calls are answered in their order
        answer = asyncio.ensure_future(_result(call))
        try:
            if (await asyncio.wait([answer], timeout=ANSWER_S))[0]:
                return answer.result()
            self._late, problem = answer, f"no answer for {ANSWER_S:g} s"
            answer.add_done_callback(lambda late: late.cancelled() or late.exception())
        except RayError as error:
            problem = reason_of(error)
        if not self._said:
            self._said = True
            self._say(f"· the tracker (metrics.jsonl, wandb): {problem}; the run does not wait for it")
        return None


async def _result(call: ray.ObjectRef):
    return await call


def _draw(curves: Curves, path: Path) -> None:
    from pipeline.run.training_plot import training_figure

    training_figure(curves, path)


def readable_episode(tokenizer, question: str, record: GroupRecord, group: EpisodeGroup) -> dict:
    """The first episode of a group as text: the response of each conversation in order, then the answer."""
    mine = [c for c, episode in enumerate(group.episodes) if episode == 0]
    return {
        "problem_id": record.problem_id,
        "problem": question,
        "conversations": [{"role": group.roles[c], "response": tokenizer.decode(group.response(c))} for c in mine],
        "answer": group.episode_answers[0],
        "reward": float(record.rewards[0]),
        "advantage": float(record.advantages[0]),
    }


def _cell(value):
    if not isinstance(value, list):
        return value
    return "\n---\n".join(f"{conversation['role']}: {conversation['response']}" for conversation in value)


def _histogram(wandb, counts: list[int]):
    """Of the values 0, 1, 2, … which came so many times each."""
    return wandb.Histogram(np_histogram=(counts, np.arange(len(counts) + 1) - 0.5))
