"""The process that reads one PDF, HTML or DOCX file: `python -m pipeline.asking.parsers KIND ALIVE SECONDS MEMORY`.

It reads the file from its standard input and writes JSON lines: {"text", "page"} for each piece of text, then {"end"};
or {"error"}. ALIVE is the read end of a pipe; the process ends when the other end is closed. It imports nothing of the
project that takes time to import.
"""

import fcntl
import importlib
import json
import os
import resource
import select
import sys
from collections.abc import Iterator

from pipeline.asking.blocks import cut
from pipeline.errors import UnreadableDocument, last_line

OPEN_FILES = 32  # packages load some of their parts when they need them
PARSERS = {"pdf": "pdf_text", "html": "html_text", "docx": "docx_text"}


def main(kind: str, alive: int, seconds: int, memory_bytes: int) -> None:
    _end_with(alive)
    _set_limits(seconds, memory_bytes)
    too_large = f"reading it takes more than {memory_bytes >> 20:,} MiB of memory"
    try:
        empty = True
        for text, page in _texts(kind, memory_bytes):
            for piece in cut([_valid(text)]):
                _send({"text": piece, "page": page})
                empty = False
        if empty:
            raise UnreadableDocument("it holds no text")
        _send({"end": True})
    except MemoryError:
        _send({"error": f"{too_large}; split it, or raise the limit"})
    except UnreadableDocument as error:
        _send({"error": str(error)})
    except ModuleNotFoundError as error:
        _send({"error": f"the package {error.name}, which reads it, is not installed; run `make documents`"})
    except Exception as error:  # parsers raise whatever a broken file leads them to
        reason = f"{type(error).__name__}: {last_line(error)}"
        # Libraries in C report a lack of memory as any other error.
        doubt = f", or {too_large}" if _peak_bytes() > memory_bytes / 2 else ""
        _send({"error": f"it is broken{doubt} ({reason}); open it in its own program and save it again"})


def _texts(kind: str, memory_bytes: int) -> Iterator[tuple[str, int | None]]:
    parser = importlib.import_module(f"pipeline.asking.{PARSERS[kind]}")
    return parser.read(sys.stdin.buffer, memory_bytes)


def _end_with(alive: int) -> None:
    """Have the kernel end this process when the pipe's other end is closed, whatever this process is doing then."""
    fcntl.fcntl(alive, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(alive, fcntl.F_SETFL, os.O_ASYNC)  # SIGIO, which ends a process
    poll = select.poll()
    poll.register(alive, 0)
    if poll.poll(0):  # closed already
        sys.exit(1)


def _set_limits(seconds: int, memory_bytes: int) -> None:
    wanted = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in wanted.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _peak_bytes() -> int:
    """The largest address space that this process has had."""
    with open("/proc/self/status", "rb") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(b"VmPeak:"))


def _valid(text: str) -> str:
    """Fonts of broken PDF files map glyphs to what is no character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\0", "\ufffd")


def _send(message: dict) -> None:
    sys.stdout.buffer.write(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:]))
