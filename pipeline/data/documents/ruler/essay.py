"""The essay haystack: a user's text, split into sentences."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.rows import decode_line, text_field
from pipeline.errors import BadRow, DataError
from pipeline.files import exists, is_file, list_files, open_input

TITLE = r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)"  # a full stop that ends no sentence
SENTENCE_END = re.compile(rf"(?<=[.!?]){TITLE}\s+|(?<=[.!?][\"')\]”’])\s+|(?<=[。！？])\s*")
LONGEST_SENTENCE = 400  # characters; a longer one, or a text without full stops, is broken between words


def load_essay(path: str | Path) -> tuple[str, ...]:
    """The sentences of a text file, of all .txt files in a folder, sorted by name, or of JSON.

    A .jsonl file has an object with the field "text" on each line; a .json file has one such object or a list of them.
    Runs of blanks and line ends count as one blank. The path may be a URI (pipeline/files.py).

    Raises:
        DataError: the file or folder is missing, has another format, or holds no text.
    """
    path = str(path)
    sentences = tuple(sentence for text in _texts(path) for sentence in _sentences(text))
    if not sentences:
        raise DataError(f"the essay {path} holds no text")
    return sentences


def _sentences(text: str) -> Iterator[str]:
    for sentence in SENTENCE_END.split(" ".join(text.split())):
        if len(sentence) > LONGEST_SENTENCE:
            yield from textwrap.wrap(sentence, LONGEST_SENTENCE, break_on_hyphens=False)
        elif sentence:
            yield sentence


def _texts(path: str) -> Iterator[str]:
    if not exists(path):
        raise DataError(f"there is no essay {path}; give a text file, a folder of .txt files, .json or .jsonl")
    if not is_file(path):
        files = list_files(path, [".txt"])
        if not files:
            raise DataError(f"the essay folder {path} holds no .txt file")
        yield from map(_content, files)
        return
    if not path.endswith((".json", ".jsonl")):
        yield _content(path)
        return
    for place, row in _rows(path):
        try:
            yield text_field(row, "text")
        except BadRow as error:
            raise DataError(f"{place}: {error}; expected an object with the field 'text'") from None


def _content(path: str) -> str:
    with open_input(path) as file:
        return file.read().decode(errors="replace")


def _rows(path: str) -> Iterator[tuple[str, object]]:
    if path.endswith(".jsonl"):
        for number, line in enumerate(_content(path).split("\n"), 1):
            if line.strip():
                yield f"{path}:{number}", _decoded(line, f"{path}:{number}:")
        return
    rows = _decoded(_content(path), f"{path} is")
    yield from ((path, row) for row in (rows if isinstance(rows, list) else [rows]))


def _decoded(text: str, subject: str) -> object:
    try:
        return decode_line(text)
    except BadRow as error:
        raise DataError(f"{subject} {error}") from None
