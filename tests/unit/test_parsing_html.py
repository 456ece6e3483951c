"""HTML files become the text that a browser shows."""

import time

import pytest

from pipeline.asking.parsing import ParseLimits, UnreadableDocument, read_document


@pytest.fixture
def read(tmp_path):
    def read(data: str | bytes) -> str:
        path = tmp_path / "a.html"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return "".join(block.text for block in read_document(path))

    return read


def test_elements_become_lines_and_paragraphs(read):
    page = """<!DOCTYPE html><html><head><title>The  title</title><meta charset=utf-8></head><body>
    <h1>Head<em>ing</em></h1><p>One
    <b>bold</b>, two<br>three<br><br>four</p><div>a<div>b</div></div>c<ul><li>i</li><li>j</ul>
    <pre>x\n  y</pre>&lt;b&gt; R&amp;D &#233;<hr>end</body></html>"""
    assert read(page) == (
        "The title\n\nHeading\n\nOne bold, two\nthree\n\nfour\n\na\nb\nc\n\ni\nj\n\nx\n  y\n\n<b> R&D é\n\nend\n"
    )


def test_a_table_row_is_a_line_with_tabs(read):
    page = "<table><tr><th>a</th><th></th><th><p>c</p></th></tr>\n<tr><td>1 <td> <i>2</i>\n<td>3</table>after"
    assert read(page) == "a\t\tc\n1\t2\t3\n\nafter\n"


@pytest.mark.parametrize(
    "hidden",
    [
        "<script>x = '<p>hidden</p>'</script>",
        "<style>p { content: 'hidden' }</style>",
        "<!-- hidden --><template><p>hidden</p></template>",
        "<iframe><p>hidden</p></iframe>",
        "<script><!-- hidden --></script>",
        "<svg><style>hidden</style></svg>",
        "<nav><ul><li><a href='/'>hidden</a></ul><nav>hidden</nav></nav>",
        "<img alt='hidden'><p title='hidden' onclick='hidden()'>",
    ],
)
def test_what_is_not_shown_is_no_text(read, hidden):
    text = read(f"<p>before</p>{hidden}<p>after</p>")
    assert "hidden" not in text and text.split() == ["before", "after"]


def test_a_script_without_end_is_a_script_to_the_end(read):
    with pytest.raises(UnreadableDocument, match="holds no text"):
        read("<html><script>all of it <p>")


def test_navigation_that_does_not_end_or_is_long_is_content(read):
    assert read("<p>before<nav><p>menu</p>") == "before\n\nmenu\n"
    words = "word " * 5000
    assert read(f"<p>before<nav><p>{words}</nav>after").split() == ["before", *words.split(), "after"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("<p>Grüße 世界".encode(), "Grüße 世界"),
        ("<p>Grüße".encode("utf-16"), "Grüße"),
        ("<meta charset='windows-1251'><p>Привет".encode("cp1251"), "Привет"),
        ("<meta content='text/html; charset=shift_jis'><p>日本".encode("shift_jis"), "日本"),
        ("<?xml version='1.0' encoding='iso-8859-2'?><html><p>Łódź".encode("iso-8859-2"), "Łódź"),
        ("<p>“Grüße”".encode("cp1252"), "“Grüße”"),  # not declared and not UTF-8
        ("<meta charset='iso-8859-1'><p>“Grüße”".encode("cp1252"), "“Grüße”"),
        (b"<meta charset=utf-8><p>a\xffb", "a\ufffdb"),
        (b"<meta charset=zip><p>a", "a"),
        (b"<meta charset=unicode_escape><p>\\x41", "\\x41"),
        (b"<p>a&#0;b&#xd800;c", "a\ufffdb\ufffdc"),
    ],
)
def test_encodings_are_those_that_browsers_find(read, data, text):
    assert read(data) == f"{text}\n"


@pytest.mark.parametrize("opened", ["<div>", "<table><tr><td>", "<b><i><a href=x>", "<p", "<nav>", "<", "&", "<!--"])
def test_depth_and_junk_cost_no_more_than_length(read, opened):
    begin = time.monotonic()
    try:
        assert "text" in read(f"<html><body>text{opened * 100_000}")
    except UnreadableDocument:
        pytest.fail("the text before it was lost")
    assert time.monotonic() - begin < 20


def test_a_long_page_keeps_all_of_its_text(read):
    page = "<html><body>" + "".join(f"<p class=c>number <b>{i}</b>" for i in range(50_000)) + "<!--" + "x" * 11_000_000
    text = read(page + "--><p>the end")
    assert text.split() == [word for i in range(50_000) for word in ("number", str(i))] + ["the", "end"]


@pytest.mark.parametrize("begin", ["<p>", "<p title='", "<!--", "</x>" * 1000 + "<p>"])
def test_a_page_that_lacks_memory_is_refused_and_not_cut(tmp_path, begin):
    path = tmp_path / "a.html"
    path.write_text(f"<html>text{begin}" + "x" * 50_000_000)
    with pytest.raises(UnreadableDocument, match="takes more than 64 MiB of memory; split it, or raise the limit"):
        list(read_document(path, ParseLimits(memory_bytes=64 << 20)))


def test_entities_of_a_document_type_are_not_expanded(read):
    declared = "<!DOCTYPE html [<!ENTITY a 'secret'><!ENTITY f SYSTEM 'file:///etc/passwd'>]>"
    text = read(f"{declared}<html><body><p>x &a; &f; y")
    assert text.endswith("x &a; &f; y\n") and "root:" not in text
