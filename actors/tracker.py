"""The tracker: an actor that writes metrics.jsonl, sampled episodes and a figure to the run folder, and sends them to
wandb and (metrics only, through Ray) to Prometheus."""

import concurrent.futures
import contextlib
import json
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from copy import deepcopy
from itertools import islice, takewhile
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import ray
from ray.util.metrics import Gauge

from actors.lifecycle.cluster import was_started_again
from actors.wandb_run import WandbRun
from pipeline.evaluation.results import SURROGATES
from pipeline.files import write_text
from pipeline.problems import Problem
from pipeline.rollout.episodes import GroupRecord
from pipeline.run.config import TrainingConfig
from pipeline.run.history import DRAWN, History, RunTotals
from pipeline.run.metric_names import STEP, wandb_name
from pipeline.run.sampled_episode import sampled_episode
from pipeline.run.validation import validation_metrics
from pipeline.run.validation_file import ANSWERS, VALIDATION, ValidationFile
from pipeline.storage import MOST_KEPT, Storage, append
from pipeline.text import load_tokenizer
from pipeline.view.lines import Notes
from pipeline.view.page import PAGE, page_of, run_data

READING_S = 120.0  # limit for reading the rows of a resumed run
FIGURE_S = 15.0  # limit for the last figure at the end of a run
ROWS_AT_ONCE = 1000  # rows per write
METRICS, ABANDONED, EPISODES, FIGURE = "metrics.jsonl", "abandoned.jsonl", "episodes", "training.png"


class Row(NamedTuple):
    """A line of metrics.jsonl, including its line end."""

    step: int
    line: str


class Validated(NamedTuple):
    """A row of validation.jsonl."""

    row: dict


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Tracker:
    """Keeps the rows of a run. If its process dies, Ray restarts it and it continues with the rows on disk.

    A full disk, hanging storage and failures of wandb never make a method raise or take long; methods return progress
    lines about them. Rows that cannot be written are written later, in order. They are lost, and counted as missing,
    if more than `MOST_KEPT` characters wait or this process dies.

    Args:
        config: the run's configuration.
        folder: the run folder.
        step: the last step that counts; rows of later steps are moved to abandoned.jsonl.
        wandb_id: id of the wandb run to resume; empty: a new run.
    """

    def __init__(self, config: TrainingConfig, folder: str, step: int = 0, wandb_id: str = ""):
        self.folder = Path(folder)
        self.model = config.model
        self._metrics = self.folder / METRICS
        self._storage, self._drawing = Storage(self.folder), Storage(self.folder)
        self._lock = threading.Lock()  # protects the next five
        # Pending changes of metrics.jsonl and validation.jsonl, in order: a row to add, or a step to roll back to.
        self._waiting: deque[Row | Validated | int] = deque([sys.maxsize if was_started_again() else step])
        self._size = 0  # characters of the waiting rows
        self._step = step  # the last step logged: each step up to it should have a row
        self._history: History | None = None  # of metrics.jsonl; None until the first roll-back reads it
        self._set_aside = False  # whether the rows abandoned by the first waiting roll-back are in abandoned.jsonl
        self._validations = ValidationFile(self.folder)
        self._lost: Counter[str] = Counter()  # number of files that could not be written, by kind
        self._failing: set[str] = set()  # what was reported as failing
        self._figure: Future | None = None  # the last drawing
        self._gauges: dict[str, Gauge] = {}
        self._run_name = config.run.name
        self._wandb = WandbRun(config, self.folder, wandb_id)
        self._storage.begin(self._catch_up)  # if it fails, the first row tries again

    def begun(self) -> tuple[list[dict], list[dict], str, str, list[str]]:
        """Wait for the start.

        Returns:
            The columns of the rows so far that `RunTotals` needs; the rows of validation.jsonl; the wandb run's URL, or
            its folder if wandb is offline, empty if disabled; the wandb run's id; and progress lines.

        Raises:
            OSError: the rows cannot be read.
        """
        place, wandb_id = self._wandb.started()
        news = self._written(READING_S)
        rows = self._storage.call(self._counted, limit_s=READING_S)
        validations, last = self._storage.call(self._validations.read, limit_s=READING_S), self._last_counted()
        return rows, [row for row in validations if row["step"] <= last], place, wandb_id, news

    def log(self, row: dict) -> list[str]:
        """Append a row to metrics.jsonl, and send it to wandb and Prometheus; return progress lines."""
        added = Row(row["step"], json.dumps(row) + "\n")
        with self._lock:
            self._step = added.step
            if self._size + len(added.line) <= MOST_KEPT:  # else it is lost and counted by `flush`
                self._waiting.append(added)
                self._size += len(added.line)
        news = self._written()
        shown = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        ages = row.get("staleness_tokens")
        histogram = wandb_name("staleness_tokens")
        self._wandb.log(lambda wandb: _named(shown) | ({histogram: _histogram(wandb, ages)} if ages else {}))
        for name, value in shown.items():
            self._gauge(name).set(value, {"run": self._run_name})
        return news + self._drawn() + self._wandb.news()

    def validated(self, row: dict, answers: list[dict]) -> list[str]:
        """Add a row to validation.jsonl, write its answers, and send it to wandb and Prometheus; return progress lines.

        Args:
            row: the row (`validation_row`).
            answers: the rows of validation/step-<step>/results.jsonl, an evaluation's file.
        """
        with self._lock:
            self._waiting.append(Validated(row))
        news = self._written()
        news += self._try(ANSWERS, lambda: self._validations.write_answers(row["step"], answers))
        self._lost[ANSWERS] += ANSWERS in self._failing
        shown = validation_metrics(row)
        self._wandb.log(lambda wandb: {STEP: row["step"]} | _named(shown))
        for name, value in shown.items():
            self._gauge(name).set(value, {"run": self._run_name})
        self.draw()
        return news + self._wandb.news()

    def alert(self, topic: str, line: str) -> None:
        """Send a progress line to wandb as an alert; see `WandbRun.alert`."""
        self._wandb.alert(topic, line)

    def roll_back(self, step: int) -> list[str]:
        """Move the rows of later steps to abandoned.jsonl: metrics.jsonl is the history of the current weights.

        Returns:
            Progress lines.
        """
        with self._lock:
            self._waiting.append(step)
            self._step = step
        return self._written()

    def _written(self, limit_s: float | None = None) -> list[str]:
        """Bring the files up to date; return progress lines."""
        return self._try(METRICS, self._catch_up, limit_s)

    def _try(self, what: str, write: Callable[[], None], limit_s: float | None = None) -> list[str]:
        """Let the storage's thread write something; return a line when it first fails, and when it works again."""
        try:
            self._storage.call(write, limit_s=limit_s)
        except OSError as error:
            return self._fails(what, error)
        return self._works(what)

    def _fails(self, what: str, error: BaseException) -> list[str]:
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
        """Do all pending changes in order; a failing one stays first. Raises `OSError`."""
        while self._waiting:
            with self._lock:
                first = self._waiting[0]
                waiting = takewhile(lambda waiting: isinstance(waiting, Row), self._waiting)
                rows = cast(list[Row], list(islice(waiting, ROWS_AT_ONCE)))
            if rows:
                self._append(rows)
            elif isinstance(first, Validated):
                self._validations.add(first.row)
            else:
                self._go_back(cast(int, first))
            with self._lock:
                for _ in range(len(rows) or 1):
                    self._waiting.popleft()
                self._size -= sum(len(row.line) for row in rows)

    def _append(self, rows: list[Row]) -> None:
        """Append rows to metrics.jsonl, except those already there: this actor died after writing them."""
        last = self._history.last_step if self._history else 0
        new: list[Row] = []
        for row in rows:
            if row.step <= last:
                if row in (*new, *self._rows()):
                    continue
                self._go_back(row.step - 1)  # this actor died before rolling back
            new.append(row)
            last = row.step
        if new:
            append("".join(row.line for row in new), self._metrics)
        with self._lock:
            for row in new:
                self._history.add(json.loads(row.line))

    def _go_back(self, step: int) -> None:
        """Move the rows of later steps to abandoned.jsonl, and drop a torn last line."""
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
        self._validations.roll_back(step)

    def _know(self, rows: list[Row]) -> None:
        """Take these rows as the content of metrics.jsonl."""
        history = History(DRAWN, (json.loads(row.line) for row in rows))
        with self._lock:
            self._history = history

    def _counted(self) -> list[dict]:
        """The columns that `RunTotals` needs, of the rows that count."""
        last = self._last_counted()
        return [RunTotals.needed(json.loads(row.line)) for row in self._rows() if row.step <= last]

    def _last_counted(self) -> int:
        """The last step that counts, if rows of later steps are still to be moved."""
        with self._lock:
            return min((waiting for waiting in self._waiting if isinstance(waiting, int)), default=sys.maxsize)

    def _lines(self) -> list[str]:
        return self._metrics.read_text(encoding="utf-8").splitlines() if self._metrics.exists() else []

    def _rows(self, lines: list[str] | None = None) -> list[Row]:
        """The rows of metrics.jsonl, without a torn last line.

        Args:
            lines: the file's lines; None: read them.
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

    def episodes(
        self,
        step: int,
        samples: list[tuple[Problem, GroupRecord, list[ray.ObjectRef]]],
        logprobs: list[ray.ObjectRef],
    ) -> list[str]:
        """Write one episode of each sample in readable form, and send them to wandb.

        Args:
            step: the learner step.
            samples: (problem, record, [reference to the group]).
            logprobs: references to what the ranks computed for these samples (`Shown`).

        Returns:
            Progress lines.
        """
        tokenizer, shown = load_tokenizer(self.model.path, self.model.trust_remote_code), []
        learner: dict[int, dict[int, np.ndarray]] = {}
        for ref in logprobs:
            for (index, conversation), computed in (_fetched(ref) or {}).items():
                learner.setdefault(index, {})[conversation] = computed
        for index, (problem, record, (ref,)) in enumerate(samples):
            if group := _fetched(ref):
                shown.append(sampled_episode(tokenizer, problem, record, group, learner.get(index, {})))
        lines = "".join(json.dumps(episode, ensure_ascii=False) + "\n" for episode in shown)
        text = lines.encode(errors=SURROGATES).decode()
        news = self._try(EPISODES, lambda: write_text(self.folder / EPISODES / f"step-{step:06d}.jsonl", text))
        self._lost[EPISODES] += EPISODES in self._failing
        columns = ["problem", "conversations", "answer", "reward"]
        data = [[_cell(e[c]) for c in columns] for e in shown]
        self._wandb.log(lambda wandb: {"reading/episodes": wandb.Table(columns=columns, data=data), STEP: step})
        return news + self._wandb.news()

    def draw(self) -> None:
        """Start drawing training.png in the background. `log` and `finish` return lines about it."""
        if self._figure is None or self._figure.done():
            self._begin_figure()

    def _begin_figure(self) -> None:
        with self._lock:
            history, validations = deepcopy(self._history), list(self._validations.rows)
        if history:
            self._figure = self._drawing.begin(_draw, history, validations, self.folder / FIGURE)

    def _drawn(self) -> list[str]:
        """Progress lines about the last figure, once it is done."""
        if self._figure is None or not self._figure.done():
            return []
        error = self._figure.exception()
        return self._fails(FIGURE, error) if error else self._works(FIGURE)

    def flush(self) -> tuple[dict[str, int], list[str]]:
        """Try once more to write all that is pending.

        Returns:
            The number of missing rows, or of missing files of episodes, by file; and progress lines.
        """
        news = self._written()
        return {**self._missing(), **self._lost}, news

    def _missing(self) -> dict[str, int]:
        """The number of missing rows, by file."""
        with self._lock:
            left, aside = [], 0  # waiting rows; those that a later roll-back abandons belong to abandoned.jsonl
            last, validations = sys.maxsize, list[int]()
            for waiting in self._waiting:
                if isinstance(waiting, Row):
                    left.append(waiting.step)
                    continue
                if isinstance(waiting, Validated):
                    validations.append(waiting.row["step"])
                    continue
                last = min(last, waiting)
                validations = [step for step in validations if step <= waiting]
                while left and left[-1] > waiting:
                    left.pop()
                    aside += 1
            missing = len(left) if self._history is None else max(0, self._step - self._history.up_to(last))
            return {METRICS: missing, ABANDONED: aside} | ({VALIDATION: len(validations)} if validations else {})

    def finish(self, summary: dict) -> list[str]:
        """Draw the last figure, log it and the run's page to wandb and end the wandb run; return progress lines."""
        news, figure = self._written(), self.folder / FIGURE
        self._begin_figure()
        if self._figure and not concurrent.futures.wait([self._figure], FIGURE_S).done:
            news.append(f"· {FIGURE} is not done after {FIGURE_S:g} s; the run does not wait for it")
        news += self._drawn()
        self._wandb.log(lambda wandb: {"reading/training": wandb.Image(str(figure))} if figure.exists() else {})
        self._wandb.log_file(PAGE, lambda: page_of(run_data(self.folder, Notes(), summary)))
        self._wandb.finish(summary)
        return news + self._wandb.news()


def _draw(history: History, validations: list[dict], path: Path) -> None:
    from pipeline.run.training_plot import training_figure

    training_figure(history, path, validations)


def _fetched(ref: ray.ObjectRef):
    """An object; None if it is lost with its node or process: later samples will do."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayError:
        return None


def _cell(value):
    if not isinstance(value, list):
        return value
    return "\n---\n".join(f"{conversation['role']}: {conversation['response']}" for conversation in value)


def _named(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics under their names in wandb."""
    return {wandb_name(name): value for name, value in metrics.items()}


def _histogram(wandb, counts: list[int]):
    """A wandb histogram of the values 0, 1, 2, … with these counts."""
    return wandb.Histogram(np_histogram=(counts, np.arange(len(counts) + 1) - 0.5))
