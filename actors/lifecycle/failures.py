"""How actors fail, as their callers see it."""

from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from pipeline.errors import last_line

DIED = (RayActorError, OutOfMemoryError)  # what a call raises whose actor died, or was killed by Ray's memory monitor


class Hung(RuntimeError):
    """An actor gave no sign of life for too long. The message says which."""


def what_happened(error: Exception) -> str:
    """What happened to an actor, as the end of a sentence that begins with its name."""
    if isinstance(error, Hung):
        return str(error)
    if isinstance(error, RayTaskError):  # before `DIED`: Ray makes one of both when its work met another that died
        return f"failed: {last_line(error)}"
    return "died"
