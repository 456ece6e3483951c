"""What the tracker leaves, whatever happens to the disk under it."""

import errno
import json
from pathlib import Path

import pytest

from pipeline.config import load_config
from tests.faults import rows_of


@pytest.fixture
def tracker(ray_session, random_model, tmp_path, monkeypatch):
    """In this process instead of an actor of its own."""
    from actors import tracker as module

    monkeypatch.setattr(module, "was_started_again", lambda: False)
    config = load_config(["preset=tiny", f"model.path={random_model}", "wandb.mode=offline", "run.name=tracked"])
    tracker = module.Tracker.__ray_metadata__.modified_class(config, str(tmp_path))
    yield tracker
    tracker._run.finish()


def row(step: int) -> dict:
    return {"step": step, "reward": step / 10, "positions": [step], "staleness_tokens": [3, 4]}


def test_a_row_is_written_once_and_a_full_disk_only_puts_it_off(tracker, tmp_path, monkeypatch):
    assert tracker.log(row(1)) == "" and tracker.log(row(1)) == ""  # again, as after the death of its process
    opened = Path.open

    class Full:
        """Takes half of what is written, then nothing."""

        def __init__(self, file):
            self.file, self.writes = file, 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.writes += 1
            if self.writes > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data[: len(data) // 2])

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(Path, "open", lambda path, *a, **k: Full(opened(path, *a, **k)))
    assert "No space left" in tracker.log(row(2))
    monkeypatch.setattr(Path, "open", opened)
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(row(1)) + "\n"
    assert tracker.log(row(3)) == ""
    assert rows_of(tmp_path) == [row(1), row(2), row(3)]


def test_going_back_sets_later_rows_aside(tracker, tmp_path):
    for step in (1, 2, 3):
        tracker.log(row(step))
    assert tracker.roll_back(1) == [{"step": 1, "reward": 0.1}]
    tracker.log(row(2))
    assert rows_of(tmp_path) == [row(1), row(2)]
    abandoned = (tmp_path / "abandoned.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in abandoned] == [2, 3]
