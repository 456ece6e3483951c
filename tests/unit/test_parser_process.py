"""The process in which parsers run: what it may do, how it ends, and what is said of it.

A double of pypdf, which stands in the way of the real one, does what a parser should not.
"""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pipeline.asking import parser_process
from pipeline.asking.parsing import ParseLimits, UnreadableDocument, read_document

ROOT = Path(__file__).parents[2]
LIMITS = ParseLimits(seconds=60)
DOUBLE = """
import json, os, sys
class FileNotDecryptedError(Exception): ...
class Page:
    def __init__(self, text): self.text = text
    def extract_text(self): return self.text
class PdfReader:
    def __init__(self, file): self.pages = [Page(text) for text in work(file)]
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads a PDF file with a double of pypdf whose `work(file)` returns the pages' texts."""

    def read(work: str, limits: ParseLimits = LIMITS) -> str:
        package = tmp_path / "packages" / "pypdf"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"{DOUBLE}\ndef work(file):\n{textwrap.indent(work, '    ')}\n")
        (package / "errors.py").write_text("from pypdf import FileNotDecryptedError\n")
        monkeypatch.syspath_prepend(package.parent)
        return "".join(block.text for block in read_document(a_pdf(tmp_path), limits))

    return read


def a_pdf(folder: Path) -> Path:
    path = folder / "a.pdf"
    path.write_bytes(b"%PDF-1.7 the content")
    return path


def test_it_gets_the_file_and_neither_environment_nor_folder_nor_heavy_packages(read, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    seen = json.loads(
        read(
            "state = dict(env=sorted(os.environ), modules=sorted(sys.modules), cwd=os.getcwd(), argv=sys.argv[1:])\n"
            "state |= dict(content=file.read().decode(), open=sorted(os.listdir('/proc/self/fd')))\n"
            "return [json.dumps(state)]"
        )
    )
    assert seen["content"] == "%PDF-1.7 the content"
    assert set(seen["env"]) == {"LC_ALL", "PYTHONPATH"} and seen["cwd"] == "/"
    assert not {"torch", "vllm", "ray", "numpy", "pyarrow", "transformers"} & set(seen["modules"])
    assert len(seen["open"]) <= 5  # the three standard streams, the pipe, and the listing itself


def test_it_cannot_write_files_nor_open_many_nor_leave_a_core(read, tmp_path):
    target = tmp_path / "written"
    seen = json.loads(
        read(
            f"import resource\nresult = []\n"
            f"try:\n    f = open({str(target)!r}, 'w'); f.write('x'); f.close()\n"
            f"except OSError as error: result.append(error.strerror)\n"
            f"opened = []\n"
            f"try:\n    while True: opened.append(os.dup(0))\n"
            f"except OSError as error: result.append(error.strerror)\n"
            f"for descriptor in opened: os.close(descriptor)\n"
            f"return [json.dumps([*result, len(opened) < 32, resource.getrlimit(resource.RLIMIT_CORE)])]"
        )
    )
    assert seen == ["File too large", "Too many open files", True, [0, 0]]
    assert target.stat().st_size == 0


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        ("return 'x' * (1 << 30)", "more than 256 MiB of memory"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL; the file may be broken, or need more than 256 MiB"),
        ("import os; os.abort()", "ended by SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "takes more than 60 seconds"),
        ("import os; os._exit(0)", "ended with status 0 before the document did"),
        ("raise ValueError('one\\ntwo \\x1b[31m' + 'x' * 1000)", r"it is broken \(ValueError: two \[31mx{100,300}…$"),
        ("def f(): f()\nf()", "it is broken .RecursionError"),
        ("raise ModuleNotFoundError(name='pypdf')", "the package pypdf, .* is not installed; run `make documents`"),
        ("os.write(1, b'x' * 10_000_000)", "a line that is too long"),
        ("os.write(1, b'nothing\\n')", "what is no message"),
        ("os.write(1, b'[]\\n')", "what is no message"),
        ('os.write(1, b\'{"text": "", "page": 1}\\n\')', "what is no message"),
        ('os.write(1, b\'{"text": "x", "page": true}\\n\')', "what is no message"),
        ('os.write(1, b\'{"text": "\\\\ud800", "page": 1}\\n\')', "what is no message"),
        ("os.write(1, b'[' * 100_000 + b'\\n')", "what is no message"),
    ],
)
def test_each_bad_end_is_told_with_its_reason(read, work, reason):
    with pytest.raises(UnreadableDocument, match=reason):
        read(work, ParseLimits(seconds=60, memory_bytes=256 << 20))


def test_it_is_stopped_when_it_takes_too_long(read):
    begin = time.monotonic()
    with pytest.raises(UnreadableDocument, match="takes more than 2 seconds"):
        read("import time; time.sleep(100)", ParseLimits(seconds=2))
    assert time.monotonic() - begin < 20


def test_the_time_of_whoever_reads_does_not_count(tmp_path, read, monkeypatch):
    clock = iter([0.0, 1.0, 100.0, 101.0, 200.0, 201.0, *([300.0] * 100)])
    monkeypatch.setattr(parser_process.time, "monotonic", lambda: next(clock))
    assert read("return ['x' * 200_000]", ParseLimits(seconds=50)) == "x" * 200_000 + "\n"


def test_the_text_is_limited(read):
    with pytest.raises(UnreadableDocument, match="more than 1,000 characters"):
        read("return ['x' * 100] * 100", ParseLimits(characters=1000))


def test_what_is_no_character_is_replaced(read):
    assert read("return ['a\\ud800b\\0c\\U0001f30d \\ud83c\\udf0d']") == "a\ufffdb\ufffdc\U0001f30d \U0001f30d\n"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends_soon(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


@pytest.fixture
def busy(tmp_path, monkeypatch) -> Path:
    """The folder of a double of pypdf: its first page is the process's id, its second takes for ever."""
    package = tmp_path / "packages" / "pypdf"
    package.mkdir(parents=True)
    (package / "errors.py").write_text("class FileNotDecryptedError(Exception): ...\n")
    (package / "__init__.py").write_text(
        textwrap.dedent("""
        import os
        class Page:
            def __init__(self, number): self.number = number
            def extract_text(self):
                while self.number: sum(range(10 ** 6))
                return str(os.getpid())
        class PdfReader:
            def __init__(self, file): self.pages = [Page(0), Page(1)]
        """)
    )
    monkeypatch.syspath_prepend(package.parent)
    return package.parent


def test_it_ends_when_nobody_reads_on(busy, tmp_path):
    blocks = read_document(a_pdf(tmp_path))
    pid = int(next(blocks).text)
    assert alive(pid)
    blocks.close()
    assert not alive(pid)


def test_it_ends_when_the_process_that_reads_is_killed(busy, tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from pipeline.asking.parsing import read_document\n"
        "blocks = read_document(Path(sys.argv[1])); print(next(blocks).text, flush=True); time.sleep(100)"
    )
    environment = os.environ | {"PYTHONPATH": f"{busy}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", program, a_pdf(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as reader:
        pid = int(reader.stdout.readline())
        assert alive(pid)
        reader.kill()
    assert ends_soon(pid)


def test_no_descriptor_is_left_open(read, tmp_path):
    read("return ['text']")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        list(read_document(tmp_path / "a.pdf"))
        next(read_document(tmp_path / "a.pdf"))
    assert len(os.listdir("/proc/self/fd")) == len(before)
