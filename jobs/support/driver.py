"""Shared by the jobs that run a job actor: joining Ray, stop signals, following the actor to its end."""

import contextlib
import functools
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from jobs.support.keys import REQUIRED, help_text
from jobs.support.noise import hush_workers
from jobs.support.ray_token import ClusterError, check_listener, own_cluster, private_folder, require_token
from jobs.support.run_folder import leave_summary
from jobs.support.stop_signals import StopSignals
from pipeline.errors import ConfigError

LINE_WAIT_S = 2.0
STOP_S = 60.0
PRINT = functools.partial(print, flush=True)
EXIT_STATUS = {"completed": 0, "interrupted": 130}


def asks_for_help(arguments: list[str]) -> bool:
    return "--help" in arguments or "-h" in arguments


def show_help(what: str, schema: type) -> int:
    """Print a job's description and its keys with their defaults and comments; return the exit status."""
    print(what.strip(), "", f"Keys and defaults ({REQUIRED} must be set):", "", help_text(schema), sep="\n")
    return 0


def start_ray() -> bool:
    """Join the cluster of RAY_ADDRESS or of this machine, else start one. Repeated calls start nothing.

    Returns:
        Whether this process is a Ray job.

    Raises:
        ConfigError: the token or the cluster cannot be used; the message gives the reason.
    """
    import ray

    if not ray.is_initialized():
        try:
            address = cluster_to_join()
            print(f"· {f'joining the Ray cluster at {address}' if address else 'starting Ray'}", flush=True)
            require_token()
            if address:
                ray.init(address, logging_level="WARNING")
            else:
                ray.init("local", _temp_dir=str(private_folder() / "ray"), logging_level="WARNING")
        except ClusterError as error:
            raise ConfigError(f"no Ray cluster: {error}") from None
        hush_workers()
    return bool(ray.get_runtime_context().runtime_env.get("working_dir"))


def stop_ray(limit_s: float = STOP_S) -> None:
    """Leave the cluster; end it if this process started it.

    Args:
        limit_s: after so many seconds the cluster's control store (GCS) and raylet are killed if this process started
            them. Ray waits without a limit for the raylet to let this process go, which asks the store; seen once in
            Ray 2.60: no answer came. With the store alone killed, Ray has ended this process with status 1 after
            a minute.
    """
    import ray

    def kill_cluster() -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # the process has ended
                if process.name() in ("gcs_server", "raylet"):
                    process.kill()

    watch = threading.Timer(limit_s, kill_cluster)
    watch.daemon = True
    watch.start()
    try:
        ray.shutdown()
    finally:
        watch.cancel()


def then_stop_ray(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command and leave the cluster, also if it fails; return its exit status.

    Ray itself leaves at the end of the process, but may wait without a limit (`stop_ray`).
    """
    try:
        return main(arguments)
    finally:
        if (ray := sys.modules.get("ray")) and ray.is_initialized():
            stop_ray()


def cluster_to_join() -> str:
    """The address of the cluster in RAY_ADDRESS, or of this user's cluster on this machine; empty if one must be
    started.

    Raises:
        ClusterError: the cluster in RAY_ADDRESS cannot be used.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    if named == "local":
        return ""
    address = own_cluster() if named in ("", "auto") else named
    try:
        if not address and named:
            raise ClusterError(f"RAY_ADDRESS={named}, but no cluster of yours runs on this machine")
        check_listener(address)
    except ClusterError:
        if named:
            raise
        return ""  # the address is a remnant of the last `ray start`
    return address


def start_actor(actor_class: Any, *arguments: object, **options: object) -> Any:
    """Start a job actor, on this node if it can be; return its handle.

    Args:
        actor_class: a class under `@ray.remote`.
        arguments: the arguments of its constructor.
        options: more options of Ray, such as a name.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return actor_class.options(scheduling_strategy=here, **options).remote(*arguments)


def follow(actor, signals: StopSignals, show: Callable[[str], None]) -> dict | str:
    """Run a job actor to its end and show its lines.

    Args:
        actor: the handle of a `JobActor`.
        signals: signals that ask the actor to stop. Their other answers are dropped once the actor has responded.
        show: called with each line.

    Returns:
        The job's summary, or a traceback if the actor itself was lost.
    """
    import ray

    running = actor.run.remote()
    try:
        signals.add(actor.stop.remote)
        shown, ended = 0, list[ray.ObjectRef]()
        while not ended:
            asking = actor.lines.remote(shown, LINE_WAIT_S)
            ended, _ = ray.wait([running, asking], num_returns=1)
            if asking in ended:
                shown, ended = _show(ray.get(asking), show), []
                signals.only(actor.stop.remote)
        shown = _show(ray.get(asking), show)
        _show(ray.get(actor.lines.remote(shown, 0)), show)
        return ray.get(running)
    except ray.exceptions.RayError:
        return traceback.format_exc()
    except KeyboardInterrupt:
        show("· stopped waiting for the job to end")
        stop_ray()
        raise SystemExit(EXIT_STATUS["interrupted"]) from None


def _show(lines: tuple[int, list[str]], show: Callable[[str], None]) -> int:
    """Show the result of `JobActor.lines`; return the number of the next line."""
    shown, new = lines
    for line in new:
        show(line)
    return shown


def summary_of(
    actor,
    signals: StopSignals,
    folder: Path,
    lost: Callable[[str], dict],
    show: Callable[[str], None] = PRINT,
) -> dict:
    """Run a job actor to its end and show its lines; return its summary, which is also in summary.json.

    Args:
        actor: the handle of a `JobActor`.
        signals: signals that ask the actor to stop.
        folder: the run folder.
        lost: makes the summary from a traceback if the actor itself was lost.
        show: called with each line.
    """
    summary = follow(actor, signals, show)
    if isinstance(summary, str):
        summary = lost(summary)
        leave_summary(folder, summary)
    return summary
