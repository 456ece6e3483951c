"""Loads code that the configuration names as `module:name`. Only the configuration names code; rows never do."""

import importlib
import re

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
