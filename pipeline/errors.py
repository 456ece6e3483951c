"""The errors that speak to a user. Their messages never hold credentials."""

from pipeline.credentials import without_credentials


class ConfigError(ValueError):
    """The configuration cannot work. The message lists everything that is wrong and what to do."""

    def __init__(self, message: str):
        super().__init__(without_credentials(message))


class DataError(ValueError):
    """The data as a whole cannot be used. The message names the file and says what was expected."""

    def __init__(self, message: str):
        super().__init__(without_credentials(message))


class BadRow(ValueError):
    """A row that is not a problem. The message says which field is wrong and why."""

    def __init__(self, message: str):
        super().__init__(without_credentials(message))


class QuestionTooLong(BadRow):
    """The question does not fit the agent's budget for it."""


class RunFailed(RuntimeError):
    """The run cannot go on. The message says why and what to look at."""


def reason_of(error: Exception) -> str:
    """One line. Of an error that came from another process it is that error, without the tracebacks of both."""
    error = getattr(error, "cause", None) or error  # RayTaskError
    last = last_line(error)
    return last if isinstance(error, (RunFailed, DataError, BadRow)) else f"{type(error).__name__}: {last}"


def last_line(error: Exception) -> str:
    """The last line of an error's message; of one from another process, what its traceback ends with."""
    return (str(error).strip().splitlines() or [""])[-1]
