"""HTML by lxml's event parser, which builds no tree: depth costs nothing, and memory is that of the longest text.

Runs in the process of pipeline/asking/parsers.py. All text that a browser would show without scripts is kept, and the
title. Navigation is left out.
"""

import codecs
import re
from collections.abc import Iterator
from typing import BinaryIO

from lxml import etree

from pipeline.errors import UnreadableDocument

READ_BYTES = 1 << 16
DECLARED = re.compile(
    rb"""<meta[^>]+charset\s*=\s*["']?\s*([\w.:-]+)|^\s*<\?xml[^>]+encoding\s*=\s*["']([\w.:-]+)""", re.I
)
# Encodings that pages are written in. Python knows others that are none of text.
KNOWN = re.compile(r"(?:windows|cp|iso|latin|koi8|mac|shift|sjis|euc|gb|big5|hz|tis|ibm)[\w-]*|utf-8", re.I)
# Never shown.
HIDDEN = {"script", "style", "template", "iframe", "noembed", "noframes"}
NAVIGATION = "nav"
NAVIGATION_CHARACTERS = 20_000  # a longer one is content, or lacks its end
LINES = set(
    "address article aside blockquote body br button caption center dd details dialog div dl dt fieldset figcaption "
    "figure footer form header hgroup hr html legend li main menu nav ol optgroup option pre search section select "
    "summary table tbody textarea tfoot thead title tr ul".split()
)
PARAGRAPHS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "table", "ul", "ol", "dl", "hr", "title"}
CELLS = {"td", "th"}
AS_WRITTEN = {"pre", "textarea", "listing", "xmp", "plaintext"}
ROWS = {"tr", "thead", "tbody", "tfoot", "caption"}
BLANK_RANKS = ("", " ", "\n", "\n\n")
BLANKS = re.compile(r"[ \t\n\r\f]+")


def read(file: BinaryIO, memory_bytes: int) -> Iterator[tuple[str, None]]:
    """The text in pieces. A block element has lines of its own, a table row one with tabs between its cells."""
    target = _Text()
    # huge_tree lifts limits on the length of names, attributes and comments, behind which text would be lost.
    parser = etree.HTMLParser(target=target, encoding="utf-8", huge_tree=True)
    decoder = codecs.getincrementaldecoder(_encoding(file))(errors="replace")
    file.seek(0)
    data = b"unread"
    while data:
        data = file.read(READ_BYTES)
        if text := decoder.decode(data, final=not data):
            parser.feed(text.encode("utf-8", "replace"))
            _check(parser)
        if piece := target.taken():
            yield piece, None
    target.returns_to = None  # navigation without an end is kept
    parser.close()
    _check(parser)
    if target.begun:
        yield f"{target.taken()}\n", None


def _check(parser: etree.HTMLParser) -> None:
    """After a fatal error lxml ignores the rest without a word. Faults of the page are not fatal."""
    for entry in parser.feed_error_log:
        if entry.type == etree.ErrorTypes.ERR_NO_MEMORY:
            raise MemoryError
        if entry.level == etree.ErrorLevels.FATAL:
            raise UnreadableDocument(f"it is broken in line {entry.line} ({entry.message})")


def _encoding(file: BinaryIO) -> str:
    """As browsers do: by byte order mark, else as declared, else UTF-8 if all of it is, else windows-1252."""
    file.seek(0)
    head = file.read(4096)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if declared := DECLARED.search(head):
        name = (declared[1] or declared[2]).decode("ascii", "replace").lower()
        if KNOWN.fullmatch(name):
            try:
                found = codecs.lookup(name).name
            except LookupError:
                return _guessed(file)
            return "cp1252" if found == "iso8859-1" else found  # which browsers take it for
    return _guessed(file)


def _guessed(file: BinaryIO) -> str:
    file.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while data := file.read(READ_BYTES):
            decoder.decode(data)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


class _Text:
    """Receives the parser's events and holds the text that was not taken yet."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._before = ""  # what is due before the next text: a blank, line ends, or the tabs between cells
        self.begun = False  # whether there was any text
        self._cells = 0  # of the row
        self._open = dict.fromkeys(("hidden", "as written", NAVIGATION), 0)  # open elements
        # Where navigation began: len(_parts), _before and begun.
        self.returns_to: tuple[int, str, bool] | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "br":
            self._due("\n\n" if self._before.startswith("\n") else "\n")
            return
        self._edge(tag)
        if tag in CELLS:
            self._cells += 1
            if self._cells > 1:
                self._before = "\t" * (self._before.count("\t") + 1)
        elif tag in ROWS:
            self._cells = 0
        elif tag == NAVIGATION and not self._open[NAVIGATION]:
            self.returns_to = (len(self._parts), self._before, self.begun)
        self._count(tag, 1)

    def end(self, tag: str) -> None:
        self._count(tag, -1)
        if tag == NAVIGATION and not self._open[NAVIGATION] and self.returns_to:
            if not self._is_long(begin := self.returns_to[0]):
                _, self._before, self.begun = self.returns_to
                del self._parts[begin:]
            self.returns_to = None
        if tag in ROWS:
            self._before = "\n"
        elif tag != "br":
            self._edge(tag)

    def data(self, text: str) -> None:
        if self._open["hidden"]:
            return
        if self._open["as written"]:
            self._add(text)
            return
        text = BLANKS.sub(" ", text)
        if text.startswith(" "):
            self._due(" ")
        if words := text.strip(" "):
            self._add(words)
            if text.endswith(" "):
                self._due(" ")

    def close(self) -> None: ...

    def taken(self) -> str:
        """The text since the last call, without what may prove to be navigation."""
        count = len(self._parts)
        if self.returns_to and self._is_long(self.returns_to[0]):
            self.returns_to = None
        if self.returns_to:
            count, before, begun = self.returns_to
            self.returns_to = (0, before, begun)
        text = "".join(self._parts[:count])
        del self._parts[:count]
        return text

    def _is_long(self, begin: int) -> bool:
        return sum(map(len, self._parts[begin:])) > NAVIGATION_CHARACTERS

    def _count(self, tag: str, change: int) -> None:
        if tag in HIDDEN:
            self._open["hidden"] += change
        elif tag in AS_WRITTEN:
            self._open["as written"] += change
        elif tag == NAVIGATION:
            self._open[NAVIGATION] += change

    def _edge(self, tag: str) -> None:
        if tag in ROWS:  # without the tabs of empty cells
            self._before = self._before.strip("\t ") or "\n"
        elif tag in PARAGRAPHS:
            self._due("\n\n")
        elif tag in LINES:
            self._due("\n")

    def _due(self, blanks: str) -> None:
        # Blocks that a cell begins or ends with do not divide its row.
        if "\t" not in self._before and BLANK_RANKS.index(blanks) > BLANK_RANKS.index(self._before):
            self._before = blanks

    def _add(self, text: str) -> None:
        if self.begun:
            self._parts.append(self._before)
        self._parts.append(text)
        self._before, self.begun = "", True
