"""The examples of docs/extending.md, as files outside the packages.

A fenced block whose first line is `# file: <path>` is a file of the user's own.
"""

import re
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
BLOCK = re.compile(r"^```\w+\n# file: (?P<path>\S+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def write_examples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write all files of the page into `folder` and put it on the path of imports; return the folder."""
    files = {found["path"]: found["text"] for found in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))}
    assert files, f"{PAGE} shows no file"
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
        if path.endswith(".py"):
            monkeypatch.delitem(sys.modules, path.removesuffix(".py").replace("/", "."), raising=False)
    monkeypatch.syspath_prepend(str(folder))
    return folder
