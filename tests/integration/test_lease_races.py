"""The lease of a run folder among processes: many that take it at once, one that was suspended."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline import lease as module
from pipeline.errors import ConfigError
from pipeline.lease import LEASE, RUN_ID, Heartbeat, LeaseLost, take_lease
from tests.support.faults import LIMIT_S, ROOT
from tests.support.leases import STALE_S, from_elsewhere, taking_process


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


def _take(folder: str, stale_s: float, begin, ended) -> None:
    module.SETTLE_S = 0.3
    begin.wait()
    try:
        lease = take_lease(Path(folder), lambda line: None, stale_s=stale_s)
        beating = Heartbeat(lease)
        time.sleep(1.5)
        beating.end()
        lease.beat()
        ended.put(("has it", lease.run))
    except ConfigError as error:
        ended.put(("refused", str(error)))
    except LeaseLost as error:
        ended.put(("lost it", str(error)))


@pytest.mark.parametrize("takers", [2, 6])
@pytest.mark.parametrize("found", ["nothing", "a stale one", "one of a dead process"])
def test_of_many_that_take_it_at_once_one_has_it_and_the_others_are_refused(tmp_path, found, takers):
    """In a new folder they also make its run.id, which is that of the one that has the lease."""
    if found == "one of a dead process":
        taking_process(tmp_path)
    if found == "a stale one":
        take_lease(tmp_path)
        from_elsewhere(tmp_path)
    stale_s = STALE_S if found == "a stale one" else 30.0  # that a busy machine is slow makes no lease stale
    context = multiprocessing.get_context("fork")
    begin, ended = context.Event(), context.Queue()
    processes = [context.Process(target=_take, args=(str(tmp_path), stale_s, begin, ended)) for _ in range(takers)]
    for process in processes:
        process.start()
    begin.set()
    for process in processes:
        process.join(LIMIT_S)
    assert [process.exitcode for process in processes] == [0] * takers
    results = [ended.get(timeout=LIMIT_S) for _ in processes]
    ((_, run),) = [result for result in results if result[0] == "has it"]
    assert run == json.loads((tmp_path / LEASE).read_bytes())["run"] == (tmp_path / RUN_ID).read_text().strip()
    assert all("is in use by" in said for kind, said in results if kind == "refused")
    if found == "nothing":  # of several that replace a stale lease, some find out at their next heartbeat
        assert [kind for kind, _ in results].count("refused") == takers - 1
    assert {path.name for path in tmp_path.iterdir()} == {LEASE, RUN_ID}


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
        _, error = suspended.communicate(timeout=LIMIT_S)
    assert "LeaseLost" in error and f"was taken over by run {lease.run}" in error
    assert module._look(lease.path).token == lease.token
