"""validation.jsonl and the answers behind its rows, as files of a run folder."""

import contextlib
import json
import shutil
from pathlib import Path

from pipeline.evaluation.results import SURROGATES
from pipeline.files import write_text

VALIDATION, ANSWERS = "validation.jsonl", "validation"  # a row per validation; the folder of their answers


class ValidationFile:
    """The rows of validations. Its methods use the disk and raise `OSError`.

    Args:
        folder: the run folder.

    Attributes:
        rows: the rows of the file, once it was read.
    """

    def __init__(self, folder: Path):
        self.rows: list[dict] = []
        self._path, self._answers = folder / VALIDATION, folder / ANSWERS

    def read(self) -> list[dict]:
        """The rows of the file, without a torn last line."""
        rows = []
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else ():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict) and "step" in row]

    def add(self, row: dict) -> None:
        """Add a row. If there is one of its step, because this call is repeated, it is replaced."""
        self._write([*(other for other in self.read() if other["step"] != row["step"]), row])

    def write_answers(self, step: int, answers: list[dict]) -> None:
        """Write the answers of a validation (rows of results.jsonl)."""
        lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        write_text(self._folder_of(step) / "results.jsonl", lines.encode(errors=SURROGATES).decode())

    def roll_back(self, step: int) -> None:
        """Remove the validations of later steps, with their answers: they show abandoned weights."""
        rows = self.read()
        kept = [row for row in rows if row["step"] <= step]
        for row in rows:
            if row["step"] > step:
                shutil.rmtree(self._folder_of(row["step"]), ignore_errors=True)
        if len(kept) < len(rows):
            self._write(kept)
        self.rows = kept

    def _write(self, rows: list[dict]) -> None:
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self.rows = rows

    def _folder_of(self, step: int) -> Path:
        return self._answers / f"step-{step:06d}"
