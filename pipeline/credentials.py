"""Finds credentials in URIs, so that configurations can refuse them, and strikes them out of messages and files.

A URI ends up in config.yaml, the summary, logs and wandb. A key belongs in the environment, where every object
store's own tools look for it. When in doubt, a part counts as a credential: better to strike out too much than too
little.
"""

import re
from urllib.parse import unquote

INSTEAD = (
    "leave them out of the URI and put them where the store's own tools look: AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY or ~/.aws (s3), GOOGLE_APPLICATION_CREDENTIALS (gs), HF_TOKEN (hf), "
    "AZURE_STORAGE_CONNECTION_STRING (abfs)"
)
STRUCK_OUT = "***"
SCHEME = r"[a-z][a-z0-9+.-]{0,30}://"
FIRST = re.compile(SCHEME, re.IGNORECASE)
# In a longer text, a URI that follows an opening quote ends at the closing one (JSON and repr escape quotes and
# backslashes inside); any other URI ends at the next whitespace.
IN_TEXT = re.compile(
    rf"""(?<=")(?<!\\"){SCHEME}(?:[^"\\]|\\.){{0,4096}}+(?=")"""
    rf"""|(?<=')(?<!\\'){SCHEME}(?:[^'\\]|\\.){{0,4096}}+(?=')"""
    rf"""|{SCHEME}\S*""",
    re.IGNORECASE | re.DOTALL,
)
# user:password before the last @; the user may be empty. A password may hold any character. host:port/path@revision
# holds no password.
PASSWORD = re.compile(r"://(?!(?:\[[0-9a-f:.%]*\]|[^/:@?#]*)(?::\d+)?[/?#])[^/:@?#]*:", re.IGNORECASE)
# A user alone is a token, except in schemes with plain user names; abfs has a container there.
TOKEN = re.compile(rf"({SCHEME})([^/?#\s]+)(?=@)", re.IGNORECASE)
USER = re.compile(r"(?:abfss?|wasbs?|hdfs|viewfs|sftp|(?:git\+)?ssh)://[\w.$-]+|gs://anonymous", re.IGNORECASE)
PARAMETER = re.compile(r"(?<=[?&#;])([^=&#;?]{1,100})=([^&#;]+)")
NAME = re.compile(
    r"key|code|pass|sas"
    r"|(?:.*[-_.])?(?:sig|pwd|auth|authorization)"
    r"|.*(?:signature|token|secret|password|passwd|passphrase|credentials?)"
    r"|.*(?:api|access|secret|account|private|auth|subscription|storage|shared|signing|security|function)[-_.]?key"
    r"(?:[-_.]?id)?",
    re.IGNORECASE,
)


def has_credentials(value: str) -> bool:
    """Whether the value, taken as a whole, holds a URI with a password, a key or a signature."""
    return without_credentials(value, whole=True) != value


def names_credential(name: str) -> bool:
    """Whether a parameter or an environment variable of this name usually holds a credential."""
    return NAME.fullmatch(name) is not None


def without_credentials(text: str, whole: bool = False) -> str:
    """The text with the credentials of all URIs in it struck out.

    Args:
        text: any text.
        whole: the text is one value: from its first URI on, blanks and quotes may belong to a password.
    """
    if "://" not in text:
        return text
    if not whole:
        return IN_TEXT.sub(lambda uri: _struck(uri.group()), text)
    first = FIRST.search(text)
    return text[: first.start()] + _struck(text[first.start() :]) if first else text


def _struck(uri: str) -> str:
    last = uri.rfind("@")
    if last >= 0 and (password := PASSWORD.search(uri, 0, last)):
        uri = uri[: password.start()] + "://" + STRUCK_OUT + uri[last:]
    uri = TOKEN.sub(lambda token: token[0] if USER.fullmatch(token[0]) else token[1] + STRUCK_OUT, uri)
    return PARAMETER.sub(_struck_parameter, uri)


def _struck_parameter(parameter: re.Match) -> str:
    name, value = parameter.groups()
    plain = unquote(unquote(value))  # a URI inside a URI is escaped, sometimes twice
    if names_credential(unquote(name).strip()) or (plain != value and has_credentials(plain)):
        return f"{name}={STRUCK_OUT}"
    return parameter[0]
