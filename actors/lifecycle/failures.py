"""How actors fail, as their callers see it."""

from ray.exceptions import OutOfMemoryError, RayActorError

DIED = (RayActorError, OutOfMemoryError)  # what a call raises whose actor died, or was killed by Ray's memory monitor


class Hung(RuntimeError):
    """An actor gave no sign of life for too long. The message says which."""
