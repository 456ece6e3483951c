"""Reads files of JSON lines of which some lines may be broken or torn, as those of an interrupted run."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Notes:
    """What a page does not show, in words for its reader, and the number of unusable lines of each file."""

    said: list[str] = field(default_factory=list)
    bad_lines: dict[str, int] = field(default_factory=dict)

    def add(self, text: str) -> None:
        if text not in self.said:
            self.said.append(text)

    def texts(self) -> list[str]:
        counted = ((name, f"{n} line{'s' if n > 1 else ''}") for name, n in self.bad_lines.items())
        return [*self.said, *(f"{name}: {lines} could not be read." for name, lines in counted)]


def json_lines(path: Path, name: str, notes: Notes) -> Iterator[dict]:
    """The objects of a file of JSON lines, one at a time; none if there is no such file. Other lines are counted.

    Args:
        path: the file.
        name: its name in the notes.
        notes: gets what could not be read.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    yield row
                elif line.strip():
                    notes.bad_lines[name] = notes.bad_lines.get(name, 0) + 1
    except FileNotFoundError:
        return
    except OSError as error:
        notes.add(f"{name} cannot be read: {error.strerror or error}.")


def json_object(path: Path, name: str, notes: Notes) -> dict:
    """The object of a JSON file; empty if there is no such file, or it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        notes.add(f"{name} cannot be read.")
        return {}
    return found


def number(value: object) -> float | int | None:
    """A finite number; None for anything else, booleans too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an int beyond all floats
        return None


def rounded(value: object) -> float | int | None:
    """A finite number with four significant digits; None for anything else."""
    given = number(value)
    if given is None:
        return None
    short = float(f"{given:.4g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def texts(value: object) -> list[str]:
    """The texts of a list; empty if the value is none."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def text(value: object) -> str:
    return value if isinstance(value, str) else ""
