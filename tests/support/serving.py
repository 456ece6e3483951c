"""The server's whole app with a scripted model: a token is a byte."""

from pathlib import Path

from actors.serving.served import Served
from pipeline.serving.config import LimitSection, ServeConfig
from pipeline.serving.files import FileStore
from pipeline.serving.keys import Keys
from tests.support.asking import reader


def served_by(model, folder: Path, urls: bool = False, lengths: dict | None = None, **limits) -> tuple[Served, str]:
    """What is served, and a key.

    Args:
        model: has `generate`.
        folder: of keys and files.
        urls: whether URLs are fetched.
        lengths: of the agent.
        limits: other limits than the defaults.
    """
    config = ServeConfig()
    config.serve.urls, config.serve.limits = urls, LimitSection(**limits)
    keys = Keys(folder)
    key = keys.make("first")
    files = FileStore(folder, config.serve.limits)
    return Served(config, lambda method: reader(method, **(lengths or {})), model.generate, "tiny", keys, files), key
