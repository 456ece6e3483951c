"""One run at a time in a folder, whatever cluster it is on."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import lease as module
from pipeline.config import ConfigError
from pipeline.lease import LEASE, Heartbeat, Holder, Lease, LeaseLost, is_unused, run_id, take_lease
from tests.faults import ROOT, until

STALE_S = 0.6


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.1)
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    monkeypatch.setattr(module, "SETTLE_S", 0.1)


def from_elsewhere(folder: Path, **changes) -> None:
    """Let the lease in a folder be of a process on another machine, which cannot be looked at."""
    there = module._look(folder / LEASE)
    holder = replace(there.holder, host="elsewhere", machine="another", pid=4711)
    (folder / LEASE).write_bytes(replace(there, holder=holder, **changes).bytes())


def test_a_second_run_is_refused_with_the_owner_and_the_age_of_its_heartbeat(tmp_path):
    lease = take_lease(tmp_path / "run")
    beating = Heartbeat(lease)
    with pytest.raises(ConfigError, match=rf"in use by run {lease.run} on \S+ \(process {os.getpid()}\)") as error:
        take_lease(tmp_path / "run", stale_s=10)
    assert "last heartbeat came 0 s ago" in str(error.value) and "choose another run.name" in str(error.value)
    beating.end()


def test_a_lease_that_was_given_free_is_there_for_the_next_run_and_the_id_stays(tmp_path):
    first = take_lease(tmp_path)
    first.release()
    assert not (tmp_path / LEASE).exists() and is_unused(tmp_path)
    second = take_lease(tmp_path)
    assert second.run == first.run == run_id(tmp_path) and second.token != first.token
    first.release()  # no longer its own
    assert (tmp_path / LEASE).exists()


def test_a_heartbeat_that_stays_the_same_is_stale_and_the_taking_over_is_said(tmp_path):
    dead, said = take_lease(tmp_path), []
    from_elsewhere(tmp_path)
    begin = time.monotonic()
    lease = take_lease(tmp_path, said.append, stale_s=STALE_S)
    assert time.monotonic() - begin >= STALE_S
    assert "leased to" in said[0] and "last heartbeat came" in said[0]
    assert said[-1].startswith(f"· took over the run folder {tmp_path} from run {dead.run} on elsewhere (process 4711)")
    with pytest.raises(LeaseLost, match="was taken over by run"):
        dead.beat()
    lease.keep()


def test_what_a_clock_says_decides_nothing(tmp_path):
    """The file is of last year, or of next year, by the clock of its host; its heartbeat changes."""
    lease = take_lease(tmp_path)
    from_elsewhere(tmp_path)
    for year in (-1, 1):
        stop = threading.Event()

        def beat(year=year, stop=stop):
            beats = 0
            while not stop.wait(0.05):
                beats += 1
                from_elsewhere(tmp_path, beats=beats)
                os.utime(lease.path, (time.time() + year * 31e6,) * 2)

        beating = threading.Thread(target=beat)
        beating.start()
        with pytest.raises(ConfigError, match="in use by"):
            take_lease(tmp_path, stale_s=5)
        stop.set()
        beating.join()


def test_of_a_process_of_this_machine_that_is_gone_nobody_waits_for_the_heartbeat(tmp_path):
    code = f"from pathlib import Path; from pipeline.lease import take_lease; take_lease(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    said = []
    begin = time.monotonic()
    take_lease(tmp_path, said.append, stale_s=60)
    assert time.monotonic() - begin < 10 and "took over" in said[0]


@pytest.mark.parametrize("content", [b"", b"{torn", b"[]", b'{"run": "a"}'])
def test_a_lease_that_cannot_be_read_is_watched_as_well(tmp_path, content):
    (tmp_path / LEASE).write_bytes(content)
    said = []
    assert take_lease(tmp_path, said.append, stale_s=STALE_S)
    assert "an unknown run" in said[-1]


def _take(folder: str, taken) -> None:
    module.SETTLE_S = 0.3
    try:
        lease = take_lease(Path(folder), lambda line: None, stale_s=STALE_S)
    except ConfigError:
        return
    beating = Heartbeat(lease)
    time.sleep(1.5)
    beating.end()
    try:
        lease.beat()
        taken.put(lease.token)
    except LeaseLost:
        pass


@pytest.mark.parametrize("found", ["nothing", "a stale one"])
def test_of_many_that_take_it_at_once_one_has_it(tmp_path, found):
    if found == "a stale one":
        take_lease(tmp_path)
        from_elsewhere(tmp_path)
    context = multiprocessing.get_context("fork")
    taken = context.Queue()
    takers = [context.Process(target=_take, args=(str(tmp_path), taken)) for _ in range(6)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(30)
    assert taken.get(timeout=5) == json.loads((tmp_path / LEASE).read_bytes())["token"]
    assert taken.empty()


def test_the_actor_of_a_job_takes_it_over_from_the_driver_whose_heartbeat_ends(tmp_path, monkeypatch):
    lease = take_lease(tmp_path)
    Heartbeat(lease)
    here = Holder.here()
    until(lambda: module._look(lease.path).beats > 1, 5)
    monkeypatch.setattr(module.Holder, "here", classmethod(lambda cls: replace(here, pid=1)))
    Lease(lease.folder, lease.run, lease.token).keep()  # in the actor's process
    assert module._look(lease.path).holder.pid == 1
    monkeypatch.setattr(module.Holder, "here", classmethod(lambda cls: here))
    beats = module._look(lease.path).beats
    time.sleep(0.5)
    assert module._look(lease.path).beats == beats and not lease.beat()


def test_a_removed_folder_is_a_lost_lease(tmp_path):
    lease = take_lease(tmp_path / "run")
    lease.path.unlink()
    with pytest.raises(LeaseLost, match="somebody removed it"):
        lease.keep()


def test_who_waits_for_a_stale_lease_can_be_stopped(tmp_path):
    take_lease(tmp_path)
    from_elsewhere(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        take_lease(tmp_path, lambda line: None, lambda: True, stale_s=60)


def test_a_suspended_run_whose_folder_was_taken_over_finds_out_when_it_wakes(tmp_path):
    code = (
        "import time; from pathlib import Path; from pipeline import lease\n"
        f"lease.BEAT_S = 0.05; mine = lease.take_lease(Path({str(tmp_path)!r})); print('taken', flush=True)\n"
        "while True:\n    mine.keep(); time.sleep(0.05)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as suspended:
        assert suspended.stdout.readline() == "taken\n"
        suspended.send_signal(signal.SIGSTOP)
        lease = take_lease(tmp_path, lambda line: None, stale_s=STALE_S)
        suspended.send_signal(signal.SIGCONT)
        _, error = suspended.communicate(timeout=20)
    assert "LeaseLost" in error and f"was taken over by run {lease.run}" in error
    assert module._look(lease.path).token == lease.token
