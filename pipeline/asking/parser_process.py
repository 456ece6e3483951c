"""Runs a parser (pipeline/asking/parsers.py) in a process of its own and receives the text.

The process gets the open file, no environment but the places of packages, and no way to change a file. It sets its own
limits before it reads. It ends when this process does.
"""

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.asking.blocks import BLOCK_CHARACTERS
from pipeline.errors import UnreadableDocument

ROOT = Path(__file__).parents[2]
LINE_BYTES = 8 * BLOCK_CHARACTERS  # at most, of a line from the parser: JSON takes up to 6 bytes per character
REASON_CHARACTERS = 300  # at most, of the parser's own message


def parse(
    kind: str, file: BinaryIO, characters: int, seconds: float, memory_bytes: int
) -> Iterator[tuple[str, int | None]]:
    """The text of an "html", "pdf" or "docx" file in pieces, each with its page (PDF) or None.

    Args:
        file: at its beginning.
        characters: limit of all pieces together.
        seconds: limit of the time that this process waits for the parser.
        memory_bytes: limit of the parser's address space.

    Raises:
        UnreadableDocument: the parser cannot read the file, or exceeds a limit, or has ended before its time.
    """
    too_slow = f"reading it takes more than {seconds:g} seconds; split it, or raise the limit"
    count, complete = 0, False
    alive, held = os.pipe()  # the parser ends when `held` is closed, if only because this process has ended
    try:
        process = _start(kind, file, alive, seconds, memory_bytes)
    except BaseException:
        os.close(held)
        raise
    finally:
        os.close(alive)
    try:
        for line in _lines(process.stdout, seconds, too_slow):  # type: ignore[arg-type] # stdout is a pipe
            message = _message(line)
            if "error" in message:
                raise UnreadableDocument(_one_line(message["error"]))
            if complete := "end" in message:
                break
            count += len(message["text"])
            if count > characters:
                raise UnreadableDocument(f"it has more than {characters:,} characters; split it, or raise the limit")
            yield message["text"], message["page"]
        if not complete:
            raise UnreadableDocument(_why_ended(process.wait(), too_slow, memory_bytes))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr] # stdout is a pipe
        os.close(held)


def _start(kind: str, file: BinaryIO, alive: int, seconds: float, memory_bytes: int) -> subprocess.Popen:
    # -S: without the files by which packages run code at the start of any interpreter.
    command = [sys.executable, "-S", "-P", "-s", "-B", "-m", "pipeline.asking.parsers"]
    command += [kind, str(alive), str(math.ceil(seconds)), str(memory_bytes)]
    packages = [str(ROOT), *(os.path.abspath(folder) for folder in sys.path)]
    return subprocess.Popen(
        command,
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(alive,),
        env={"PYTHONPATH": os.pathsep.join(packages), "LC_ALL": "C.UTF-8"},
        cwd="/",
        start_new_session=True,  # Ctrl+C is this process's to handle
    )


def _lines(pipe: BinaryIO, seconds: float, too_slow: str) -> Iterator[bytes]:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    begun = bytearray()
    while True:
        began = time.monotonic()
        ready = poll.poll(max(0.0, seconds) * 1000)
        seconds -= time.monotonic() - began
        if not ready:
            raise UnreadableDocument(too_slow)
        data = os.read(pipe.fileno(), 1 << 16)
        if not data:
            return
        *lines, rest = data.split(b"\n")
        for line in lines:
            yield bytes(begun + line)
            begun.clear()
        begun += rest
        if len(begun) > LINE_BYTES:
            raise UnreadableDocument("its parser sent a line that is too long; the file may be malicious")


def _message(line: bytes) -> dict:
    """One message of the parser, checked: {"text", "page"}, {"end"} or {"error"}."""
    try:
        message = json.loads(line)
        json.dumps(message, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # no JSON, no characters, or too deep
        message = None
    if isinstance(message, dict):
        text, page = message.get("text"), message.get("page")
        if isinstance(message.get("error"), str) or message.get("end") is True:
            return message
        if isinstance(text, str) and text and (page is None or (type(page) is int and page > 0)):
            return message
    raise UnreadableDocument("its parser sent what is no message; the file may be malicious")


def _one_line(reason: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in reason).split())
    return line if len(line) <= REASON_CHARACTERS else line[:REASON_CHARACTERS] + "…"


def _why_ended(status: int, too_slow: str, memory_bytes: int) -> str:
    if status == -signal.SIGXCPU:
        return too_slow
    if status < 0:
        return (
            f"its parser was ended by {signal.Signals(-status).name}; the file may be broken, or need more than "
            f"{memory_bytes >> 20:,} MiB of memory"
        )
    return f"its parser ended with status {status} before the document did"
