"""Storage that is full, hangs, or comes back: what is written, what waits, what is lost and counted."""

import asyncio
import json
import threading
import time

import pytest

from pipeline import storage as module
from pipeline.data.quarantine import Quarantine
from pipeline.storage import LineFile, Storage, StorageClosed, StorageHung, append
from tests.support.disks import full_disk
from tests.support.faults import until

LIMIT_S = 0.2


@pytest.fixture
def full(monkeypatch):
    return full_disk(monkeypatch)


class Hanging:
    """A write that hangs until it is let go."""

    def __init__(self, monkeypatch):
        self.go, self.calls = threading.Event(), 0
        write = module.append

        def hang(*arguments):
            self.calls += 1
            self.go.wait(30)
            return write(*arguments)

        monkeypatch.setattr(module, "append", hang)


def test_a_call_that_hangs_holds_up_neither_its_caller_nor_the_next_one(tmp_path):
    storage, go = Storage(tmp_path, LIMIT_S), threading.Event()
    assert storage.call(lambda: 3) == 3
    with pytest.raises(StorageHung, match="did not answer within 0.2 s"):
        storage.call(go.wait)
    with pytest.raises(StorageHung, match=f"the storage of {tmp_path} does not answer"):  # at once
        storage.call(lambda: 4)
    go.set()
    while not storage._overdue.done():
        time.sleep(0.01)
    assert storage.call(lambda: 5, limit_s=10) == 5


def test_the_event_loop_runs_while_the_storage_hangs(tmp_path):
    storage, go = Storage(tmp_path, limit_s=1), threading.Event()

    async def run():
        calling, beats = asyncio.ensure_future(storage.call_async(go.wait)), 0
        while not calling.done():
            await asyncio.sleep(0.01)
            beats += 1
        with pytest.raises(StorageHung):
            calling.result()
        go.set()
        assert beats > 5

    asyncio.run(run())


def test_an_error_of_the_call_comes_to_its_caller(tmp_path):
    with pytest.raises(FileNotFoundError):
        Storage(tmp_path).call((tmp_path / "none").read_bytes)


@pytest.mark.parametrize("room", [0, 3])
def test_lines_that_a_full_disk_refuses_are_written_later_once_and_whole(tmp_path, full, room):
    file = LineFile(tmp_path / "folder" / "lines.jsonl")
    assert file.add("one") == ""
    full(room)
    assert "No space left" in file.add("two", "three") and file.unwritten == 2
    assert "No space left" in file.add("four") and file.unwritten == 3
    full(None)
    assert file.path.read_text() == "one\n"  # nothing of what did not fit
    assert file.add("five") == "" and file.unwritten == 0
    assert file.path.read_text().split() == ["one", "two", "three", "four", "five"]


def test_lines_put_while_the_storage_hangs_are_written_when_it_is_back(tmp_path, monkeypatch):
    hanging = Hanging(monkeypatch)
    file = LineFile(tmp_path / "lines.jsonl", Storage(tmp_path, LIMIT_S))
    for line in ("one", "two", "three"):
        file.put(line)
    assert file.unwritten == 3 and file.problem == ""  # and nobody has waited
    until(lambda: "does not answer" in file.problem)
    assert "not answer" in file.write() and file.unwritten == 3
    hanging.go.set()
    until(lambda: not file.write())
    assert file.path.read_text().split() == ["one", "two", "three"] and file.unwritten == 0


def test_lines_from_many_threads_are_all_there(tmp_path):
    file = LineFile(tmp_path / "lines.jsonl")
    threads = [threading.Thread(target=file.put, args=(f"{number}",)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.write() == ""
    assert sorted(map(int, file.path.read_text().split())) == list(range(200))


def test_what_there_is_no_room_to_keep_is_counted(tmp_path, full, monkeypatch):
    monkeypatch.setattr(module, "MOST_KEPT", 10)
    file = LineFile(tmp_path / "lines.jsonl")
    full(0)
    for _ in range(4):
        file.add("12345")
    assert (file.unwritten, file.lost) == (4, 2)
    full(None)
    file.write()
    assert file.path.read_text().split() == ["12345"] * 2 and file.unwritten == file.lost == 2


def test_a_line_that_was_cut_off_stays_a_line_of_its_own(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"whole": 1}\n{"cut')
    append("two\n", path)
    assert path.read_text() == '{"whole": 1}\n{"cut\ntwo\n'


def test_a_quarantine_outlives_a_full_disk_where_it_is_to_and_raises_elsewhere(tmp_path, full):
    file = tmp_path / "quarantine.jsonl"
    strict, lasting = Quarantine(file, 1.0), Quarantine.outliving(LineFile(file, Storage(tmp_path)), 1.0)
    full(0)
    with pytest.raises(OSError, match="No space left"):
        strict.add("a", "bad", {})
    lasting.add("a", "bad", {})
    lasting.add("b", "worse \ud800", {})
    assert lasting.bad == 2 and "No space left" in lasting.line_file.write() and lasting.line_file.unwritten == 2
    full(None)
    lasting.line_file.write()
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["a", "b"]


def test_storage_that_is_closed_makes_no_call_not_even_one_that_waits(tmp_path):
    storage, go, made = Storage(tmp_path), threading.Event(), []
    file = LineFile(tmp_path / "lines.jsonl", storage)
    storage.begin(go.wait, 10)
    waiting = storage.begin(made.append, 1)
    file.put("a line")
    storage.close("it is another run's")
    go.set()
    for late in (waiting.result, lambda: storage.call(made.append, 2), lambda: storage.begin(made.append, 3)):
        with pytest.raises(StorageClosed, match="it is another run's"):
            late()
    file.put("another")
    assert file.add("a third") == "it is another run's"
    assert not made and not file.path.exists() and file.unwritten == 3
