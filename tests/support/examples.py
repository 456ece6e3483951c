"""The examples of docs/extending.md and docs/tutorials/, as files outside the packages.

A fenced block whose first line is `# file: <path>` is a file of the user's own.
"""

import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "extending.md"
TUTORIALS = DOCS / "tutorials"
BLOCK = re.compile(r"^```\w+\n# file: (?P<path>\S+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def write_examples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write all files of the pages into `folder` and put it on the path of imports; return the folder."""
    pages = [PAGE, *TUTORIALS.glob("*.md")]
    blocks = [found for page in pages for found in BLOCK.finditer(page.read_text(encoding="utf-8"))]
    files = {found["path"]: found["text"] for found in blocks}
    assert len(files) == len(blocks) > 0, "two pages show a file of the same name"
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
        if path.endswith(".py"):
            monkeypatch.delitem(sys.modules, path.removesuffix(".py").replace("/", "."), raising=False)
    monkeypatch.syspath_prepend(str(folder))
    return folder
