"""The errors that users see. Their messages never hold credentials."""

from pipeline.credentials import without_credentials


class ConfigError(ValueError):
    """The configuration cannot work. The message lists all faults and what to do."""

    def __init__(self, message: str):
        super().__init__(without_credentials(message))


class DataError(ValueError):
    """The data as a whole cannot be used. The message names the file and says what was expected."""

    def __init__(self, message: str):
        super().__init__(without_credentials(message))


class BadRow(ValueError):
    """A row is not a valid problem. The message says which field is wrong and why."""

    def __init__(self, message: str):
        super().__init__(without_credentials(message))


class QuestionTooLong(BadRow):
    """The question does not fit the agent's budget for it."""


class UnreadableDocument(DataError):
    """A file cannot be read as a document. The message names the file, says what is wrong with it and what to do."""


class RunFailed(RuntimeError):
    """The run cannot continue. The message says why and what to look at."""


def reason_of(error: Exception) -> str:
    """One line that names the error. An error from another process is shown without either process's traceback."""
    error = getattr(error, "cause", None) or error  # RayTaskError
    last = last_line(error)
    return last if isinstance(error, (RunFailed, DataError, BadRow)) else f"{type(error).__name__}: {last}"


def last_line(error: Exception) -> str:
    """The last line of an error's message; of one from another process, what its traceback ends with."""
    return (str(error).strip().splitlines() or [""])[-1]
