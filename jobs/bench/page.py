"""docs/performance.md: a section per claim, with what it compares, its command, its tables and the machine."""

import re
import textwrap

from jobs.bench.claims import CLAIMS, ROOT, Result, kept, text_of
from pipeline.files import write_text

PAGE = ROOT / "docs" / "performance.md"
WIDTH = 100  # columns
BEGINNING = """\
<!-- Written by `python -m jobs.bench write`; the texts are docstrings of jobs/bench. -->

# Performance

One command per claim: `python -m jobs.bench <claim>`. With `--help` it lists its keys. Each
compares its variants side by side in one run on one machine, in one thread per engine. Where a
claim has several rounds, the variants take turns, in reverse order every second round, and a number
is the median over the rounds, with the lowest and the highest in brackets. Compare the ratios:
times and rates are those of the machine that is named below the table. Broadcast is simulated, and
Sharing on a GPU was measured by hand.

`python -m jobs.bench all` measures every claim and writes this page. `python -m jobs.bench write`
writes it from the results in `runs/bench/`. A claim without a result keeps its section as it is.
"""
NOT_MEASURED = "Not measured yet."


def write_page() -> None:
    """Write the page from the results that are kept, and from the page as it is."""
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""))


def page(before: str) -> str:
    """The whole page.

    Args:
        before: the page as it is. From it come the sections of claims that were measured before, but have no result
            in runs/bench/, and those of no claim.
    """
    there = sections(before)
    of_claims = []
    for claim in CLAIMS:
        results, old = kept(claim), there.pop(title(claim), NOT_MEASURED)
        of_claims.append(section(claim, results, old) if results or NOT_MEASURED in old else old)
    return "\n".join([BEGINNING, *of_claims, *there.values()])


def title(claim: str) -> str:
    """The heading of a claim's section."""
    return claim.capitalize()


def sections(text: str) -> dict[str, str]:
    """The sections of a page by heading, each with its heading and one line end."""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0].removeprefix("## "): part.rstrip() + "\n" for part in parts}


def section(claim: str, results: list[Result], before: str = "") -> str:
    """A claim's section: its text, then each command with what it measured. Without any it has the bare command only.

    Args:
        claim: the claim.
        results: its results.
        before: the section as it is. What it shows of other commands stays.
    """
    blocks = commands(before)
    for result in results:
        how = f"Measured on {result.machine}." if result.machine else "Simulated, not measured."
        blocks[result.command] = "\n\n".join([*paragraphs(result.tables), how])
    blocks = dict(sorted(blocks.items())) or {f"python -m jobs.bench {claim}": NOT_MEASURED}
    shown = [f"    {command}\n\n{block}" for command, block in blocks.items()]
    return "\n\n".join([f"## {title(claim)}", *paragraphs(text_of(claim)), *shown]) + "\n"


def commands(text: str) -> dict[str, str]:
    """What a section shows of each command, by command; not those that are not measured."""
    parts = re.split(r"^    (python -m jobs\.bench .*)\n", text, flags=re.MULTILINE)[1:]
    blocks = zip(parts[::2], parts[1::2], strict=True)
    return {command: block.strip() for command, block in blocks if block.strip() != NOT_MEASURED}


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, and each item of its lists, wrapped for the page. Indented ones and tables stay."""
    return [part if part.startswith(("    ", "|")) else _wrapped(part) for part in re.split(r"\n{2,}", text.strip())]


def _wrapped(part: str) -> str:
    items = [" ".join(item.split()) for item in re.split(r"\n(?=- )", part)]
    return "\n".join(textwrap.fill(item, WIDTH, subsequent_indent="  " * item.startswith("- ")) for item in items)
