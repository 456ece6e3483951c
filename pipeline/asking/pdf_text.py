"""PDF by pypdf. Runs in the process of pipeline/asking/parsers.py."""

from collections.abc import Iterator
from typing import BinaryIO

from pypdf import PdfReader
from pypdf.errors import FileNotDecryptedError

from pipeline.errors import UnreadableDocument

ENCRYPTED = "it is encrypted; save it without a password, for example: qpdf --decrypt --password=… FILE NEW"


def read(file: BinaryIO, memory_bytes: int) -> Iterator[tuple[str, int]]:
    r"""The text of each page that has some, and the page's number from 1. Each text ends with \n.

    A file that is encrypted with an empty password, as it is where only printing is forbidden, is read like any other.
    """
    reader = PdfReader(file)
    try:
        pages = len(reader.pages)
    except FileNotDecryptedError:
        raise UnreadableDocument(ENCRYPTED) from None
    found = False
    for number in range(pages):
        try:
            text = reader.pages[number].extract_text().strip()
        except (MemoryError, UnreadableDocument):
            raise
        except Exception as error:
            raise UnreadableDocument(f"page {number + 1} is broken ({type(error).__name__}: {error})") from None
        if text:
            found = True
            yield f"{text}\n", number + 1
    if not found:
        raise UnreadableDocument(
            f"none of its {pages} pages holds text, so they are probably scanned images; run text recognition on it "
            "first, for example: ocrmypdf FILE NEW"
        )
