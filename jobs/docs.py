"""Write docs/configuration.md, every key of every job, from the source: `python -m jobs.docs` (`make docs`).

A test compares the page with the source (tests/unit/test_configuration_page.py).
"""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from jobs.figures.recipe import FiguresConfig
from jobs.support.driver import asks_for_help
from jobs.support.filter import FilterConfig
from jobs.support.keys import REQUIRED, WIDTH, Key, sections_of
from pipeline.config import preset_names
from pipeline.data.recipes import RECIPES
from pipeline.evaluation.config import EvaluationConfig
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.run.config import TrainingConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
JOBS: dict[str, type] = {
    "train": TrainingConfig,
    "evaluate": EvaluationConfig,
    "fine_tune": FineTuningConfig,
    **{f"prepare {kind}": schema for kind, schema in RECIPES.items()},
    "prepare filter": FilterConfig,
    "figures": FiguresConfig,
}
BEGINNING = """\
<!-- Written by `make docs` out of the comments in the source: edit those. -->

# Configuration

Every job takes `key=value` arguments. A value on the command line wins over the preset's (`preset=<name>`, a file in
`configs/`), which wins over the default listed here. The keys of a section are written with its name:
`learner.ranks=4`. `--help` lists the keys of one job.

Values are YAML: `[1, 2]` is a list, `''` the empty text. `required` marks a key without a default. Numbers must be
finite and in range (`pipeline/number_ranges.py`).
"""


def page() -> str:
    """The whole page."""
    groups = _groups()
    return "\n".join([BEGINNING, *_job_list(groups), *_key_lists(groups)]).rstrip() + "\n"


# The keys that are written together, by section name and the class that declares it, with the jobs that have them.
Groups = dict[tuple[str, type], tuple[list[str], dict[str, Key]]]


def _groups() -> Groups:
    groups: Groups = {}
    for job, schema in JOBS.items():
        for section in sections_of(schema):
            for key in section.keys:
                declared_by = section.schema if section.name else key.owner  # kinds of prepare share keys without one
                jobs, keys = groups.setdefault((section.name, declared_by), ([], {}))
                if job not in jobs:
                    jobs.append(job)
                keys[key.name] = key
    return groups


def _title(group: tuple[str, type], groups: Groups) -> str:
    """The heading of a group, which no other has."""
    name, jobs = group[0], groups[group][0]
    if not name:
        return "jobs.prepare" if len(jobs) > 1 else f"jobs.{jobs[0]}"
    is_alone = sum(other == name for other, _ in groups) == 1
    return name if is_alone else f"{name} of {' and '.join(jobs)}"


def _job_list(groups: Groups) -> Iterator[str]:
    yield "## Jobs\n"
    for job, schema in JOBS.items():
        titles = {g: _title(g, groups) for g, (jobs, _) in groups.items() if job in jobs}
        links = [f"[{name or title}](#{anchor(title)})" for (name, _), title in titles.items()]
        module = f"`python -m jobs.{job}`" + (" and `jobs.submit`" if job == "train" else "")
        yield _item(f"{module}: {', '.join(links)}")
        if not job.startswith("prepare ") and (presets := preset_names(schema)):
            yield _item("Presets: " + ", ".join(f"`{name}`" for name in presets), "  ")
    yield ""


def _key_lists(groups: Groups) -> Iterator[str]:
    for group, (jobs, keys) in groups.items():
        title = _title(group, groups)
        yield f"## {title}\n"
        if title == group[0]:
            yield textwrap.fill(f"Jobs: {', '.join(f'`{job}`' for job in jobs)}.", WIDTH) + "\n"
        for key in keys.values():
            name = f"{group[0]}.{key.name}".lstrip(".")
            default = "required" if key.default == REQUIRED else f"`{key.default}`"
            yield _item(f"`{name}` ({key.kind}, {default}): {key.comment.replace('<', '&lt;')}")
        yield ""


def _item(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=f"{indent}- ", subsequent_indent=f"{indent}  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def main(arguments: list[str]) -> int:
    """Write the page; return the exit status: 0, or 2 if there are arguments."""
    if asks_for_help(arguments):
        print((__doc__ or "").strip())
        return 0
    if arguments:
        print(f"jobs.docs has no arguments; got {' '.join(arguments)}", file=sys.stderr)
        return 2
    PAGE.write_text(page(), encoding="utf-8")
    print(f"· {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
