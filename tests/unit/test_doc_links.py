"""What the pages point to exists: relative links with their anchors, and paths of this repository in backquotes."""

import re
import subprocess
from pathlib import Path

import pytest

from jobs.docs import anchor

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
QUOTED = re.compile(r"`([\w./-]+/[\w./-]*|[A-Z]+\.md)`")
# Top folders of the repository: a path that begins with one is a file of it, or a folder that a run makes there.
TOP = {"pipeline", "actors", "jobs", "tests", "configs", "docs", "requirements"}
CODE = re.compile(r"^(`{3,}).*?^\1$", re.MULTILINE | re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {anchor(re.sub(r"[`*]|\]\([^)]*\)", "", heading)) for heading in headings}


def tracked() -> set[str]:
    """The files of the repository; without git, as in a copy of the source, those that are there."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0 and listed.stdout:
        return set(listed.stdout.splitlines())
    return {str(path.relative_to(ROOT)) for top in TOP for path in (ROOT / top).rglob("*")} | {p.name for p in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    dead = []
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        path, _, place = target.partition("#")
        there = page if not path else (page.parent / path).resolve()
        if not there.exists() or (place and there.suffix == ".md" and place not in anchors_of(there)):
            dead.append(target)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_backquotes_are_files_of_the_repository(page):
    files = tracked()
    folders = {str(parent) for file in files for parent in Path(file).parents}
    named = QUOTED.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    paths = [path.rstrip("/") for path in named if path.partition("/")[0] in TOP or "/" not in path]
    assert [path for path in paths if path not in files and path not in folders] == []
