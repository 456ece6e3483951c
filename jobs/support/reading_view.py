"""What a person sees of a reading: the memory as it changes, then the answer and its sources."""

import sys
import time
import unicodedata
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pipeline.asking.sections import Place
from pipeline.asking.session import Answered, SectionRead
from pipeline.asking.sources import Source

STYLES = {"kept": "", "added": "bold green", "dropped": "strike red"}
JOINERS = "\u200c\u200d"  # without which some scripts and emoji are spelled wrong
BESIDE = 4  # lines of the terminal that the memory leaves free


def for_terminal(text: str) -> str:
    """A text without anything that a terminal or a reader could take for more than text.

    Control characters, halves of surrogate pairs and unassigned characters become U+FFFD. Invisible characters, such as
    those that turn the direction of writing, are removed.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else _harmless(c) for c in text)


def _harmless(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Zs":
        return " "
    if kind in ("Zl", "Zp"):
        return "\n"
    if kind == "Cf":
        return character if character in JOINERS else ""
    return "\ufffd"


class Pace:
    """Speed and time left, from the sections that were read in this process after the first one.

    The first one's time has the engine's start in it.
    """

    def __init__(self):
        self._begin: float | None = None
        self._read = self._tokens = 0

    def shown(self, event: SectionRead, left: int | None) -> str:
        """Tokens per second, prompts included, and the time left; empty if they are not known yet.

        Args:
            event: the section that was read last.
            left: number of sections that are left; None if it is not known.
        """
        if event.is_kept:
            return "kept from an earlier reading"
        if self._begin is None:
            self._begin = time.monotonic()
            return ""
        self._read += 1
        self._tokens += event.prompt_tokens + event.response_tokens
        seconds = max(time.monotonic() - self._begin, 1e-9)
        speed = f"{self._tokens / seconds:,.0f} tokens/s"
        return speed if left is None else f"{speed}, {_duration(seconds / self._read * left)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class ReadingView:
    """Context manager that shows a reading on stderr: live in a terminal, else a line per section.

    Args:
        file: where to.
    """

    def __init__(self, file: TextIO | None = None):
        self._file = file or sys.stderr
        self._console = Console(file=self._file, highlight=False)
        self._live = Live(console=self._console, transient=True, auto_refresh=False) if self._is_live else None
        self._pace, self._done = Pace(), 0

    @property
    def _is_live(self) -> bool:
        return self._console.is_terminal

    def __enter__(self) -> "ReadingView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, message: str) -> None:
        """Show a line about what happens."""
        line = f"· {for_terminal(message)}"
        if self._live:
            self._console.print(Text(line))
        else:
            print(line, file=self._file, flush=True)

    def read(self, event: SectionRead) -> None:
        """Show a section that was read."""
        self._done += 1
        of = "" if event.sections is None else f" of {'about ' * event.is_estimate}{event.sections}"
        left = None if event.sections is None else event.sections - self._done
        parts = [f"section {event.number}{of}", place_of(event.place), self._pace.shown(event, left)]
        head = "  ".join(filter(None, [*parts, "the memory reached its limit" * event.is_cut]))
        if self._live:
            self._live.update(Group(Text(head, style="bold", overflow="ellipsis", no_wrap=True), self._memory(event)))
            self._live.refresh()
        else:
            added, dropped = (
                sum(len(span.text.split()) for span in event.changes if span.kind == kind)
                for kind in ("added", "dropped")
            )
            print(f"{head}  memory: +{added} -{dropped} words", file=self._file, flush=True)

    def _memory(self, event: SectionRead) -> Text:
        text = Text(overflow="fold")
        for span in event.changes:
            text.append(for_terminal(span.text), STYLES[span.kind])
        if not event.memory:
            text.append("(the memory is empty)", "dim")
        lines = text.wrap(self._console, self._console.width)
        most = max(self._console.height - BESIDE, 1)
        return Text("\n").join(lines[:most]) if len(lines) > most else text


def place_of(place: Place) -> str:
    """A place in words."""
    line = f"line {place.line}"
    return f"{for_terminal(place.file)}, {line if place.page is None else f'page {place.page}, {line}'}"


def answer_text(answered: Answered, window_key: str = "agent.window") -> str:
    """The answer with its sources and what limits it, for a terminal."""
    lines = [for_terminal(answered.answer) or "(the answer is empty)", ""]
    if answered.is_cut:
        lines.append("The answer reached its limit of tokens and is cut off; raise agent.answer_tokens.")
    if answered.unread_tokens:
        lines.append(
            f"{answered.unread_tokens:,} tokens from the middle of the document were not read: they do not fit "
            f"{window_key}."
        )
    elif not answered.is_whole:
        lines.append(f"From the first {answered.sections} sections only; the same command resumes.")
    if not answered.sources:
        return "\n".join([*lines, "No passage was found that contains the answer's words."]) + "\n"
    lines.append("Found by text match in what was read:")
    return "\n".join([*lines, *map(_source_text, answered.sources)]) + "\n"


def _source_text(source: Source) -> str:
    behind = "" if source.is_answer else " (a fact behind the answer)"
    if source.passage is None:
        words = for_terminal(", ".join(source.words[:8]))
        return (
            f"  section {source.section} from {place_of(source.place)}{behind}: noted {words}, which it does not hold"
        )
    passage = " ".join(for_terminal(source.passage).split())
    return f"  {place_of(source.place)}{behind}: “{passage}”"
