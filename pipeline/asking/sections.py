"""A document as it is read: streamed from its files, tokenized, and cut into sections that know their places.

A section is a chunk of the agent with its text. The tokens are those of training, which encodes the document as a
whole (`encode_stream`).
"""

import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import BadRow, ConfigError
from pipeline.text import encode_stream, token_starts


@dataclass(frozen=True)
class Place:
    """Where a piece of text is: a file as it was named, its page if it has pages, its line."""

    file: str
    page: int | None
    line: int


@dataclass(frozen=True)
class PlacedText:
    """A piece of the document that comes from one place."""

    text: str
    place: Place


@dataclass(frozen=True)
class Section:
    """A section of the document.

    Attributes:
        number: from 1.
        tokens: int32 [n].
        text: the text of the tokens.
        starts: the first character in `text` of each piece that the section has a part of.
        places: the place of that part.
    """

    number: int
    tokens: np.ndarray
    text: str
    starts: tuple[int, ...]
    places: tuple[Place, ...]

    def place(self, character: int = 0) -> Place:
        """The place of a character of `text`."""
        piece = max(bisect_right(self.starts, character) - 1, 0)
        found = self.places[piece]
        return replace(found, line=found.line + self.text.count("\n", self.starts[piece], character))


class StreamedDocument:
    """The document for an agent: `question` and `chunks`, like `TokenizedProblem` (pipeline/agents/reader.py).

    At most one section is kept before the agent takes it, so a document of any length needs the same memory. Only
    `read_whole`, for agents that need the whole, reads all of it at once.

    Args:
        question: the question's tokens.
        pieces: the document's text in order, in pieces of any length.
        tokenizer: the model's; a fast one.
        chunk_tokens: tokens of a section.
        most_tokens: most tokens of the document.
        taken: called with each section before the agent gets it.

    Raises (while it is read):
        BadRow: the document has no tokens or too many.
        ConfigError: the tokenizer cannot be used.
        Exception: an error of `pieces`.
    """

    def __init__(self, question, pieces: Iterable[PlacedText], tokenizer, chunk_tokens: int, most_tokens: int, taken):
        self.question: list[int] = question
        self.chunk_tokens = chunk_tokens
        self.tokens = 0  # read so far
        self.bytes = 0  # of the sections' text as UTF-8
        self.ended = False  # whether all sections were read, so that their number is known
        self.sections = 0  # read so far
        self.stopped = self.abandoned = False
        self._whole: np.ndarray | None = None
        self._failure: Exception | None = None
        self._most, self._taken = most_tokens, taken
        self._sections = sections_of(pieces, tokenizer, chunk_tokens)
        self._ready: deque[Section] = deque()
        self.lock = threading.Lock()  # held while the tokenizer is used, which two threads must not do at once

    def prepare(self) -> None:
        """Read the next section ahead, unless one is ready. May run in another thread, to not delay an event loop."""
        with self.lock:
            if not self._ready and not self.ended and not self.abandoned:
                self._read()

    def stop(self) -> None:
        """End the document here: `chunks` yields no more."""
        self.stopped = True

    def abandon(self) -> None:
        """Let threads that still read end soon; what they have read is used by nobody."""
        self.abandoned = True

    def close(self) -> None:
        """End the parser of the file that is being read, when no thread reads any more."""
        with self.lock:
            self._sections.close()

    def chunks(self, size: int) -> Iterator[list[int]]:
        """Yield the sections' tokens until the document ends or is stopped."""
        if size != self.chunk_tokens:
            raise ConfigError(f"the agent asks for chunks of {size} tokens, not of agent.chunk_tokens")
        while not self.stopped and (section := self._next()) is not None:
            self._taken(section)
            yield section.tokens.tolist()

    @property
    def is_used_up(self) -> bool:
        """Whether all sections were taken."""
        return self.ended and not self._ready

    @property
    def document(self) -> np.ndarray:
        """All tokens, int32 [N]; for agents that need the whole document, after `read_whole`."""
        if self._whole is None:
            raise ConfigError("the agent reads the document as a whole; ask with --method direct, memory or concat")
        return self._whole

    def read_whole(self) -> None:
        """Take all sections at once, for `document`."""
        tokens = []
        while not self.abandoned and (section := self._next()) is not None:
            self._taken(section)
            tokens.append(section.tokens)
        if not self.abandoned:
            self._whole = np.concatenate(tokens)

    def _next(self) -> Section | None:
        self.prepare()
        with self.lock:
            return self._ready.popleft() if self._ready else None

    def _read(self) -> None:
        if self._failure is not None:  # a generator that has raised looks as if it had ended
            raise self._failure
        try:
            self._read_section()
        except Exception as error:
            self._failure = error
            raise

    def _read_section(self) -> None:
        section = next(self._sections, None)
        if section is None:
            self.ended = True
            if not self.sections:
                raise BadRow("the document is empty: there is no text in it")
            return
        self.tokens += len(section.tokens)
        if self.tokens > self._most:
            raise BadRow(f"the document has over agent.document_tokens={self._most} tokens; ask about a part of it")
        self.bytes += len(section.text.encode(errors="replace"))
        self.sections += 1
        self._ready.append(section)


def sections_of(pieces: Iterable[PlacedText], tokenizer, chunk_tokens: int) -> Generator[Section, None, None]:
    """Cut a document into sections of `chunk_tokens` tokens; the last may be shorter.

    Raises:
        ConfigError: the tokenizer cannot tell which text a token has, or reads special tokens in plain text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError("the model has no fast tokenizer (tokenizer.json), which is needed to say where text is")
    places = _Places()
    number, begin = 0, 0
    text, tokens, starts = "", np.zeros(0, np.int32), np.zeros(0, np.int64)
    try:
        for block, encoded in encode_stream(tokenizer, places.texts(pieces)):
            starts = np.concatenate([starts, len(text) + np.array(token_starts(tokenizer, block), np.int64)])
            text, tokens = text + block, np.concatenate([tokens, encoded])
            used = 0
            while len(tokens) - used > chunk_tokens:  # the last one waits for the end, which is its own
                number += 1
                first, end = _first(starts, used), int(starts[used + chunk_tokens])
                yield places.section(number, tokens[used : used + chunk_tokens], text[first:end], begin + first)
                used += chunk_tokens
            first = _first(starts, used)
            begin, text, tokens, starts = begin + first, text[first:], tokens[used:], starts[used:] - first
    except ValueError as error:
        if isinstance(error, (ConfigError, BadRow)) or type(error) is not ValueError:
            raise
        raise ConfigError(f"the document cannot be encoded: {error}") from None
    if len(tokens):
        yield places.section(number + 1, tokens, text, begin)


def _first(starts: np.ndarray, used: int) -> int:
    """The first character that is not of the `used` first tokens. A document's first token may begin behind blanks."""
    return int(starts[used]) if used and used < len(starts) else 0


class _Places:
    """The places of the pieces that are in use: those since the last section."""

    def __init__(self):
        self._starts: list[int] = []  # the piece's first character in the document
        self._places: list[Place] = []

    def texts(self, pieces: Iterable[PlacedText]) -> Iterator[str]:
        """The texts of the pieces, whose places are noted."""
        character = 0
        for piece in pieces:
            if piece.text:
                self._starts.append(character)
                self._places.append(piece.place)
                character += len(piece.text)
                yield piece.text

    def section(self, number: int, tokens: np.ndarray, text: str, begin: int) -> Section:
        """The section whose text begins at this character of the document; the next one begins where it ends."""
        end = begin + len(text)
        within = max(bisect_left(self._starts, end), 1)
        starts = tuple(start - begin for start in self._starts[:within])
        section = Section(number, tokens, text, starts, tuple(self._places[:within]))
        last = self._places[within - 1]
        if within == len(self._starts) or self._starts[within] > end:  # the next section begins in the last piece
            passed = text.count("\n", starts[-1])
            self._starts[:within], self._places[:within] = [end], [replace(last, line=last.line + passed)]
        else:
            del self._starts[:within], self._places[:within]
        return section
