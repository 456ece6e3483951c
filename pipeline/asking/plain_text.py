"""Text files: decoded strictly, read as a stream."""

import codecs
import io
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.errors import UnreadableDocument

READ_BYTES = 1 << 16
BINARY = "it is not text: it holds NUL bytes; give a text, Markdown, HTML, PDF or DOCX file"
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def encoding_of(head: bytes) -> str:
    """UTF-16 if the file begins with its byte order mark, else UTF-8, with or without one."""
    return "utf-16" if head.startswith(UTF16_MARKS) else "utf-8-sig"


def check_text(file: BinaryIO, characters: int) -> None:
    """Read a text file to its end and tell whether `read_text` would succeed.

    Raises:
        UnreadableDocument: it is binary, in another encoding, has more than `characters` characters, or only blanks.
    """
    count, blank = 0, True
    for text in read_text(file):
        count += len(text)
        blank = blank and text.isspace()
        if count > characters:
            raise UnreadableDocument(f"it has more than {characters:,} characters; split it, or raise the limit")
    if blank:
        raise UnreadableDocument("it holds no text, only blanks and line ends")


def read_text(file: BinaryIO) -> Iterator[str]:
    r"""The text from the file's beginning, without a byte order mark, in pieces of any size. All line ends are \n.

    Raises:
        UnreadableDocument: the file is binary, or in another encoding.
    """
    file.seek(0)
    encoding = encoding_of(file.read(2))
    file.seek(0)
    # \r\n that falls on the end of a piece is one line end too.
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    line = 1
    data = b"unread"
    while data:
        data = file.read(READ_BYTES)
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise UnreadableDocument(_not_decoded(error, line)) from None
        if "\0" in text:
            raise UnreadableDocument(BINARY)
        line += text.count("\n")
        if text:
            yield text


def _not_decoded(error: UnicodeDecodeError, line: int) -> str:
    """`line`: of the first byte that was being decoded."""
    wrong = error.object[error.start : error.start + 1].hex()
    if error.encoding.startswith("utf-16"):
        return f"it begins as UTF-16 but is not: near line {line} is the invalid byte 0x{wrong}; convert it to UTF-8"
    line += error.object[: error.start].count(b"\n")
    return (
        f"it is neither UTF-8 nor UTF-16 with a byte order mark: line {line} holds the invalid byte 0x{wrong}. If it "
        "is text, convert it, for example: iconv -f WINDOWS-1252 -t UTF-8 FILE >NEW"
    )
