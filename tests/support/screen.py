"""A terminal that keeps what is shown."""

import io
import signal

from rich.console import Console

from jobs.support.progress import JobProgress


class Screen(JobProgress):
    """Keeps what is shown; Ctrl-C comes with the line that begins with `interrupt_at`."""

    def __init__(self, interrupt_at: str | None = None):
        super().__init__(Console(file=io.StringIO()))
        self.interrupt_at = interrupt_at

    @property
    def shown(self) -> str:
        return self.console.file.getvalue()

    def line(self, line: str) -> None:
        super().line(line)
        if self.interrupt_at and line.startswith(self.interrupt_at):
            signal.raise_signal(signal.SIGINT)
