"""What a server serves, as its routes know it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from actors.serving.readings import Readings
from pipeline.agents.reader import Reader
from pipeline.asking.session import Generate
from pipeline.rollout.episodes import Sampling
from pipeline.serving.config import ServeConfig
from pipeline.serving.errors import RequestError
from pipeline.serving.files import FileStore
from pipeline.serving.keys import Keys

METHODS = ("memory", "direct", "concat")


@dataclass
class Served:
    """What a server serves.

    Attributes:
        config: the configuration.
        make_agent: makes an agent with a tokenizer of its own: method -> agent.
        generate: samples responses.
        name: the model's name.
        keys, files: those of the users.
        readings: made from the others.
    """

    config: ServeConfig
    make_agent: Callable[[str], Reader]
    generate: Generate
    name: str
    keys: Keys
    files: FileStore
    readings: Readings = field(init=False)

    def __post_init__(self) -> None:
        self.readings = Readings(self.config.serve.limits, self.generate, self.make_agent, self.files)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.config.serve.temperature, self.config.serve.top_p)

    def models(self) -> list[str]:
        """The ids of the models: the method is chosen by the model's id."""
        return [self.name, *(f"{self.name}:{method}" for method in METHODS[1:])]

    def method_of(self, model: Any) -> tuple[str, str]:
        """The id and the method of a request's model.

        Raises:
            RequestError: there is no such model.
        """
        id = self.name if model is None else model
        if id not in self.models():
            raise RequestError(
                404, f"there is no model {str(id)[:60]!r}; there are {', '.join(self.models())}", param="model"
            )
        return id, id.removeprefix(self.name).removeprefix(":") or METHODS[0]
