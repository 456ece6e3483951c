"""DOCX files become text in reading order; archives that harm are refused."""

import io
import struct
import zipfile

import pytest

from pipeline.asking.parsing import ParseLimits, UnreadableDocument, kind_of, read_document
from tests.support.document_files import replaced, word

BODY = "word/document.xml"
LIMITS = ParseLimits(memory_bytes=240 << 20)


@pytest.fixture
def read(tmp_path):
    def read(data: bytes, limits: ParseLimits = LIMITS) -> str:
        path = tmp_path / "a.docx"
        path.write_bytes(data)
        assert kind_of(path) == "docx"
        return "".join(block.text for block in read_document(path, limits))

    return read


def fill(document) -> None:
    document.add_heading("The title", 1)
    document.add_paragraph("Grüße <b>&amp;\tafter a tab\nafter a break")
    table = document.add_table(2, 3)
    for number, cell in enumerate(table._cells):
        cell.text = "" if number == 1 else f"cell {number}"
    document.add_heading("Below", 2)
    document.add_paragraph("end")


def in_body(xml: str) -> bytes:
    """A document with one paragraph "before" and this XML behind it."""
    data = word(lambda document: document.add_paragraph("before"))
    return replaced(data, BODY, lambda body: body.replace(b"<w:sectPr", xml.encode() + b"<w:sectPr", 1))


def run(text: str) -> str:
    return f"<w:r><w:t>{text}</w:t></w:r>"


def test_headings_paragraphs_and_tables_are_read_in_order(read):
    assert read(word(fill)) == (
        "The title\nGrüße <b>&amp;\tafter a tab\nafter a break\ncell 0\t\tcell 2\ncell 3\tcell 4\tcell 5\nBelow\nend\n"
    )


def test_a_long_document_is_whole_and_its_lines_are_counted(tmp_path):
    (tmp_path / "a.docx").write_bytes(
        in_body("".join(f"<w:p>{run(f'line {i} ' + 'x' * 90)}</w:p>" for i in range(2, 3000)))
    )
    found = list(read_document(tmp_path / "a.docx"))
    assert len(found) > 1
    assert [line.split()[:2] for line in "".join(block.text for block in found).splitlines()] == [
        ["before"],
        *(["line", str(i)] for i in range(2, 3000)),
    ]
    assert all(block.text.startswith(f"line {block.line} ") for block in found[1:])


@pytest.mark.parametrize(
    ("xml", "text"),
    [
        (f"<w:sdt><w:sdtContent><w:p>{run('control')}</w:p></w:sdtContent></w:sdt>", "control"),
        (f"<w:p><w:ins w:id='1'>{run('inserted')}</w:ins></w:p>", "inserted"),
        (f"<w:p><w:hyperlink>{run('linked')}</w:hyperlink></w:p>", "linked"),
        ("<w:p><w:del w:id='1'><w:r><w:delText>deleted</w:delText></w:r></w:del></w:p>", ""),
        (f"<w:p><w:moveFrom w:id='1'>{run('moved')}</w:moveFrom></w:p><w:p>{run('moved')}</w:p>", "moved"),
        ("<w:p><w:pPr><w:tabs><w:tab w:val='left' w:pos='9'/></w:tabs></w:pPr></w:p>", ""),
        (
            "<w:p><mc:AlternateContent xmlns:mc='http://schemas.openxmlformats.org/markup-compatibility/2006'>"
            f"<mc:Choice Requires='wps'><w:p>{run('box')}</w:p></mc:Choice>"
            f"<mc:Fallback><w:p>{run('box')}</w:p></mc:Fallback></mc:AlternateContent></w:p>",
            "box",
        ),
    ],
)
def test_text_is_read_wherever_it_stands_and_once(read, xml, text):
    assert read(in_body(xml)).split() == ["before", *text.split()]


def test_footnotes_follow_the_text(read):
    notes = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/footnotes"
    relation = f'<Relationship Id="rId99" Type="{notes}" Target="footnotes.xml"/></Relationships>'
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml"
    override = f'<Override PartName="/word/footnotes.xml" ContentType="{kind}"/></Types>'
    namespace = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = (
        f"<w:footnotes xmlns:w='{namespace}'><w:footnote w:id='1'><w:p>{run('a note')}</w:p></w:footnote></w:footnotes>"
    )
    data = word(lambda document: document.add_paragraph("text"))
    data = replaced(data, "word/footnotes.xml", lambda nothing: body.encode())
    data = replaced(
        data, "word/_rels/document.xml.rels", lambda old: old.replace(b"</Relationships>", relation.encode())
    )
    data = replaced(data, "[Content_Types].xml", lambda old: old.replace(b"</Types>", override.encode()))
    assert read(data) == "text\na note\n"


def test_a_document_without_text_is_refused(read):
    with pytest.raises(UnreadableDocument, match="holds no text"):
        read(word(lambda document: None))


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(read):
    bomb = replaced(word(fill), "word/media/image1.png", lambda nothing: bytes(70_000_000))
    assert len(bomb) < 300_000
    with pytest.raises(UnreadableDocument, match=r"would unpack to 70,\d\d\d,\d\d\d bytes; the limit is 62,914,560"):
        read(bomb)


def test_an_archive_that_lies_about_its_sizes_is_refused(read):
    bomb = bytearray(replaced(word(fill), "word/media/image1.png", lambda nothing: bytes(70_000_000)))
    for signature, offset, length, name in ((b"PK\x01\x02", 24, 46, 28), (b"PK\x03\x04", 22, 30, 26)):
        place = -1
        while (place := bomb.find(signature, place + 1)) >= 0:
            size = struct.unpack_from("<H", bomb, place + name)[0]
            if bomb[place + length : place + length + size] == b"word/media/image1.png":
                struct.pack_into("<I", bomb, place + offset, 1000)
    with zipfile.ZipFile(io.BytesIO(bomb)) as archive:
        assert archive.getinfo("word/media/image1.png").file_size == 1000
    with pytest.raises(UnreadableDocument, match="broken ZIP archive"):
        read(bytes(bomb))


@pytest.mark.parametrize("part", [BODY, "word/styles.xml", "[Content_Types].xml", "word/_rels/document.xml.rels"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_declared_entities_are_refused(read, part, encoding):
    laughs = "<!DOCTYPE x [<!ENTITY a0 'ha'>" + "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 10))

    def change(data: bytes) -> bytes:
        text = data.decode().partition("?>")[2].replace(">before<", ">&a9;<")
        return f"<?xml version='1.0' encoding='{encoding}'?><!-- x -->{laughs}]>{text}".encode(encoding)

    with pytest.raises(UnreadableDocument, match="declares a document type"):
        read(replaced(in_body(""), part, change))


def test_a_document_that_lacks_memory_is_refused(read):
    with pytest.raises(UnreadableDocument, match="takes more than 120 MiB of memory"):
        read(in_body(f"<w:p>{run('x')}</w:p>" * 700_000), ParseLimits(memory_bytes=120 << 20))


def test_deep_xml_is_refused(read):
    with pytest.raises(UnreadableDocument, match="it is broken"):
        read(in_body("<w:sdt>" * 100_000 + "</w:sdt>" * 100_000))


def test_other_archives_are_refused(read):
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(UnreadableDocument, match="no complete Word document"):
        read(written.getvalue())
    for broken in (word(fill)[:-30], word(fill)[:2000], b"PK\x03\x04" + b"x" * 100):
        with pytest.raises(UnreadableDocument, match="broken ZIP archive"):
            read(broken)
    macros = replaced(
        word(fill),
        "[Content_Types].xml",
        lambda old: old.replace(
            b"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml",
            b"application/vnd.ms-word.document.macroEnabled.main+xml",
        ),
    )
    with pytest.raises(UnreadableDocument, match="no complete Word document.*save it as DOCX"):
        read(macros)
