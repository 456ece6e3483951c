"""The terminal output of a running job: its lines and, in a terminal, a live progress bar below them."""

import re

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

STEP = re.compile(r"(?:step|question|sample) (\d+)/(\d+)\b\s*(.*)")
# Lines that Ray adds to a job's log about the job itself. (jobs/support/noise.py filters the workers' lines.)
ABOUT_THE_JOB = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+\tINFO \w+\.py:\d+ -- |Running entrypoint for job ")


class JobProgress:
    """Context manager that shows the lines of a job's log."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[steps]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, steps="")

    def __enter__(self) -> "JobProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def line(self, line: str) -> None:
        """Show one line of the job's log and update the bar."""
        line = Text.from_ansi(line.rstrip().rpartition("\r")[2]).plain
        if ABOUT_THE_JOB.match(line):
            return
        self._print(line)
        if step := STEP.match(line):
            done, total, numbers = step.groups()
            first = re.split(r"\s{2,}", numbers)[0]  # the reward; the line above the bar has all numbers
            self._bar.update(
                self._task, completed=int(done), total=int(total), description=first, steps=f"{done}/{total}"
            )
        elif line.startswith("· "):
            self._bar.update(self._task, description=line[2:])

    def say(self, message: str) -> None:
        """Show a message of the driver, and keep it beside the bar until the next one."""
        self.line(f"· {message}")

    def _print(self, line: str) -> None:
        if self.console.is_terminal:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self.console.file, flush=True)
