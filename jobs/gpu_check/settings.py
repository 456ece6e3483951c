"""The keys of `jobs.gpu_check`, and what follows from them."""

from dataclasses import dataclass, field

from pipeline.errors import ConfigError

PARTS = ("machine", "learner", "attention", "engine", "training")  # in the order in which they run
CUDA, CPU = "cuda", "cpu"
LENGTHS = {CUDA: 7168, CPU: 512}
SHORTEST, LONGEST = 128, 32768  # tokens


@dataclass
class Settings:
    parts: list[str] = field(default_factory=lambda: list(PARTS))  # machine, learner, attention, engine, training
    device: str = CUDA  # cuda; or cpu: the same checks with a small model in float32, to try the command
    length: int = 0  # tokens of the longest conversations; 0: 7168 on a GPU, 512 on a CPU
    limit_s: float = 600.0  # a part that takes longer has failed, in seconds
    output: str = "runs/gpu-check/results.json"  # the table as JSON; the logs of the parts are beside it

    @property
    def on_gpu(self) -> bool:
        return self.device == CUDA

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.on_gpu else "float32"

    def complete(self) -> None:
        """Called by `load_config`."""
        self.length = self.length or LENGTHS.get(self.device, 0)


def check(settings: Settings) -> None:
    """Raise `ConfigError` if there is nothing to check or a value is out of range."""
    if unknown := [part for part in settings.parts if part not in PARTS]:
        raise ConfigError(f"parts={unknown} must be some of {', '.join(PARTS)}")
    if not settings.parts:
        raise ConfigError(f"parts is empty: name some of {', '.join(PARTS)}")
    if settings.device not in LENGTHS:
        raise ConfigError(f"device={settings.device} must be {CUDA} or {CPU}")
    if not SHORTEST <= settings.length <= LONGEST:
        raise ConfigError(f"length={settings.length} must lie between {SHORTEST} and {LONGEST}")
    if settings.limit_s <= 0:
        raise ConfigError(f"limit_s={settings.limit_s:g} must be above 0")
