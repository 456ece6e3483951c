"""What changed between two memories, word by word."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

WORDS = re.compile(r"\s*\S+|\s+")
MOST = 4000  # words of both memories that are compared; longer ones count as replaced

Kind = Literal["kept", "added", "dropped"]


@dataclass(frozen=True)
class Span:
    """A part of the memory: in both memories, only in the new one, or only in the old one."""

    kind: Kind
    text: str


def differences(before: str, after: str) -> tuple[Span, ...]:
    """The spans of both memories in order, a dropped one before what replaced it.

    The texts of all spans that are not dropped make the new memory, of all that are not added the old one.
    """
    old, new = WORDS.findall(before), WORDS.findall(after)
    if len(old) + len(new) > MOST:
        whole = (Span("dropped", before), Span("added", after))
        return tuple(span for span in whole if span.text)
    spans = []
    for what, i, j, k, n in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what == "equal":
            spans.append(Span("kept", "".join(new[k:n])))
            continue
        if i < j:
            spans.append(Span("dropped", "".join(old[i:j])))
        if k < n:
            spans.append(Span("added", "".join(new[k:n])))
    return tuple(spans)
