"""Blocks: consecutive pieces of a document, each with the place where it begins."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

BLOCK_CHARACTERS = 1 << 16  # at most, in a block


@dataclass(frozen=True)
class Block:
    """Consecutive text of a document and where it begins. The blocks of a document, joined, are the document."""

    text: str  # never empty
    page: int | None  # from 1; PDF only
    line: int  # from 1: the line in the file (text, Markdown), else in the extracted text (for PDF, of the page)


def cut(texts: Iterable[str]) -> Iterator[str]:
    """The same text in pieces of `BLOCK_CHARACTERS` at most, which end after a line, or else a word, where they can."""
    rest = ""
    for text in texts:
        rest, begin = rest + text, 0
        while len(rest) - begin > BLOCK_CHARACTERS:
            end = begin + BLOCK_CHARACTERS
            end = rest.rfind("\n", begin, end) + 1 or rest.rfind(" ", begin, end) + 1 or end
            yield rest[begin:end]
            begin = end
        rest = rest[begin:]
    if rest:
        yield rest


def numbered(pieces: Iterable[tuple[str, int | None]]) -> Iterator[Block]:
    """Blocks of non-empty texts and their pages. Lines are counted from 1 in the document, or in each page."""
    line, last = 1, None
    for text, page in pieces:
        if page != last:
            line, last = 1, page
        yield Block(text, page, line)
        line += text.count("\n")
