"""The keys of a job's configuration, read from its dataclasses: name, type, default, and the comment in the source."""

import ast
import dataclasses
import functools
import inspect
import textwrap
import tokenize
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_origin

import omegaconf
import yaml

WIDTH = 100  # columns
NAME_WIDTH = 26  # of name and default in a listing; longer ones have their comment in the next line
REQUIRED = "???"  # the default of a key that has to be given


@dataclass(frozen=True)
class Key:
    """A key of a section."""

    name: str
    kind: str  # its type, as it is written in the source
    default: str  # as it is written on the command line; `REQUIRED` if there is none
    comment: str  # empty if there is none
    owner: type  # the dataclass that declares it


@dataclass(frozen=True)
class Section:
    """Keys that are written together."""

    name: str  # dotted; empty for the keys of the job itself
    schema: type
    keys: tuple[Key, ...]


def sections_of(schema: type, name: str = "") -> list[Section]:
    """The sections of a configuration in the order of the source: its own keys, then each section and what is in it.

    Args:
        schema: a dataclass whose fields are values or other such dataclasses.
        name: of the section that it is.
    """
    keys, within = [], []
    for field in fields(schema):
        if isinstance(field.type, type) and is_dataclass(field.type):
            within += sections_of(field.type, f"{name}.{field.name}".lstrip("."))
        else:
            keys.append(_key(schema, field))
    return [*([Section(name, schema, tuple(keys))] if keys else []), *within]


def help_text(schema: type) -> str:
    """All keys of a job with defaults and comments, a section after the other, for a terminal of `WIDTH` columns."""
    return "\n\n".join(_listing(section) for section in sections_of(schema))


def _listing(section: Section) -> str:
    lines = [f"{section.name}:"] if section.name else []
    indent = "  " if section.name else ""
    for key in section.keys:
        head, comment = f"{indent}{key.name}: {key.default}", textwrap.wrap(key.comment, WIDTH - NAME_WIDTH - 4)
        if len(head) > NAME_WIDTH + 2 or not comment:
            lines.append(head)
        else:
            lines.append(f"{head:<{NAME_WIDTH + 4}}{comment.pop(0)}")
        lines += [" " * (NAME_WIDTH + 4) + line for line in comment]
    return "\n".join(lines)


def _key(schema: type, field: dataclasses.Field) -> Key:
    owner = next(c for c in schema.__mro__ if field.name in c.__dict__.get("__annotations__", {}))
    kind = field.type if get_origin(field.type) or isinstance(field.type, str) else field.type.__name__
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return Key(field.name, str(kind), _written(default), _comments(owner).get(field.name, ""), owner)


def _written(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is omegaconf.MISSING or value is MISSING:
        return REQUIRED
    if value == "":
        return "''"
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


@functools.cache
def _comments(schema: type) -> dict[str, str]:
    """The comments of a dataclass's fields: those above a field on lines of their own, then those behind it."""
    file = Path(inspect.getfile(schema))
    (body,) = (
        node.body
        for node in ast.walk(_tree(file))
        if isinstance(node, ast.ClassDef) and node.name == schema.__qualname__.rpartition(".")[2]
    )
    said = _comments_by_line(file)
    found = {}
    for field in body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            first = field.lineno
            while said.get(first - 1, ("", False))[1]:
                first -= 1
            lines = range(first, (field.end_lineno or field.lineno) + 1)
            found[field.target.id] = " ".join(said[line][0] for line in lines if line in said)
    return found


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())


@functools.cache
def _comments_by_line(file: Path) -> dict[int, tuple[str, bool]]:
    """The comment of each line that has one, and whether the line holds nothing else."""
    with tokenize.open(file) as source:
        return {
            token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
            for token in tokenize.generate_tokens(source.readline)
            if token.type == tokenize.COMMENT
        }
