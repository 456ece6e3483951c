"""How actors fail, as their callers see it."""

from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from pipeline.errors import last_line

DIED = (RayActorError, OutOfMemoryError)  # raised if the called actor died or Ray's memory monitor killed it


class Hung(RuntimeError):
    """An actor did not respond within a limit, which the message names."""


def what_happened(error: Exception) -> str:
    """Describe an actor's failure, as the end of a sentence that begins with its name."""
    if isinstance(error, Hung):
        return str(error)
    if isinstance(error, RayTaskError):  # if its work called another actor that died, Ray raises an error of both types
        return f"failed: {last_line(error)}"
    return "died"
