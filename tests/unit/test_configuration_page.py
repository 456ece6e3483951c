"""Every key of every job with its type, default and comment, on docs/configuration.md and in --help: both are read from
the source."""

from dataclasses import dataclass, field

import pytest
from omegaconf import MISSING

from jobs.docs import JOBS, PAGE, anchor, page
from jobs.support.keys import help_text, sections_of
from pipeline.config import load_config
from pipeline.run.config import TrainingConfig


@dataclass
class Inner:
    """A section."""

    # above,
    # in two lines
    tall: float = 0.5  # and behind
    items: list[int] = field(  # of several
        default_factory=lambda: [1, 2]
    )
    plain: bool = False


@dataclass
class Base:
    path: str = MISSING  # of the base
    # no comment of name's: a line of code is between

    name: str = ""


@dataclass
class Example(Base):
    inner: Inner = field(default_factory=Inner)
    text: str = "#"  # not "# in the text"
    modules: dict[str, str] = field(default_factory=dict)


def test_keys_are_read_with_their_defaults_and_comments():
    own, inner = sections_of(Example)
    assert [(key.name, key.kind, key.default, key.comment) for key in own.keys] == [
        ("path", "str", "???", "of the base"),
        ("name", "str", "''", ""),
        ("text", "str", "#", 'not "# in the text"'),
        ("modules", "dict[str, str]", "{}", ""),
    ]
    assert own.name == "" and [key.owner for key in own.keys] == [Base, Base, Example, Example]
    assert inner.name == "inner" and [(key.name, key.kind, key.default, key.comment) for key in inner.keys] == [
        ("tall", "float", "0.5", "above, in two lines and behind"),
        ("items", "list[int]", "[1, 2]", "of several"),
        ("plain", "bool", "false", ""),
    ]


def test_help_lists_a_section_after_the_other():
    lines = help_text(Example).splitlines()
    assert lines[0].split() == ["path:", "???", "of", "the", "base"] and "inner:" in lines
    comments = (
        line for schema in JOBS.values() for line in help_text(schema).splitlines() if line.startswith(" " * 20)
    )
    assert max(map(len, comments)) <= 100


@pytest.mark.parametrize("job", JOBS)
def test_every_key_says_what_it_is(job):
    assert [f"{s.name}.{key.name}" for s in sections_of(JOBS[job]) for key in s.keys if not key.comment] == []


def test_a_default_can_be_written_on_the_command_line_as_it_is_shown():
    written = [
        f"{s.name}.{key.name}".lstrip(".") + f"={key.default}" for s in sections_of(TrainingConfig) for key in s.keys
    ]
    fixed = ["model.path=m", "run.name=n", "model.dtype=float32"]
    changed = [a for a in written if a.partition("=")[0] not in ("model.path", "run.name", "model.dtype")]
    assert load_config([*fixed, *changed], TrainingConfig) == load_config(fixed, TrainingConfig)


def test_the_page_is_that_of_the_source():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_headings_have_anchors_of_their_own():
    titles = [line.lstrip("# ") for line in page().splitlines() if line.startswith("#")]
    assert len({anchor(title) for title in titles}) == len(titles)
