"""The files of a question: found in the arguments, read one after the other, hashed as one document."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.asking.parsing import ParseLimits, document_hash, kind_of, printable, read_document
from pipeline.asking.sections import Place, PlacedText
from pipeline.errors import UnreadableDocument

BETWEEN = "\n\n"  # two documents
MOST_FILES = 10_000  # of a folder
PLAIN = ("text", "markdown")  # kinds of files whose size is that of their text


@dataclass(frozen=True)
class SourceFile:
    """A file to read, and its name in places and messages."""

    path: Path
    name: str


def find_files(paths: Sequence[Path]) -> tuple[list[SourceFile], list[str]]:
    """The files that are named, and those in folders that are named, by path.

    In a folder, all files of known kinds are found, in its folders too. Hidden files, links and files of other kinds
    are left out.

    Returns:
        The files, and for each file of a folder that was left out for its kind, why.

    Raises:
        UnreadableDocument: a file that is named cannot be read, or a folder has no readable files or too many.
    """
    found: list[SourceFile] = []
    left_out: list[str] = []
    for path in paths:
        if not path.is_dir():
            kind_of(path)
            found.append(SourceFile(path, printable(path)))
            continue
        before = len(found)
        for file in _files_of(path):
            try:
                kind_of(file)
            except UnreadableDocument as error:
                left_out.append(str(error))
                continue
            found.append(SourceFile(file, printable(file)))
        if len(found) == before:
            reasons = "".join(f"\n  {reason}" for reason in left_out[:5])
            raise UnreadableDocument(f"{printable(path)}: there is no file in this folder that can be read{reasons}")
    return found, left_out


def _files_of(folder: Path) -> list[Path]:
    """The files in a folder and its folders, by path, without hidden ones and links."""
    files: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent) / name for name in names if not name.startswith(".")]
        files += [path for path in paths if path.is_file() and not path.is_symlink()]
        if len(files) > MOST_FILES:
            raise UnreadableDocument(f"{printable(folder)}: the folder has more than {MOST_FILES:,} files")
    return sorted(files)


def read_files(files: Sequence[SourceFile], limits: ParseLimits) -> Iterator[PlacedText]:
    """The text of all files in order, with an empty line between two files.

    Raises:
        UnreadableDocument: a file cannot be read, or exceeds a limit.
    """
    for number, file in enumerate(files):
        place = Place(file.name, None, 1)
        for piece in placed_text(file.path, file.name, limits):
            place = piece.place
            yield piece
        if number + 1 < len(files):
            yield PlacedText(BETWEEN, place)


def placed_text(path: Path, name: str, limits: ParseLimits) -> Iterator[PlacedText]:
    """The text of a file, in pieces that have its name in their places.

    Raises:
        UnreadableDocument: the file cannot be read, or exceeds a limit.
    """
    for block in read_document(path, limits):
        yield PlacedText(block.text, Place(name, block.page, block.line))


def text_bytes(files: Sequence[SourceFile], limits: ParseLimits) -> int:
    """The size of the files' text in bytes. PDF, HTML and DOCX files are parsed for it.

    Raises:
        UnreadableDocument: a file cannot be read, or exceeds a limit.
    """
    between = len(BETWEEN) * (len(files) - 1)
    return between + sum(
        file.path.stat().st_size
        if kind_of(file.path) in PLAIN
        else sum(len(block.text.encode(errors="replace")) for block in read_document(file.path, limits))
        for file in files
    )


def files_hash(files: Sequence[SourceFile]) -> list[list[str]]:
    """What the text depends on: the content of each file, and its kind, which its name may decide."""
    return [[document_hash(file.path), kind_of(file.path)] for file in files]
