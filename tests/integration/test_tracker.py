"""What the tracker leaves, whatever happens to the disk under it and to wandb."""

import errno
import json
import random
import threading
import time

import pytest

from pipeline.run.config import load_training_config
from pipeline.run.history import RunTotals
from tests.support.disks import full_disk
from tests.support.faults import rows_of, until


@pytest.fixture
def config(random_model):
    return load_training_config(
        ["preset=tiny", f"model.path={random_model}", "wandb.mode=disabled", "run.name=tracked"]
    )


@pytest.fixture
def start(config, tmp_path, monkeypatch):
    """Starts a tracker in this process instead of an actor of its own."""
    from actors import tracker as module

    def start(step: int = 0, again: bool = False):
        monkeypatch.setattr(module, "was_started_again", lambda: again)
        return module.Tracker.__ray_metadata__.modified_class(config, str(tmp_path), step)

    return start


@pytest.fixture
def tracker(start):
    return start()


@pytest.fixture
def full(monkeypatch):
    return full_disk(monkeypatch)


def row(step: int) -> dict:
    return {"step": step, "reward": step / 10, "positions": [step], "staleness_tokens": [3, 4]}


def abandoned(folder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "abandoned.jsonl").read_text().splitlines()]


def test_a_row_is_written_once_and_a_full_disk_only_puts_it_off(tracker, tmp_path, full):
    assert tracker.log(row(1)) == [] and tracker.log(row(1)) == []  # again, as after the death of its process
    full(30)
    (said,) = tracker.log(row(2))
    assert said.startswith("· metrics.jsonl could not be written") and "No space left" in said
    assert tracker.log(row(3)) == []  # it was said
    full(None)
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(row(1)) + "\n"
    assert tracker.flush() == ({"metrics.jsonl": 0, "abandoned.jsonl": 0}, ["· metrics.jsonl is written again"])
    assert rows_of(tmp_path) == [row(1), row(2), row(3)]


def test_what_is_not_written_at_the_end_is_counted(tracker, full):
    full(0)
    tracker.log(row(1))
    tracker.log(row(2))
    tracker.episodes(2, [], [])
    unwritten, _ = tracker.flush()
    assert unwritten["metrics.jsonl"] == 2 and unwritten["episodes"] == 1


def test_going_back_sets_later_rows_aside(tracker, tmp_path):
    for step in (1, 2, 3):
        tracker.log(row(step))
    assert tracker.roll_back(1) == []
    assert rows_of(tmp_path) == [row(1)]
    tracker.log(row(2))
    assert rows_of(tmp_path) == [row(1), row(2)]
    assert abandoned(tmp_path) == [2, 3]


@pytest.mark.parametrize("room", [0, 10])  # for nothing, for part of a row
def test_going_back_on_a_full_disk_is_made_good_later(tracker, tmp_path, full, room):
    for step in (1, 2, 3):
        tracker.log(row(step))
    full(room)
    (said,) = tracker.roll_back(1)
    assert "No space left" in said
    tracker.log(row(2))
    tracker.log(row(3))
    assert tracker.roll_back(2) == []
    full(None)
    tracker.log(row(3) | {"reward": 9})
    assert rows_of(tmp_path) == [row(1), row(2), row(3) | {"reward": 9}]
    assert sorted(abandoned(tmp_path)) == [2, 3, 3]


def test_going_back_sets_no_row_aside_twice_if_it_fails_half_way(tracker, tmp_path, full):
    for step in (1, 2, 3):
        tracker.log(row(step))
    full(int(1.5 * len(json.dumps(row(1)))))  # for the one row that goes, not for the two that stay
    assert "No space left" in tracker.roll_back(2)[0]
    assert abandoned(tmp_path) == [3] and rows_of(tmp_path) == [row(1), row(2), row(3)]
    full(None)
    tracker.roll_back(1)
    assert abandoned(tmp_path) == [3, 2] and rows_of(tmp_path) == [row(1)]


def test_storage_that_hangs_holds_nobody_up_and_loses_nothing(tracker, tmp_path, monkeypatch):
    from actors import tracker as module

    tracker.log(row(1))
    tracker.log(row(2))
    tracker._storage.limit_s = 0.1
    go, write = threading.Event(), module.append
    monkeypatch.setattr(module, "append", lambda *arguments: (go.wait(30), write(*arguments)))
    begin = time.monotonic()
    assert "did not answer" in tracker.log(row(3))[0]
    for step in (4, 5):
        assert tracker.log(row(step)) == []
    assert tracker.roll_back(3) == []
    tracker.log(row(4) | {"reward": 9})
    assert time.monotonic() - begin < 20  # it hangs for 30 s
    go.set()
    until(lambda: tracker._storage._overdue.done())
    tracker._storage.limit_s = 10
    assert tracker.flush()[0]["metrics.jsonl"] == 0
    assert rows_of(tmp_path) == [row(1), row(2), row(3), row(4) | {"reward": 9}]
    assert set(abandoned(tmp_path)) == {4, 5}


def test_a_tracker_that_is_started_again_writes_no_row_twice_even_if_it_cannot_read_at_first(
    start, tmp_path, monkeypatch
):
    from actors import tracker as module

    first = start()
    first.log(row(1))
    first.log(row(2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')  # and died
    cls = module.Tracker.__ray_metadata__.modified_class
    with monkeypatch.context() as failing:
        failing.setattr(cls, "_lines", lambda self: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        second = start(again=True)
        assert "Input/output error" in second.log(row(2))[0]
    second.log(row(3))
    assert rows_of(tmp_path) == [row(1), row(2), row(3)]


def test_a_resumed_run_has_the_rows_up_to_its_checkpoint(start, tmp_path):
    first = start()
    for step in (1, 2, 3):
        first.log(row(step))
    rows, *_ = start(step=2).begun()
    assert rows == [RunTotals.needed(row(step)) for step in (1, 2)]
    assert rows_of(tmp_path) == [row(1), row(2)] and abandoned(tmp_path) == [3]


def test_going_back_twice_while_the_first_hangs_leaves_the_last_history(tracker, tmp_path, monkeypatch):
    from actors import tracker as module

    for step in range(1, 8):
        tracker.log(row(step))
    tracker._storage.limit_s = 0.1
    go, write = threading.Event(), module.write_text
    monkeypatch.setattr(module, "write_text", lambda *arguments: (go.wait(30), write(*arguments)))
    tracker.roll_back(4)
    for step in (5, 6):
        tracker.log(row(step) | {"life": 1})
    tracker.roll_back(2)
    go.set()
    until(lambda: tracker._storage._overdue.done())
    tracker._storage.limit_s = 10
    for step in range(3, 8):
        tracker.log(row(step) | {"life": 2})
    assert rows_of(tmp_path) == [row(1), row(2), *(row(step) | {"life": 2} for step in range(3, 8))]
    assert abandoned(tmp_path) == [5, 6, 7, 3, 4, 5, 6] and tracker.flush()[0] == {
        "metrics.jsonl": 0,
        "abandoned.jsonl": 0,
    }


@pytest.mark.parametrize("seed", range(12))
def test_the_files_are_those_of_a_plain_model_whatever_the_storage_does(start, tmp_path, monkeypatch, seed):
    """It hangs, is full, the run goes back, and (every other seed) the tracker dies with the rows that wait."""
    from actors import tracker as module

    chance, trouble = random.Random(seed), [True]

    def troubled(write):
        def attempt(*arguments) -> None:
            kind = chance.random() if trouble[0] else 1
            if kind < 0.1:
                time.sleep(0.04 * chance.random())
            elif kind < 0.3:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(*arguments)
            if trouble[0] and chance.random() < 0.05:
                time.sleep(0.02)

        return attempt

    for name in ("append", "write_text"):
        monkeypatch.setattr(module, name, troubled(getattr(module, name)))

    def settle(tracker) -> None:
        until(lambda: tracker._storage._overdue is None or tracker._storage._overdue.done())

    tracker, history, aside, waiting = start(), {}, [], set()
    tracker._storage.limit_s = 0.01
    for life in range(100):
        kind, step = chance.random(), max(history, default=0)
        if step and kind < 0.12:
            back = chance.randint(0, step)
            aside += [history.pop(later) for later in range(back + 1, step + 1)]
            tracker.roll_back(back)
        elif kind < 0.16 and seed % 2:
            settle(tracker)
            if any(isinstance(waited, int) for waited in tracker._waiting):
                continue  # going back would be lost, too
            waiting.update(waited.line for waited in tracker._waiting if isinstance(waited, module.Row))
            tracker = start(again=True)
            tracker._storage.limit_s = 0.01
            if step:
                tracker.log(history[step])  # Ray makes the call again that was not answered
        else:
            history[step + 1] = row(step + 1) | {"life": life}
            tracker.log(history[step + 1])
        if chance.random() < 0.3:
            time.sleep(0.005)
    trouble[0] = False
    settle(tracker)
    tracker._storage.limit_s = 10
    unwritten, _ = tracker.flush()
    rows, gone = rows_of(tmp_path), (tmp_path / "abandoned.jsonl").read_text().splitlines()
    wanted = list(history.values())
    if seed % 2:
        lost = [wanted_row for wanted_row in wanted if wanted_row not in rows]
        assert all(json.dumps(missing) + "\n" in waiting for missing in lost)
        assert rows == [wanted_row for wanted_row in wanted if wanted_row not in lost]
        assert {line for line in gone} <= {json.dumps(abandoned) for abandoned in aside}
    else:
        lost = []
        assert rows == wanted
        assert sorted(gone) == sorted(map(json.dumps, aside))
    assert unwritten == {"metrics.jsonl": len(lost), "abandoned.jsonl": 0}
    assert tracker._history.points("reward")[0].tolist() == [there["step"] for there in rows]
    assert tracker.begun()[0] == [RunTotals.needed(there) for there in rows]


def test_going_back_that_died_with_the_tracker_is_made_good_by_the_next_row(start, tmp_path, full):
    first = start()
    for step in (1, 2, 3, 4):
        first.log(row(step))
    full(0)
    first.roll_back(2)
    full(None)
    second = start(again=True)
    second.log(row(3) | {"reward": 9})
    assert rows_of(tmp_path) == [row(1), row(2), row(3) | {"reward": 9}] and abandoned(tmp_path) == [3, 4]


def test_what_waits_is_bounded_and_what_is_lost_is_counted(tracker, tmp_path, full, monkeypatch):
    from actors import tracker as module

    monkeypatch.setattr(module, "MOST_KEPT", int(2.5 * len(json.dumps(row(1)))))
    full(0)
    for step in (1, 2, 3, 4):
        tracker.log(row(step))
    assert len(tracker._waiting) == 2 and tracker.flush()[0]["metrics.jsonl"] == 4
    full(None)
    assert tracker.flush()[0]["metrics.jsonl"] == 2
    tracker.log(row(5))
    assert rows_of(tmp_path) == [row(1), row(2), row(5)] and tracker.flush()[0]["metrics.jsonl"] == 2
    tracker.roll_back(2)
    assert tracker.flush()[0]["metrics.jsonl"] == 0


def test_rows_that_wait_cost_no_more_for_each_that_comes(tracker, monkeypatch):
    """Thousands wait: each attempt writes a bounded number of them."""
    from actors import tracker as module

    tracker.log(row(1))
    sizes = []

    def fails(text: str, path) -> None:
        sizes.append(text.count("\n"))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(module, "append", fails)
        for step in range(2, 3000):
            tracker.log(row(step))
    assert max(sizes) == module.ROWS_AT_ONCE
    assert tracker.flush()[0]["metrics.jsonl"] == 0


def test_a_long_run_on_slow_storage_is_resumed(start, tmp_path, monkeypatch):
    from actors import tracker as module

    lines = [json.dumps(row(step)) for step in range(1, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr("pipeline.storage.LIMIT_S", 0.1)
    monkeypatch.setattr(module, "write_text", lambda *_: pytest.fail("no row goes, so nothing is to be written"))
    cls, read = module.Tracker.__ray_metadata__.modified_class, module.Tracker.__ray_metadata__.modified_class._lines
    monkeypatch.setattr(cls, "_lines", lambda self: (time.sleep(0.5), read(self))[1])
    tracker = start(step=3)
    tracker._storage.limit_s = 0.1
    rows, _, _, _, news = tracker.begun()
    assert [counted["step"] for counted in rows] == [1, 2, 3] and news == []


def test_a_slow_figure_puts_off_no_row(tracker, tmp_path, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr("pipeline.run.training_plot.training_figure", lambda *_: go.wait(30))
    monkeypatch.setattr("actors.tracker.FIGURE_S", 0.1)
    tracker._storage.limit_s = 0.5
    tracker.log(row(1))
    begin = time.monotonic()
    tracker.draw()
    tracker.draw()
    assert tracker.log(row(2)) == [] and rows_of(tmp_path) == [row(1), row(2)]
    assert tracker.finish({"status": "completed"}) == [
        "· training.png is not done after 0.1 s; the run does not wait for it"
    ]
    assert time.monotonic() - begin < 20  # it hangs for 30 s
    go.set()


def test_a_figure_that_cannot_be_drawn_is_said_with_the_next_row(tracker, monkeypatch):
    def fails(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.run.training_plot.training_figure", fails)
    tracker.log(row(1))
    tracker.draw()
    until(tracker._figure.done)
    (said,) = tracker.log(row(2))
    assert said.startswith("· training.png could not be written") and tracker.log(row(3)) == []
