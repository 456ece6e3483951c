"""The tracker: writes metrics.jsonl, sampled episodes and a figure into the run's folder, and shows them in wandb, and
to Prometheus by Ray's metrics. And a job's way to its tracker, which never waits for ever."""

import asyncio
import contextlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ray
from ray.exceptions import RayError
from ray.util.metrics import Gauge

from actors.job_actor import reason_of, was_started_again
from actors.wandb_run import WandbRun
from pipeline.config import Config
from pipeline.episodes import EpisodeGroup, GroupRecord
from pipeline.files import write_text
from pipeline.metrics import Curves, RunTotals
from pipeline.prompts import load_tokenizer
from pipeline.storage import Storage, append

ANSWER_S = 60.0  # a tracker that takes longer is not waited for
METRICS, ABANDONED, EPISODES, FIGURE = "metrics.jsonl", "abandoned.jsonl", "episodes", "training.png"


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Tracker:
    """Keeps the rows of a run. When its process dies, Ray starts it again and it goes on with them.

    A full disk, storage that hangs and whatever wandb does never make a method raise or take long. What is to be said
    about it is in the lines that methods return. Rows that cannot be written are written later.

    Args:
        config: of the run.
        folder: of the run.
        step: the last one that counts; rows of later ones are set aside.
        wandb_id: of the run so far; empty: it is a new one.
    """

    def __init__(self, config: Config, folder: str, step: int = 0, wandb_id: str = ""):
        self.folder = Path(folder)
        self.model = config.model
        self._metrics = self.folder / METRICS
        self._storage = Storage(self.folder)
        self._lock = threading.Lock()  # of the five below
        self._unwritten: list[dict] = []  # rows for metrics.jsonl
        self._aside: list[dict] = []  # rows for abandoned.jsonl
        self._moved: set[int] = set()  # steps that are there, and still in metrics.jsonl
        self._back_to: int | None = sys.maxsize if was_started_again() else step  # rows of later steps are to be moved
        self._last_step = 0
        self._curves = Curves()  # of the rows of metrics.jsonl; the storage's thread alone uses it
        self._lost: Counter[str] = Counter()  # files that could not be written, by kind
        self._failing: set[str] = set()  # what was said not to work
        self._gauges: dict[str, Gauge] = {}
        self._run_name = config.run.name
        self._wandb = WandbRun(config, self.folder, wandb_id)
        with contextlib.suppress(OSError):  # else with the first row
            self._storage.call(self._catch_up)

    def begun(self) -> tuple[list[dict], str, str, list[str]]:
        """What `RunTotals` needs of the rows so far; the address of the wandb run, or the folder of an offline one,
        empty when disabled; its id; and lines to say.

        Raises:
            OSError: the rows cannot be read.
        """
        place, wandb_id = self._wandb.started()
        rows = self._storage.call(self._rows)
        rows = [RunTotals.needed(row) for row in rows if row["step"] <= self._last_step]
        return rows, place, wandb_id, self._written()

    def log(self, row: dict) -> list[str]:
        """Append a row to metrics.jsonl, and show it in wandb and to Prometheus; return lines to say."""
        with self._lock:
            if row["step"] > self._last_step:  # else this actor died when it had written it
                self._unwritten.append(row)
                self._last_step = row["step"]
        news = self._written()
        shown = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        ages = row.get("staleness_tokens")
        self._wandb.log(lambda wandb: shown | ({"staleness_tokens": _histogram(wandb, ages)} if ages else {}))
        for name, value in shown.items():
            self._gauge(name).set(value, {"run": self._run_name})
        return news + self._wandb.news()

    def roll_back(self, step: int) -> list[str]:
        """Move the rows of later steps to abandoned.jsonl: metrics.jsonl is the history that the weights stand for.

        Returns:
            Lines to say.
        """
        with self._lock:
            self._aside += [row for row in self._unwritten if row["step"] > step]
            self._unwritten = [row for row in self._unwritten if row["step"] <= step]
            self._back_to = step if self._back_to is None else min(step, self._back_to)
            self._last_step = min(step, self._last_step)
        return self._written()

    def _written(self) -> list[str]:
        """Bring the files up to date; return lines to say."""
        return self._try(METRICS, self._catch_up)

    def _try(self, what: str, write: Callable[[], None]) -> list[str]:
        """Let the storage's thread write something. Returns a line when that fails, and when it works again."""
        try:
            self._storage.call(write)
        except OSError as error:
            was_said = what in self._failing
            self._failing.add(what)
            return [] if was_said else [f"· {what} could not be written: {error}"]
        if what in self._failing:
            self._failing.discard(what)
            return [f"· {what} is written again"]
        return []

    def _catch_up(self) -> None:
        """Move the rows that are to be moved, and append those that are not there yet. Runs in the storage's thread."""
        if self._back_to is not None:
            self._take_back()
        with self._lock:
            new = list(self._unwritten)
        if new:
            append(_lines(new), self._metrics)
        for row in new:
            self._curves.add(row)
        with self._lock:
            self._unwritten = [row for row in self._unwritten if not any(row is written for written in new)]

    def _take_back(self) -> None:
        """Move the rows after `_back_to` to abandoned.jsonl."""
        with self._lock:
            back_to, aside = self._back_to, list(self._aside)
        rows = self._rows()
        kept, gone = ([row for row in rows if (row["step"] <= back_to) == keep] for keep in (True, False))
        gone = [row for row in gone if row["step"] not in self._moved]
        if gone or aside:
            append(_lines([*gone, *aside]), self.folder / ABANDONED)
        with self._lock:
            self._aside = self._aside[len(aside) :]
            self._moved |= {row["step"] for row in gone}
        if self._metrics.exists():
            write_text(self._metrics, _lines(kept))  # which leaves out a line that was cut off with its writer
        self._curves = Curves(kept)
        last = kept[-1]["step"] if kept else 0
        with self._lock:
            self._back_to = None if self._back_to == back_to else self._back_to
            self._moved = set()
            # This actor may have died when it had written one of them.
            self._unwritten = [row for row in self._unwritten if row["step"] > last]
            self._last_step = max(self._last_step, last)

    def _rows(self) -> list[dict]:
        """The rows of metrics.jsonl. A last line that was cut off with its writer is not one."""
        rows = []
        if self._metrics.exists():
            for line in self._metrics.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    rows.append(json.loads(line))
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
        columns = ["problem", "memories", "answer", "reward"]
        data = [[_cell(e[c]) for c in columns] for e in shown]
        self._wandb.log(lambda wandb: {"episodes": wandb.Table(columns=columns, data=data), "step": step})
        return news + self._wandb.news()

    def draw(self) -> list[str]:
        """Draw all steps so far into training.png; return lines to say."""
        return self._try(FIGURE, self._draw)

    def _draw(self) -> None:
        from pipeline.training_plot import training_figure

        if self._curves.last_step:
            training_figure(self._curves, self.folder / FIGURE)

    def flush(self) -> tuple[dict[str, int], list[str]]:
        """Try once more to write what is not written.

        Returns:
            How many rows, or files of episodes, are not there, by file; lines to say.
        """
        news = self._written()
        return {METRICS: len(self._unwritten), ABANDONED: len(self._aside), **self._lost}, news

    def finish(self, summary: dict) -> list[str]:
        """Draw the last figure, and end the wandb run; return lines to say."""
        news, figure = [*self._written(), *self.draw()], self.folder / FIGURE
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


def readable_episode(tokenizer, question: str, record: GroupRecord, group: EpisodeGroup) -> dict:
    """The first episode of a group as text: every memory in order, then the answer."""
    mine = [c for c, episode in enumerate(group.episodes) if episode == 0]
    return {
        "problem_id": record.problem_id,
        "problem": question,
        "memories": [tokenizer.decode(group.response(c)) for c in mine if group.roles[c] == "memory"],
        "answer": group.answers[0],
        "reward": float(record.rewards[0]),
        "advantage": float(record.advantages[0]),
    }


def _cell(value):
    return "\n---\n".join(value) if isinstance(value, list) else value


def _lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _histogram(wandb, counts: list[int]):
    """Of the values 0, 1, 2, … which came so many times each."""
    return wandb.Histogram(np_histogram=(counts, np.arange(len(counts) + 1) - 0.5))
