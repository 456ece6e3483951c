"""Alerts: progress lines that also reach people who do not watch the terminal."""


class Alert(str):
    """A progress line that a job also sends to wandb as an alert. Wherever lines are shown, it is like any other.

    Args:
        topic: the condition in a few words, fewer than 64 characters. Alerts of one topic are sent once in a while.
        line: the progress line.
    """

    topic: str

    def __new__(cls, topic: str, line: str) -> "Alert":
        alert = super().__new__(cls, line)
        alert.topic = topic
        return alert

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # a line may be sent to another process
        return self.topic, str(self)
