"""Turns a user's file into text: plain text, Markdown, HTML, PDF or DOCX.

Text and Markdown are decoded here. The parsers of the other kinds are large programs that read whatever somebody sent,
so they run in a process of their own with limits (pipeline/asking/parser_process.py). Nothing in a file is executed,
and Markdown stays as it is.
"""

import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.asking.blocks import Block, cut, numbered
from pipeline.asking.parser_process import parse
from pipeline.asking.plain_text import BINARY, check_text, encoding_of, read_text
from pipeline.errors import UnreadableDocument

HEAD_BYTES = 4096  # of a file, which tell its kind
BY_NAME = {".md": "markdown", ".markdown": "markdown", ".html": "html", ".htm": "html", ".xhtml": "html"}
# What an HTML file begins with. Markdown may begin with other tags.
HTML = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
PDF = b"%PDF-"
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
REFUSED = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "it is an old Word file (.doc), or one with a password; save it as DOCX "
    "without a password",
    b"{\\rtf": "it is an RTF file; save it as DOCX or as text",
}


@dataclass(frozen=True)
class ParseLimits:
    """What a document may cost. The defaults suit a laptop."""

    file_bytes: int = 1 << 30  # of the file
    characters: int = 500_000_000  # of the document's text
    seconds: float = 300.0  # of waiting for the parser of a PDF, HTML or DOCX file, without the caller's own time
    memory_bytes: int = 2 << 30  # address space of that parser; a DOCX file may unpack to a quarter of it


def kind_of(path: Path) -> str:
    """The kind of a file: "text", "markdown", "html", "pdf" or "docx".

    The content decides; the name does where content cannot tell: Markdown, and HTML that begins like neither page nor
    document. Any ZIP archive is "docx" here; `read_document` says if it is another.

    Raises:
        UnreadableDocument: there is no such file, or it is of no such kind.
    """
    with _opened(path) as file:
        return _kind(file.read(HEAD_BYTES), path.suffix.lower())


def read_document(path: Path, limits: ParseLimits = ParseLimits()) -> Iterator[Block]:
    """The blocks of a document, read as they are asked for. Memory does not grow with a text file.

    A text file is checked as a whole before its first block. The others may fail after some blocks.

    Raises:
        UnreadableDocument: there is no such file, it is of no known kind, empty, broken, encrypted, has no text, or
            exceeds a limit; or its parser is not installed.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limits.file_bytes:
            raise UnreadableDocument(f"it has {size:,} bytes; the limit is {limits.file_bytes:,}")
        kind = _kind(file.read(HEAD_BYTES), path.suffix.lower())
        file.seek(0)
        if kind in ("text", "markdown"):
            check_text(file, limits.characters)
            yield from numbered((text, None) for text in cut(read_text(file)))
        else:
            yield from numbered(parse(kind, file, limits.characters, limits.seconds, limits.memory_bytes))


def document_hash(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal digits.

    Raises:
        UnreadableDocument: there is no such file.
    """
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def printable(path: Path) -> str:
    """The path for messages: whatever could move a terminal's cursor or is no character is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading; `UnreadableDocument` that leaves the block then names the file."""
    try:
        # Without O_NONBLOCK, a pipe that nobody writes to would be waited for here.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnreadableDocument("it is no regular file")
            yield file
    except UnreadableDocument as error:
        raise UnreadableDocument(f"{printable(path)}: {error}") from error.__cause__
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableDocument(f"{printable(path)}: it cannot be read ({reason})") from None


def _kind(head: bytes, suffix: str) -> str:
    if not head:
        raise UnreadableDocument("it is empty")
    for beginning, reason in REFUSED.items():
        if head.startswith(beginning):
            raise UnreadableDocument(reason)
    if head.startswith(ZIP):
        return "docx"
    encoding = encoding_of(head)
    text = head.decode(encoding, errors="replace")
    # Some PDF files have a few bytes before their first line.
    if text.lstrip().encode().startswith(PDF) or (PDF in head[:1024] and "\ufffd" in text[:-3]):
        return "pdf"
    if "\0" in text:
        raise UnreadableDocument(BINARY)
    return "html" if HTML.match(text) else BY_NAME.get(suffix, "text")
