"""Agents: async functions over tokens. `agent.entrypoint` in the config names the one that runs."""

import importlib

from pipeline.config import ConfigError


def load_agent(entrypoint: str) -> type:
    """The class that `agent.entrypoint` names as module:class.

    Raises:
        ConfigError: there is no such module or class.
    """
    module, _, name = entrypoint.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"agent.entrypoint={entrypoint!r} is not a module:class that can be loaded: {error}"
        ) from None
