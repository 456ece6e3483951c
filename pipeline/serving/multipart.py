"""Forms with files (multipart/form-data), read as they come in: nothing of a file is held but the last bytes."""

import re
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pipeline.serving.errors import RequestError

HEADER_BYTES = 1 << 16  # at most, of a header: a file's name may be long
PARTS = 20  # at most
ESCAPED = re.compile(r"%(22|[01][0-9A-F])")  # how browsers and httpx write quotes and control characters in a name


@dataclass(frozen=True)
class Part:
    """A part of a form begins.

    Attributes:
        name: the field.
        filename: the name of a file, as the user gave it; None: a plain value.
    """

    name: str
    filename: str | None


class Form:
    """A form, part by part: `next_part`, then `data` for its bytes.

    Args:
        content_type: the header of the request.
        body: the request's body in pieces.

    Raises:
        RequestError: it is no form.
    """

    def __init__(self, content_type: str, body: AsyncIterator[bytes]):
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise RequestError(400, "send a form: multipart/form-data with the fields file and purpose")
        self._body = body
        self._found: deque[Part | bytes | None] = deque()  # None: a part ends
        self._parts = 0
        self._is_whole = False
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": lambda data, start, end: self._found.append(bytes(data[start:end])),
                    "on_part_end": lambda: self._found.append(None),
                    "on_end": self._on_end,
                },
                max_header_size=HEADER_BYTES,
            )
        except FormParserError as error:
            raise _malformed(error) from None

    async def next_part(self) -> Part | None:
        """The next part, after the rest of this one; None: there is no other.

        Raises:
            RequestError: the form is malformed, or ends before its end.
        """
        while True:
            found = await self._next()
            if isinstance(found, Part):
                return found
            if found is None and self._is_whole and not self._found:
                return None

    async def data(self) -> AsyncIterator[bytes]:
        """The rest of this part's bytes, in pieces. Raises `RequestError` as `next_part`."""
        while (found := await self._next()) is not None:
            assert isinstance(found, bytes)
            yield found

    async def _next(self) -> Part | bytes | None:
        while not self._found:
            if self._is_whole:
                return None
            chunk = await anext(self._body, None)
            if chunk is None:
                raise RequestError(400, "the form ends before its last boundary; send it again", code="incomplete")
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise _malformed(error) from None
        return self._found.popleft()

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS:
            raise RequestError(400, f"the form has more than {PARTS} parts")
        self._disposition = b""

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise RequestError(400, "a part of the form has no name")
        filename = options.get(b"filename")
        name = options[b"name"].decode(errors="replace")
        self._found.append(Part(name, None if filename is None else _unescaped(filename)))

    def _on_end(self) -> None:
        self._is_whole = True


def _unescaped(name: bytes) -> str:
    return ESCAPED.sub(lambda escape: chr(int(escape[1], 16)), name.decode(errors="replace"))


def _malformed(error: FormParserError) -> RequestError:
    return RequestError(400, f"the form is malformed: {error}")
