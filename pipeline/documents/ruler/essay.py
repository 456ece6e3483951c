"""The essay haystack: a user's text as sentences."""

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from pipeline.problems import BadRow, DataError, decode_line, text_field

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]”’])\s+|(?<=[。！？])\s*")
LONGEST_SENTENCE = 400  # characters; a longer one, or a text without full stops, is broken at words


def load_essay(path: str | Path) -> tuple[str, ...]:
    """The sentences of a text file, of all .txt files of a folder in the order of their names, or of JSON.

    A .jsonl file has an object with the field "text" in each line, a .json file one such object or a list of them.
    Runs of blanks and line ends count as one blank.

    Raises:
        DataError: there is no such file or folder, it has another format, or it holds no text.
    """
    path = Path(path)
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


def _texts(path: Path) -> Iterator[str]:
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise DataError(f"the essay folder {path} holds no .txt file")
        yield from (file.read_text(encoding="utf-8", errors="replace") for file in files)
        return
    if not path.is_file():
        raise DataError(f"there is no essay {path}; give a text file, a folder of .txt files, .json or .jsonl")
    content = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix not in (".json", ".jsonl"):
        yield content
        return
    for place, row in _rows(path, content):
        try:
            yield text_field(row() if callable(row) else row, "text")
        except BadRow as error:
            raise DataError(f"{place}: {error}; expected an object with the field 'text'") from None


def _rows(path: Path, content: str) -> Iterator[tuple[str, object]]:
    if path.suffix == ".jsonl":
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                yield f"{path}:{number}", lambda line=line: decode_line(line)
        return
    try:
        rows = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    yield from ((str(path), row) for row in (rows if isinstance(rows, list) else [rows]))
