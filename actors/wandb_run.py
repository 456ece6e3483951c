"""A job's wandb run. Failures of wandb neither end nor block the job.

One thread makes all calls. The first call that fails or hangs is reported once; then the job runs without wandb.
"""

import os
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.run.metric_names import STEP, SUMMARIES, wandb_name
from pipeline.sections import GenerationConfig

START_S = 30.0  # limit for wandb's processes to start and its server to answer
HANGS_S = 120.0  # a longer call counts as hanging
ALERT_EVERY_S = 3600.0  # between two alerts of one topic
FINISH_S = 45.0  # limit for the last uploads
MOST_WAITING = 1000  # calls that may wait while one hangs


class WandbRun:
    """A wandb run that starts in the background on construction.

    Args:
        config: the job's configuration.
        folder: the folder for wandb's files.
        run_id: id of the wandb run to resume; empty: a new run.
    """

    def __init__(self, config: GenerationConfig, folder: Path, run_id: str = ""):
        self._config, self._folder = config, folder
        self._id, self._resumed = run_id or secrets.token_hex(4), bool(run_id)
        self._enabled = config.wandb.mode != "disabled"
        self._run = None
        self._place = self._problem = ""
        self._said = False
        self._news: list[str] = []
        self._summary: dict = {}
        self._alerted: dict[str, float] = {}  # when an alert of a topic was last sent
        self._calls: queue.Queue[Callable | None] = queue.Queue()
        self._call_began: float | None = None
        self._started, self._ended = threading.Event(), threading.Event()
        threading.Thread(target=self._work, name="wandb", daemon=True).start()

    def started(self, limit_s: float = START_S) -> tuple[str, str]:
        """Wait for the start.

        Returns:
            The run's URL, or its folder if wandb is offline; empty if it has not started or is disabled. And the run's
            id; empty if wandb is disabled.
        """
        if not self._started.wait(limit_s):
            self._say_once(f"not ready after {limit_s:g} s")
        return self._place, self._id if self._enabled else ""

    def log(self, make_row: Callable[[object], dict]) -> None:
        """Log the row that `make_row` returns.

        `make_row` gets the module wandb and runs in wandb's thread, since pictures and tables write files.
        """
        self._put(lambda wandb: self._run.log(make_row(wandb)))

    def alert(self, topic: str, line: str) -> None:
        """Send a progress line as an alert, unless one of this topic was sent within `ALERT_EVERY_S`."""
        now = time.monotonic()
        if now - self._alerted.get(topic, -ALERT_EVERY_S) < ALERT_EVERY_S:
            return
        self._alerted[topic] = now
        text = line.removeprefix("· ")
        # wandb's server keeps to the interval, too, also when this process has been restarted.
        self._put(lambda wandb: self._run.alert(topic, text, wandb.AlertLevel.WARN, ALERT_EVERY_S))

    def log_file(self, name: str, content: Callable[[], bytes]) -> None:
        """Log a file as an artifact of the run, if wandb is enabled.

        It is written beside the wandb run's own files, from which an offline run is uploaded later.

        Args:
            name: the file's name, and the artifact's type.
            content: makes the file's content, in wandb's thread.
        """

        def add(wandb) -> None:
            if not self._enabled:
                return
            path = Path(self._run.dir).parent / name
            path.write_bytes(content())
            artifact = wandb.Artifact(f"{Path(name).stem}-{self._id}", type=Path(name).stem)
            # Not copied to wandb's folder in the user's home.
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
            self._run.log_artifact(artifact)

        self._calls.put(add)

    def finish(self, summary: dict, limit_s: float = FINISH_S) -> None:
        """End the run and wandb's own process."""
        self._summary = summary
        self._calls.put(self._end)
        self._calls.put(None)
        if not self._ended.wait(limit_s):
            where = self._folder / "wandb"
            self._say_once(f"not finished after {limit_s:g} s; `wandb sync {where}/*run-*` sends what is missing")

    def news(self) -> list[str]:
        """Progress lines about wandb's problems. Each is returned once."""
        began = self._call_began
        if began is not None and time.monotonic() - began > HANGS_S:
            self._say_once(f"no answer for {HANGS_S:g} s")
        news, self._news = self._news, []
        return news

    def _put(self, call: Callable[[Any], None]) -> None:
        if self._calls.qsize() < MOST_WAITING:
            self._calls.put(call)
        else:
            self._say_once("it does not answer and will lack some rows")

    def _say_once(self, what: str) -> None:
        if not self._said:  # later problems follow from the first
            self._said = True
            self._news = [f"· wandb: {what}; the run continues without it, and the run folder has everything"]

    def _work(self) -> None:
        """Make the calls in order; after a failure, only the last one."""
        call: Callable[[Any], None] | None = self._start
        while call is not None:
            if not self._problem or call == self._end:
                self._call_began = time.monotonic()
                try:
                    import wandb

                    call(wandb)
                except BaseException as error:  # wandb also raises errors that are not an Exception
                    self._problem = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
                    self._say_once(self._problem)
                self._call_began = None
            self._started.set()
            call = self._calls.get()
        self._ended.set()

    def _start(self, wandb) -> None:
        c = self._config
        mode = c.wandb.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        self._run = wandb.init(
            project=c.wandb.project,
            entity=c.wandb.entity or None,
            name=c.run.name,
            dir=str(self._folder),
            config=asdict(c),
            mode=mode,
            id=self._id,
            resume="allow" if self._resumed else None,
            # No summary table in the terminal at the end, and no capture of this process's output.
            settings=wandb.Settings(quiet=True, console="off", init_timeout=START_S - 5),
        )
        # wandb's import hooks report imported packages, so imports would raise once its core process is dead.
        wandb.sdk.lib.import_hooks.unregister_all_post_import_hooks()
        # A run that returns to a checkpoint logs some steps twice; wandb's own step counter cannot go back.
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        for name, summary in SUMMARIES.items():
            self._run.define_metric(wandb_name(name), step_metric=STEP, summary=summary)
        self._enabled = not self._run.disabled
        self._place = self._run.url or (str(Path(self._run.dir).parent) if self._enabled else "")

    def _end(self, wandb) -> None:
        if self._run is None:
            return
        try:
            self._run.summary.update(self._summary)
            self._run.finish(exit_code=0 if self._summary["status"] == "completed" else 1)
        finally:
            wandb.teardown()  # now: when this process exits, Ray may already have killed wandb's
