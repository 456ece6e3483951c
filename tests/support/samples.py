"""Sample files, made up."""

import json
from pathlib import Path


def row(i: int, **changes) -> dict:
    return {"id": f"q{i}", "question": f"What is {i}?", "answers": [str(i)], "document": f"It is {i}. é"} | changes


def jsonl(path: Path, rows: list, end: str = "\n") -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
    path.write_bytes((end.join(lines)).encode())
    return path
