"""The Ray cluster for a job: a running one, else a local head that is started for the job and stopped after it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from jobs.support.ray_token import ClusterError, check_length, check_listener, listeners, own_cluster

DASHBOARD_PORT = 8265
START_TIMEOUT_S = 120.0
STOP_S = 30.0  # then the head is killed
# The `ray` command of this interpreter's environment, whether or not that is activated.
RAY = str(Path(sys.executable).parent / "ray")


def find_cluster(dashboard_port: int = DASHBOARD_PORT) -> JobSubmissionClient | None:
    """A client of the cluster in RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else of one on this machine.

    Args:
        dashboard_port: port of this machine where a cluster's dashboard may answer.

    Returns:
        The client, or None if there is no cluster.

    Raises:
        ClusterError: the environment names a cluster that cannot be used.
    """
    named = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    here = f"http://127.0.0.1:{dashboard_port}"
    if not named and not listeners(dashboard_port):
        return None
    try:
        check_listener(own_cluster() if named == "auto" else named or here)
        return JobSubmissionClient(None if named else here)
    except ClusterError as error:
        if named:
            raise
        print(f"· {error}", flush=True)
        return None
    except (AuthenticationError, OSError, RuntimeError, ValueError) as error:
        if named:
            raise ClusterError(f"the Ray cluster at {named} cannot be used: {error}") from error
        return None  # no cluster, another program, or another user's cluster


@contextlib.contextmanager
def local_head(dashboard_port: int = DASHBOARD_PORT, num_cpus: int | None = None) -> Iterator[JobSubmissionClient]:
    """Start a Ray head on this machine and stop it at the end of the block.

    Ray's usual ports are used if they are free. The head has its own temporary folder, so that it and other heads on
    this machine do not find each other. If the block fails, the folder is kept for Ray's logs.

    Raises:
        ClusterError: the head did not start; the message has the end of its log.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="ray-"))  # mode 0700: Ray makes its own folder, inside, open to all
    except OSError as error:
        raise ClusterError(f"no folder for temporary files: {error}; set TMPDIR to a folder of yours") from None
    try:
        check_length(folder / "ray")
    except ClusterError:
        folder.rmdir()
        raise
    log = folder / "head.log"
    port = free_port(dashboard_port)
    command = [RAY, "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={folder}/ray"]
    command += [f"--port={free_port(6379)}", f"--dashboard-port={port}", f"--ray-client-server-port={free_port(10001)}"]
    command += [f"--dashboard-agent-listen-port={free_port(52365)}"]
    command += [f"--num-cpus={num_cpus}"] if num_cpus else []
    environment = os.environ | {
        # Ray looks up the job's `python` in the head's PATH.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "OMP_NUM_THREADS": "1",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # the job has ended before the head is stopped
    }
    # A separate session: Ctrl-C in the terminal must not reach the head, which the job needs until it has ended.
    with log.open("wb") as output:
        head = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    failed = False
    try:
        yield _wait_for_dashboard(head, f"http://127.0.0.1:{port}", log)
    except Exception:
        failed = True
        raise
    finally:
        stop_head(head)
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)


def stop_head(head: subprocess.Popen) -> None:
    """Stop this head only: `ray stop` would stop every Ray process on the machine."""
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(STOP_S)
    except subprocess.TimeoutExpired:
        head.kill()  # Ray's reaper then ends the head's processes
        head.wait()


def free_port(wanted: int) -> int:
    """`wanted` if nothing listens on it, else any free port."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise ClusterError("no free network port on this machine")


def _wait_for_dashboard(head: subprocess.Popen, address: str, log: Path) -> JobSubmissionClient:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and head.poll() is None:
        with contextlib.suppress(OSError, RuntimeError):  # includes ClusterError: nothing listens yet
            check_listener(address)
            return JobSubmissionClient(address)
        time.sleep(0.1)
    why = "did not answer in time" if head.returncode is None else f"ended with status {head.returncode}"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    raise ClusterError(f"the local Ray head {why}; the end of {log}:\n{tail}")
