"""Text and Markdown files become blocks; other things at a path are refused with words."""

import hashlib
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.asking import blocks
from pipeline.asking.parsing import ParseLimits, UnreadableDocument, document_hash, kind_of, read_document
from pipeline.asking.plain_text import READ_BYTES
from pipeline.errors import DataError


def written(folder: Path, data: bytes, name: str = "a.txt") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


DEFAULT = ParseLimits()


def text_of(path: Path, limits: ParseLimits = DEFAULT) -> str:
    return "".join(block.text for block in read_document(path, limits))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"word", "word"),
        ("Grüße, 世界 🌍\n".encode(), "Grüße, 世界 🌍\n"),
        (b"\xef\xbb\xbfmarked", "marked"),
        ("Grüße".encode("utf-16"), "Grüße"),
        (b"\xfe\xff" + "Grüße".encode("utf-16-be"), "Grüße"),
        (b"one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        (b"<script>alert(1)</script> {{x}} ${y} \x1b[31m", "<script>alert(1)</script> {{x}} ${y} \x1b[31m"),
    ],
)
def test_text_is_decoded_and_stays_as_it_is(tmp_path, data, text):
    assert text_of(written(tmp_path, data)) == text


def test_a_line_end_on_the_edge_of_two_reads_is_one(tmp_path):
    data = b"x" * (READ_BYTES - 1) + b"\r\n" + "ü".encode() * READ_BYTES
    assert text_of(written(tmp_path, data)) == data.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b" \n\t \r\n", "no text"),
        (b"\xef\xbb\xbf", "no text"),
        (b"a\0b", "NUL bytes"),
        (b"a" * 100_000 + b"\0", "NUL bytes"),
        ("one\ntwo\nGrüße".encode("cp1252"), "line 3 holds the invalid byte 0xfc"),
        (b"a\n" * 100_000 + b"\xff", "line 100001 holds the invalid byte 0xff"),
        (b"cut in a character: \xc3", "line 1 holds the invalid byte 0xc3"),
        (b"\xff\xfea", "begins as UTF-16"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100), "old Word file"),
        (b"{\\rtf1 hello}", "RTF"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "NUL bytes"),
        (bytes(range(1, 256)) * 20, "iconv"),
    ],
)
def test_what_is_no_text_is_refused_with_what_to_do(tmp_path, data, reason):
    path = written(tmp_path, data)
    with pytest.raises(UnreadableDocument, match=reason) as refused:
        list(read_document(path))
    assert str(refused.value).startswith(f"{path}: it ")
    assert isinstance(refused.value, DataError)


def test_nothing_is_yielded_of_a_text_file_that_is_broken_further_on(tmp_path):
    path = written(tmp_path, b"fine\n" * 100_000 + b"\xff")
    with pytest.raises(UnreadableDocument):
        next(read_document(path))


@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from("\n\r ab"), min_size=1),
    size=st.integers(1, 20),
)
def test_blocks_join_to_the_document_and_know_their_lines(tmp_path_factory, text, size):
    path = written(tmp_path_factory.getbasetemp(), text.encode())
    expected = path.read_text(encoding="utf-8-sig")  # Python's own universal line ends
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(blocks, "BLOCK_CHARACTERS", size)
        if not expected.strip():
            with pytest.raises(UnreadableDocument):
                list(read_document(path))
            return
        found = list(read_document(path))
    assert "".join(block.text for block in found) == expected
    begin = 0
    for block in found:
        assert 0 < len(block.text) <= size and block.page is None
        assert block.line == len((expected[:begin] + "x").split("\n"))
        begin += len(block.text)


def test_blocks_end_after_a_line_or_a_word_where_they_can(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 8)
    pieces = list(blocks.cut(["one\ntwo", "\nfour five sixseveneight"]))
    assert pieces == ["one\ntwo\n", "four ", "five ", "sixseven", "eight"]


def test_a_long_text_file_is_read_in_flat_memory(tmp_path):
    path = tmp_path / "long.txt"
    line = "A line of a file that is longer than any memory should hold, with an ümlaut.\n" * 1000
    with path.open("w", encoding="utf-8") as file:
        for _ in range(1300):
            file.write(line)
    assert path.stat().st_size > 100_000_000
    tracemalloc.start()
    try:
        characters = sum(len(block.text) for block in read_document(path))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert characters == 1300 * len(line)


def test_limits_of_a_text_file(tmp_path):
    path = written(tmp_path, b"12345")
    assert text_of(path, ParseLimits(file_bytes=5, characters=5)) == "12345"
    with pytest.raises(UnreadableDocument, match="5 bytes; the limit is 4"):
        text_of(path, ParseLimits(file_bytes=4))
    with pytest.raises(UnreadableDocument, match="more than 4 characters"):
        next(read_document(path, ParseLimits(characters=4)))


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.txt", b"# Title", "text"),
        ("a", b"# Title", "text"),
        ("a.MD", b"# Title", "markdown"),
        ("a.md", b'<p align="center"><img></p>\n# Title', "markdown"),
        ("a.md", b"<!DOCTYPE html><p>x", "html"),
        ("a.txt", b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- saved -->\n<!doctype  HTML><p>", "html"),
        ("a.txt", "<html><p>".encode("utf-16"), "html"),
        ("a.html", b"<p>x", "html"),
        ("a.txt", b"<p>x", "text"),
        ("a.txt", b"<htmlx>", "text"),
        ("a.txt", b"%PDF-1.7\n", "pdf"),
        ("a.txt", b"junk\n%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj", "pdf"),
        ("a.txt", b"A PDF file begins with %PDF-1.7", "text"),
        ("a.txt", b"PK\x03\x04...", "docx"),
        ("a.pdf", b"no PDF", "text"),
    ],
)
def test_content_tells_the_kind_and_the_name_only_where_content_cannot(tmp_path, name, data, kind):
    assert kind_of(written(tmp_path, data, name)) == kind


@pytest.mark.parametrize("read", [lambda path: list(read_document(path)), kind_of, document_hash])
def test_what_is_no_file_is_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    expected = {
        "missing": "No such file",
        ".": "Is a directory",
        "pipe": "it is no regular file",
        "loop": "symbolic links",
        "a\0b": "null byte",
        "x" * 300: "name too long",
    }
    for name, reason in expected.items():
        with pytest.raises(UnreadableDocument, match=reason):
            read(tmp_path / name)
    with pytest.raises(UnreadableDocument, match="it is no regular file"):
        read(Path("/dev/zero"))


def test_a_link_to_a_file_is_read(tmp_path):
    (tmp_path / "link").symlink_to(written(tmp_path, b"word"))
    assert text_of(tmp_path / "link") == "word"


def test_names_are_printed_without_control_characters(tmp_path):
    path = written(tmp_path, b"", "a\n\x1b[31m\u202e[bold]<b>ü.txt")
    with pytest.raises(UnreadableDocument) as refused:
        list(read_document(path))
    assert str(refused.value) == f"{tmp_path}/a\\n\\x1b[31m\\u202e[bold]<b>ü.txt: it is empty"
    raw = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    with pytest.raises(UnreadableDocument) as refused:
        kind_of(raw)
    assert str(refused.value).encode().startswith(f"{tmp_path}/\\udcff: ".encode())


def test_the_hash_is_of_the_bytes(tmp_path):
    data = os.urandom(3_000_000)
    assert document_hash(written(tmp_path, data)) == hashlib.sha256(data).hexdigest()
