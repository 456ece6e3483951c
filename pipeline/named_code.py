"""Loads code that the configuration names as `module:name`. Only the configuration names code; rows never do."""

import importlib
import re
from collections.abc import Callable, Mapping

from pipeline.errors import ConfigError

SPELLING = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def load_named(named: str) -> object:
    """Import the module in `module:name` and return the object of that name.

    Raises:
        ConfigError: the spelling is wrong, the module cannot be imported, or it has no such name.
    """
    if not SPELLING.fullmatch(named):
        raise ConfigError(f"{named!r} is not spelled module:name, like my_package.my_module:my_name")
    module, _, name = named.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise ConfigError(f"{named!r} cannot be loaded: {type(error).__name__}: {error}") from None


def load_choice(what: str, named: str, choices: Mapping[str, object], spelled: str = "module:name") -> object:
    """Load a built-in choice by its name, or a user's own as `module:name`.

    Args:
        what: what is chosen, for the message: "the method", "the weight transport".
        named: the value in the configuration.
        choices: the built-in ones by name, each as `module:name` or as what it is.
        spelled: how a user's own is spelled, for the message.

    Raises:
        ConfigError: it is no built-in choice and cannot be loaded.
    """
    found = choices.get(named, named)
    if not isinstance(found, str):
        return found
    try:
        return load_named(found)
    except ConfigError as error:
        names = ", ".join(choices)
        raise ConfigError(f"{what} {named!r} is none of {names}, nor a {spelled} that can be loaded: {error}") from None


def load_function(key: str, named: str, choices: Mapping[str, object]) -> Callable:
    """Load the function that a key names, as `load_choice` does. Raises `ConfigError` also if it is no function."""
    function = load_choice(key, named, choices, "module:function")
    if not callable(function):
        raise ConfigError(f"{key}={named} is no function")
    return function
