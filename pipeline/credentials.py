"""Credentials in URIs: found, so that they can be refused, and struck out of what is shown or written.

A URI ends up in config.yaml, the summary, logs and wandb. A key belongs in the environment, where the tools of every
object store look for it.
"""

import re

INSTEAD = (
    "leave them out of the URI and put them where the store's own tools look: AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY or ~/.aws (s3), GOOGLE_APPLICATION_CREDENTIALS (gs), HF_TOKEN (hf), "
    "AZURE_STORAGE_CONNECTION_STRING (abfs)"
)
STRUCK_OUT = "***"
IN_URI = r"[^\s\"'\\<>]"
URI = re.compile(rf"[a-z][a-z0-9+.-]{{0,30}}://{IN_URI}*", re.IGNORECASE)
# user:password@, also without a user. A password may hold slashes; host:port/path@revision is none.
PASSWORD = re.compile(r"\A([^:]*://)(?![^/:@]*:\d+/)[^/:@]*:[^@]+(?=@)")
# A user alone is a token where there are no users. (abfs has a container there, hdfs a user, gs "anonymous".)
TOKEN = re.compile(r"\A([^:]*://)[^/:@]+(?=@)")
TOKEN_SCHEMES = ("http://", "https://", "s3://")
NAMES = "signature|sig|token|secret|password|passwd|credential|auth|key|keyid"
QUERY = re.compile(rf"(?<=[?&#;])([\w.-]*(?:{NAMES})=)[^&#;]+", re.IGNORECASE)


def has_credentials(text: str) -> bool:
    """Whether a URI in the text carries a password, a key or a signature."""
    return without_credentials(text) != text


def without_credentials(text: str) -> str:
    """The text with the credentials of all URIs in it struck out."""
    return URI.sub(lambda uri: _struck(uri.group()), text) if "://" in text else text


def _struck(uri: str) -> str:
    uri = PASSWORD.sub(rf"\1{STRUCK_OUT}", uri)
    if uri.lower().startswith(TOKEN_SCHEMES):
        uri = TOKEN.sub(rf"\1{STRUCK_OUT}", uri)
    return QUERY.sub(rf"\1{STRUCK_OUT}", uri)
