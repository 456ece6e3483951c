"""One run at a time in a folder, whatever cluster it is on."""

import errno
import os
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from pipeline import lease as module
from pipeline.errors import ConfigError
from pipeline.lease import LEASE, RUN_ID, Heartbeat, Holder, Lease, LeaseLost, is_unused, run_id, take_lease
from tests.support.disks import full_disk
from tests.support.faults import until
from tests.support.leases import STALE_S, from_elsewhere, taking_process


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.1)
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    monkeypatch.setattr(module, "SETTLE_S", 0.1)


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


@pytest.mark.parametrize(("content", "kept"), [(b"", False), (b"\n", False), (b"mine\n", True), (b"\xff", True)])
def test_a_run_keeps_the_id_that_is_there_and_an_empty_one_is_none(tmp_path, content, kept):
    (tmp_path / RUN_ID).write_bytes(content)
    run = take_lease(tmp_path).run
    assert run and (run == content.decode(errors="replace").strip()) == kept


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


def test_of_a_process_of_this_machine_that_is_gone_nobody_waits_for_the_heartbeat(tmp_path):
    taking_process(tmp_path)
    said = []
    begin = time.monotonic()
    take_lease(tmp_path, said.append, stale_s=60)
    assert time.monotonic() - begin < 10 and "took over" in said[0]


def test_a_live_process_stays_alive_when_the_clock_is_set(monkeypatch):
    """Every time since 1970 that a process was started at moves with the clock."""
    here = Holder.here()
    boot_time = psutil._pslinux.boot_time
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot_time() + 1)
    assert not here.is_dead() and Holder.here() == here


def test_a_process_that_ended_or_whose_number_is_used_again_is_dead():
    here = Holder.here()
    assert replace(here, ticks=here.ticks - 1).is_dead()
    assert not replace(here, ticks=here.ticks - 1, machine="another").is_dead()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        there = replace(here, pid=child.pid, ticks=module._process(child.pid)[1])
        assert not there.is_dead()
        child.stdin.close()
        until(there.is_dead, 10)  # a zombie: nobody has waited for it
    assert there.is_dead()


@pytest.mark.parametrize("content", [b"", b"{torn", b"[]", b'{"run": "a"}'])
def test_a_lease_that_cannot_be_read_is_watched_as_well(tmp_path, content):
    (tmp_path / LEASE).write_bytes(content)
    said = []
    assert take_lease(tmp_path, said.append, stale_s=STALE_S)
    assert "an unknown run" in said[-1]


@pytest.mark.parametrize("found", ["nothing", "a stale one"])
@pytest.mark.parametrize("room", [0, 10])
def test_a_lease_that_a_full_disk_has_no_room_for_is_none(tmp_path, monkeypatch, found, room):
    """Else the next run would wait for a run that never was."""
    run_id(tmp_path)
    if found == "a stale one":
        take_lease(tmp_path)
        from_elsewhere(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    full = full_disk(monkeypatch)
    full(room)
    with pytest.raises(OSError, match="No space left"):
        take_lease(tmp_path, lambda line: None, stale_s=STALE_S)
    full(None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_whose_run_gets_no_id_is_given_back(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        take_lease(tmp_path)
    assert not list(tmp_path.iterdir())


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
