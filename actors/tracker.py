"""The tracker: writes metrics.jsonl, sampled episodes and a figure into the run's folder, and shows them in wandb, and
to Prometheus by Ray's metrics."""

import contextlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import ray
from ray.util.metrics import Gauge

from actors.job_actor import was_started_again
from pipeline.config import Config, GenerationConfig
from pipeline.episodes import EpisodeGroup, GroupRecord
from pipeline.files import write_text
from pipeline.metrics import Curves, RunTotals
from pipeline.prompts import load_tokenizer


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Tracker:
    """Keeps the rows of a run. When its process dies, Ray starts it again and it goes on with them.

    Args:
        config: of the run.
        folder: of the run.
        step: the last one that counts; rows of later ones are set aside.
        wandb_id: of the run so far; empty: it is a new one.
    """

    def __init__(self, config: Config, folder: str, step: int = 0, wandb_id: str = ""):
        self.folder = Path(folder)
        (self.folder / "episodes").mkdir(parents=True, exist_ok=True)
        self.model = config.model
        self._metrics = self.folder / "metrics.jsonl"
        self._unwritten: list[dict] = []  # rows, while the disk is full
        self._gauges: dict[str, Gauge] = {}
        self._run_name = config.run.name
        if was_started_again():
            step = sys.maxsize
        kept = self.roll_back(step)
        self._last_step = kept[-1]["step"] if kept else 0
        self._run = start_wandb(config, self.folder, wandb_id)
        # A run that goes back to a checkpoint logs some steps twice, which wandb's own counter cannot.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def begun(self) -> tuple[list[dict], str, str]:
        """What `RunTotals` needs of the rows so far, the address of the wandb run, the folder of an offline one, or
        nothing if it is disabled, and its id."""
        return [RunTotals.needed(row) for row in self._rows()], wandb_place(self._run), self._run.id or ""

    def log(self, row: dict) -> str:
        """Append a row to metrics.jsonl, and show it in wandb and to Prometheus.

        Returns:
            Why it could not be written now, if so: it is with the next one then.
        """
        if row["step"] > self._last_step:  # else this actor died when it had written it
            self._unwritten.append(row)
            self._last_step = row["step"]
            self._curves.add(row)
        try:
            self._write()
            problem = ""
        except OSError as error:
            problem = str(error)
        shown = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        ages = row.get("staleness_tokens")
        self._run.log(shown | ({"staleness_tokens": _histogram(ages)} if ages else {}))
        for name, value in shown.items():
            self._gauge(name).set(value, {"run": self._run_name})
        return problem

    def _write(self) -> None:
        """Append the rows that are not there yet, all or none of them."""
        if not self._unwritten:
            return
        lines = "".join(json.dumps(row) + "\n" for row in self._unwritten).encode()
        with self._metrics.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                while lines:
                    lines = lines[file.write(lines) :]
            except OSError:
                file.truncate(end)
                raise
        self._unwritten = []

    def roll_back(self, step: int) -> list[dict]:
        """Move the rows of later steps to abandoned.jsonl: metrics.jsonl is the history that the weights stand for.

        Returns:
            What `RunTotals` needs of the rows that are left.
        """
        self._write()
        rows = self._rows()
        kept, gone = ([row for row in rows if (row["step"] <= step) == keep] for keep in (True, False))
        if gone:
            with (self.folder / "abandoned.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in gone)
        if self._metrics.exists():
            write_text(self._metrics, "".join(json.dumps(row) + "\n" for row in kept))
        self._last_step = step
        self._curves = Curves(kept)
        return [RunTotals.needed(row) for row in kept]

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

    def episodes(self, step: int, samples: list[tuple[str, GroupRecord, list[ray.ObjectRef]]]) -> None:
        """Write one episode of each sample (question, record, reference to the group) to read, and to wandb."""
        tokenizer, shown = load_tokenizer(self.model.path, self.model.trust_remote_code), []
        for question, record, (ref,) in samples:
            try:
                group = ray.get(ref)
            except ray.exceptions.RayError:
                continue  # lost with its node; there will be others to read
            shown.append(readable_episode(tokenizer, question, record, group))
        with (self.folder / "episodes" / f"step-{step:06d}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(episode, ensure_ascii=False) + "\n" for episode in shown)
        import wandb

        columns = ["problem", "memories", "answer", "reward"]
        table = wandb.Table(columns=columns, data=[[_cell(e[c]) for c in columns] for e in shown])
        self._run.log({"episodes": table, "step": step})

    def draw(self) -> None:
        """Draw all steps so far into training.png."""
        from pipeline.training_plot import training_figure

        training_figure(self._curves, self.folder / "training.png")

    def finish(self, summary: dict) -> None:
        import wandb

        try:
            self._write()
            if self._metrics.exists():
                self.draw()
                self._run.log({"training": wandb.Image(str(self.folder / "training.png"))})
        finally:
            finish_wandb(self._run, summary)


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


def _histogram(counts: list[int]):
    """Of the values 0, 1, 2, … which came so many times each."""
    import wandb

    return wandb.Histogram(np_histogram=(counts, np.arange(len(counts) + 1) - 0.5))


def start_wandb(config: GenerationConfig, folder: Path, run_id: str = ""):
    """The wandb run of a job, with its files in `folder`; the one of this id goes on."""
    import wandb

    mode = config.wandb.mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
    return wandb.init(
        project=config.wandb.project,
        entity=config.wandb.entity or None,
        name=config.run.name,
        dir=str(folder),
        config=asdict(config),
        mode=mode,
        id=run_id or None,
        resume="allow" if run_id else None,
        settings=wandb.Settings(quiet=True),  # no tables of all numbers in the terminal at the end
    )


def finish_wandb(run, summary: dict) -> None:
    """End the wandb run of a job, and wandb's own process."""
    import wandb

    run.summary.update(summary)
    run.finish(exit_code=0 if summary["status"] == "completed" else 1)
    wandb.teardown()  # at the end of this process Ray may have ended wandb's before


def wandb_place(run) -> str:
    """The address of a wandb run, or the folder of an offline one; empty when disabled."""
    return run.url or ("" if run.disabled else str(Path(run.dir).parent))
