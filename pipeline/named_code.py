"""Code that the configuration names as `module:name`. Nothing else names code: a row of data never does."""

import importlib
import re

from pipeline.errors import ConfigError

SPELLING = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def load_named(named: str) -> object:
    """What `module:name` names; its module is imported.

    Raises:
        ConfigError: it is spelled otherwise, the module cannot be imported, or has nothing of this name.
    """
    if not SPELLING.fullmatch(named):
        raise ConfigError(f"{named!r} is not spelled module:name, like my_package.my_module:my_name")
    module, _, name = named.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise ConfigError(f"{named!r} cannot be loaded: {type(error).__name__}: {error}") from None
