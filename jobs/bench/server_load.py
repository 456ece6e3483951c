"""What the clients of a server under load saw, and the tables of it."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.bench.measuring import table

# The parts of a server whose memory is watched, by how the titles of their processes begin.
PARTS = {"ray::ServeReplica:palimpsest:frontend": "frontend", "ray::ProxyActor": "Serve's proxy"}
RIGHT, WRONG, ERROR = "the right answer", "another answer", "a clear error"
CUT, HUNG, DROPPED = "cut off without an error", "hung", "dropped by the client"
ENDS = (RIGHT, WRONG, ERROR, CUT, HUNG, DROPPED)


@dataclass
class Load:
    """What the clients of a phase saw."""

    seconds: float = 0.0
    conversations: int = 0
    ends: Counter = field(default_factory=Counter)  # requests by how they ended
    errors: Counter = field(default_factory=Counter)  # messages of errors
    first: list[float] = field(default_factory=list)  # seconds to the first memory
    answer: list[float] = field(default_factory=list)  # seconds to the answer
    memory: dict[str, list[float]] = field(default_factory=dict)  # MiB by part, over time
    deaths: int = 0


def tables(alone: Mapping[str, float], phases: list[Load], start_s: float, left: int) -> str:
    """The rates, how the requests ended and how long they took, the errors, and what was left."""
    rates = {"engines alone": alone["engine"], "readings beside their engines": alone["readings"]}
    names = ("undisturbed", "disturbed")
    rates |= {f"server, {name}": s.conversations / s.seconds for name, s in zip(names, phases, strict=True)}
    rows: list[tuple[object, ...]] = [
        ("seconds", *(f"{s.seconds:.0f}" for s in phases)),
        ("replicas killed", *(s.deaths for s in phases)),
        *((f"requests: {end}", *(s.ends[end] for s in phases)) for end in ENDS),
    ]
    for name, key in (("first memory", "first"), ("answer", "answer")):
        for share in (50, 95):
            rows.append((f"{name}, p{share}", *(f"{percentile(getattr(s, key), share):.2f} s" for s in phases)))
    for part in PARTS.values():
        rows.append((f"memory of {part}", *(growth(s.memory[part]) for s in phases)))
    errors = sum((s.errors for s in phases), Counter[str]())
    return "\n\n".join(
        [
            table(
                ("", "conversations/s", "÷ engines alone"),
                [
                    (name, f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}", f"{rate / alone['engine']:.2f}")
                    for name, rate in rates.items()
                ],
            ),
            table(("", *names), rows),
            *(f"Errors, {count} times: {said}" for said, count in errors.items()),
            f"The server answered {start_s:.0f} s after its start. It had {left} readings 5 s after its last client.",
        ]
    )


def percentile(numbers: list[float], share: int) -> float:
    """The nearest-rank percentile; not a number if there are none."""
    ordered = sorted(numbers)
    return ordered[math.ceil(len(ordered) * share / 100) - 1] if ordered else math.nan


def growth(samples: list[float]) -> str:
    """The median in MiB over the first and over the last third of a phase."""
    third = max(len(samples) // 3, 1)
    if not samples:
        return "none"
    return f"{statistics.median(samples[:third]):.0f} → {statistics.median(samples[-third:]):.0f} MiB"
