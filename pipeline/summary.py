"""The summary that every job writes at its end, and how durations are shown."""

import json
import os
from pathlib import Path


def duration(seconds: float) -> str:
    """A duration for people to read: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def write_summary(folder: Path, summary: dict) -> None:
    """Write summary.json, whole or not at all."""
    partial = folder / "summary.json.partial"
    partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / "summary.json")
