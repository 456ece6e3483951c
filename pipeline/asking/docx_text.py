"""DOCX by python-docx. Runs in the process of pipeline/asking/parsers.py."""

import zipfile
from collections.abc import Iterator
from typing import BinaryIO
from xml.parsers import expat

import docx
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.oxml import parse_xml
from docx.oxml.ns import qn
from lxml import etree

from pipeline.asking.blocks import BLOCK_CHARACTERS
from pipeline.errors import UnreadableDocument

READ_BYTES = 1 << 16
UNPACKED_PART = 4  # a file may unpack to this part of the memory: a parsed tree takes several times its text
PARAGRAPH, RUN, ROW, CELL = (qn(name) for name in ("w:p", "w:r", "w:tr", "w:tc"))
TEXT = {qn("w:t"), qn("m:t")}
BLANKS = {qn("w:tab"): "\t", qn("w:br"): "\n", qn("w:cr"): "\n", qn("w:noBreakHyphen"): "-"}
# A drawing's second form, for old programs, repeats the text of the first; moved text stands at its new place too.
SKIPPED = {"{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback", qn("w:moveFrom")}
NOTES = (RELATIONSHIP_TYPE.FOOTNOTES, RELATIONSHIP_TYPE.ENDNOTES)


def read(file: BinaryIO, memory_bytes: int) -> Iterator[tuple[str, None]]:
    """Each paragraph on lines of its own, each table row on one with tabs between its cells; then the notes.

    Text boxes, content controls and inserted text are read where they stand. Deleted text, comments, page headers and
    footers are not read.
    """
    _check(file, memory_bytes // UNPACKED_PART)
    file.seek(0)
    try:
        document = docx.Document(file)
    except (KeyError, ValueError) as error:  # no main part, or that of another kind of document
        raise UnreadableDocument(
            f"it is a ZIP archive but no complete Word document ({error}); save it as DOCX"
        ) from None
    yield from _text(document.element.body)
    for related in document.part.rels.values():
        if related.reltype in NOTES and not related.is_external:
            yield from _text(parse_xml(related.target_part.blob))


def _check(file: BinaryIO, unpacked_bytes: int) -> None:
    """Refuse archives that unpack to more than is allowed, and XML with declarations of its own.

    Declared sizes are summed before anything is unpacked. Then each part is unpacked piece by piece: zipfile stops at
    the declared size and compares the checksum, so that no part is larger than it says.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            if (size := sum(part.file_size for part in parts)) > unpacked_bytes:
                raise UnreadableDocument(
                    f"it would unpack to {size:,} bytes; the limit is {unpacked_bytes:,}, a quarter of the memory limit"
                )
            for part in parts:
                if part.flag_bits & 1:
                    raise UnreadableDocument("it is an encrypted ZIP archive; save it without a password")
                with archive.open(part) as unpacked:
                    _check_part(part.filename, unpacked)
    except zipfile.BadZipFile as error:
        raise UnreadableDocument(f"it is a broken ZIP archive ({error}); save it again as DOCX") from None


def _check_part(name: str, unpacked) -> None:
    """Read a part to its end. Refuse it if it begins as XML with a document type, which can declare entities."""
    parser = expat.ParserCreate()
    begun = False

    def refuse(*declared: object) -> None:
        raise UnreadableDocument(f"its part {name} declares a document type, as no Word document does; it is refused")

    def begin(*element: object) -> None:
        nonlocal begun
        begun = True

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = begin
    while data := unpacked.read(READ_BYTES):
        if not begun:
            try:
                parser.Parse(data)
            except expat.ExpatError:  # a picture; or broken XML, on which lxml fails too
                begun = True


def _text(element: etree._Element) -> Iterator[tuple[str, None]]:
    """The text below an element in reading order, in pieces."""
    parts: list[str] = []
    size = 0  # of the parts
    due = ""  # before the next text: line ends, or the tabs between cells
    cells = [0]  # of the row, and of the rows around its table
    events = etree.iterwalk(element, events=("start", "end"))
    for event, node in events:
        if event == "start":
            text = ""
            if node.tag in SKIPPED:
                events.skip_subtree()
            elif node.tag in TEXT:
                text = node.text or ""
            elif node.tag in BLANKS and node.getparent().tag == RUN:
                text = BLANKS[node.tag]
            elif node.tag == ROW:
                cells.append(0)
            elif node.tag == CELL:
                due = "\t" * (due.count("\t") + 1) if cells[-1] else due
                cells[-1] += 1
            if text:
                parts += [due, text]
                size += len(text)
                due = ""
            continue
        if node.tag == PARAGRAPH and "\t" not in due:
            due = "\n\n" if due else "\n"
        elif node.tag == ROW:
            cells.pop()
            due = "\n"
        if size > BLOCK_CHARACTERS and due.startswith("\n") and len(cells) == 1:
            yield "".join(parts) + due, None
            parts, size, due = [], 0, ""
    if text := "".join(parts):
        yield f"{text}\n", None
