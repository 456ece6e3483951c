"""PDF files become text with page numbers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.asking.blocks import BLOCK_CHARACTERS
from pipeline.asking.parsing import ParseLimits, UnreadableDocument, kind_of, read_document
from tests.support.document_files import encrypted, pdf

PAGES = [["First page", "its second line"], [], ["Third: Gr\xfc\xdfe <b>no markup</b>"]]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.pdf"


def test_pages_with_text_are_blocks_with_their_numbers(path):
    path.write_bytes(pdf(PAGES))
    assert kind_of(path) == "pdf"
    found = [(block.text, block.page, block.line) for block in read_document(path)]
    assert found == [("First page\nits second line\n", 1, 1), ("Third: Grüße <b>no markup</b>\n", 3, 1)]


@settings(max_examples=8)
@given(st.lists(st.lists(st.text("abc xyz", min_size=1).filter(str.strip), max_size=4), min_size=1, max_size=6))
def test_every_page_is_where_it_was_written(tmp_path_factory, pages):
    path = tmp_path_factory.getbasetemp() / "written.pdf"
    path.write_bytes(pdf(pages))
    wanted = {number: [line.split() for line in lines] for number, lines in enumerate(pages, 1) if lines}
    if not wanted:
        with pytest.raises(UnreadableDocument, match="scanned"):
            list(read_document(path))
        return
    found = {block.page: [line.split() for line in block.text.splitlines()] for block in read_document(path)}
    assert found == wanted


def test_a_long_page_is_cut_and_its_lines_are_counted(path):
    lines = [f"line {number} " + "x" * 90 for number in range(1, 1500)]
    path.write_bytes(pdf([lines, ["next"]]))
    *found, last = read_document(path)
    assert len(found) > 1 and (last.page, last.line) == (2, 1)
    for block in found:
        assert block.page == 1 and len(block.text) <= BLOCK_CHARACTERS
        assert block.text.startswith(f"line {block.line} ")


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
def test_an_encrypted_file_is_refused_unless_its_password_is_empty(path, algorithm):
    path.write_bytes(encrypted(pdf(PAGES), algorithm, "secret"))
    with pytest.raises(UnreadableDocument, match="encrypted; save it without a password"):
        list(read_document(path))
    path.write_bytes(encrypted(pdf(PAGES), algorithm, ""))
    assert [block.page for block in read_document(path)] == [1, 3]


def test_a_scanned_file_is_refused_with_what_to_do(path):
    path.write_bytes(pdf([[], []]))
    with pytest.raises(UnreadableDocument, match="none of its 2 pages holds text.*scanned.*ocrmypdf"):
        list(read_document(path))


def test_a_broken_file_is_refused(path):
    path.write_bytes(b"%PDF-1.7\nno object at all")
    with pytest.raises(UnreadableDocument, match="it is broken"):
        list(read_document(path))


def test_pages_that_contain_each_other_are_refused(path):
    path.write_bytes(pdf([["one"]]).replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]"))
    with pytest.raises(UnreadableDocument):
        list(read_document(path, ParseLimits(seconds=30)))


def test_a_page_that_unpacks_to_too_much_is_refused(path):
    """Three layers of compression make gigabytes of some kilobytes."""
    import zlib

    bomb = b" " * 30_000_000
    for _ in range(2):
        bomb = zlib.compress(bomb, 9)
    data = pdf([["x"]])
    begin, end = data.index(b"<< /Length"), data.index(b"endstream")
    head = b"<< /Filter [/FlateDecode /FlateDecode] /Length %d >>\nstream\n" % len(bomb)
    path.write_bytes(data[:begin] + head + bomb + b"\n" + data[end:])
    with pytest.raises(UnreadableDocument):
        list(read_document(path, ParseLimits(memory_bytes=256 << 20, seconds=60)))
