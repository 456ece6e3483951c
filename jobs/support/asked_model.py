"""The model that answers a question: its agent, and what generates its responses, an engine here or a server."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

from jobs.support.endpoint import Endpoint
from jobs.support.inputs import check_model, load_model_files
from jobs.support.local_engine import LocalEngine
from pipeline.agents import Agent, load_agent
from pipeline.agents.prompts import load_template
from pipeline.agents.reader import Reader
from pipeline.agents.window import check_window
from pipeline.asking.characters import CharacterTokenizer
from pipeline.asking.config import AskConfig, engine_config, fingerprint
from pipeline.asking.kept import reading_key
from pipeline.asking.session import check_agent
from pipeline.errors import ConfigError
from pipeline.rollout.episodes import Sampling
from pipeline.sections import GenerationConfig, ModelSection


@dataclass(frozen=True)
class AskedModel:
    """A model that is ready to be asked.

    Attributes:
        config: the configuration.
        agent: the agent, with the model's tokenizer.
        client: has `generate`, the function that samples responses, and `close`.
        name: the model's name.
        identity: identifies the weights, for what is kept.
    """

    config: AskConfig
    agent: Reader
    client: LocalEngine | Endpoint
    name: str
    identity: list[Any]

    @property
    def sampling(self) -> Sampling:
        a = self.config.ask
        return Sampling(a.temperature, a.top_p, a.seed)

    def reading_key(self, question: str, files: list[list[str]]) -> str:
        """The key of a reading of these files, given by their contents, for a question (pipeline/asking/kept.py)."""
        c = self.config
        return reading_key(
            {
                "files": files,
                "question": question,
                "model": self.identity,
                "dtype": c.model.dtype,
                "method": c.ask.method,
                "agent": asdict(c.agent),
                "prompts": dict(load_template(c.agent.prompt_template).prompts),
                "sampling": [c.ask.temperature, c.ask.top_p, c.ask.seed],
            }
        )


async def open_model(config: AskConfig, say: Callable[[str], object]) -> AskedModel:
    """The model of a configuration. A local engine starts with the first prompt.

    Args:
        config: the configuration.
        say: called with a line about what takes long.

    Raises:
        ConfigError: the model, the method or the prompt template cannot be used.
        EndpointError: the server does not respond.
    """
    agent_class = check_agent(config.ask.method, load_agent(config.ask.method))
    template = load_template(config.agent.prompt_template)
    if config.ask.endpoint:
        tokenizer = _endpoint_tokenizer(config, template.chat)
        agent = agent_class(tokenizer, config.agent)
        model = ModelSection(config.ask.endpoint)
        longest = cast(Agent, agent).longest_prompts()
        check_window(GenerationConfig(model=model, agent=config.agent), longest, None)
        client = Endpoint(config.ask, tokenizer, template.chat)
        try:
            name = await client.model()
        except BaseException:
            await client.close()
            raise
        return AskedModel(config, agent, client, name, [config.ask.endpoint, name, config.ask.tokenizer])
    checked = engine_config(config, gpus=0)
    check_model(checked, [config.ask.method])
    tokenizer, _ = load_model_files(checked.model)
    agent = agent_class(tokenizer, config.agent)
    path = config.model.path
    return AskedModel(config, agent, LocalEngine(config, tokenizer, say), path, fingerprint(path))


def _endpoint_tokenizer(config: AskConfig, chat: bool):
    if not config.ask.tokenizer:
        return CharacterTokenizer()
    try:
        tokenizer, _ = load_model_files(ModelSection(config.ask.tokenizer))
    except ConfigError as error:
        raise ConfigError(str(error).replace("model.path=", "--tokenizer ", 1)) from None
    if chat and not tokenizer.chat_template:
        raise ConfigError(f"--tokenizer {config.ask.tokenizer} has no chat template; leave --tokenizer out")
    return tokenizer
