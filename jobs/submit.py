"""Submit a training job to Ray, follow it, and report the result: `python -m jobs.submit preset=<name> key=value …`.

The job is `python -m jobs.train` with the same arguments, from a copy of the working directory.
It runs on the cluster that RAY_API_SERVER_ADDRESS names (http://head:8265), else on your cluster on this machine. If
there is none, this starts one and stops it at the end.
`--dry-run` submits nothing: it prints the resolved configuration and the plan, and reports what is wrong.
Ctrl-C stops the job, which then has two minutes to save what it trained; a second Ctrl-C stops waiting for it.
Exit status: 0 completed, 130 interrupted, 2 wrong configuration, 1 anything else.
"""

import asyncio
import contextlib
import json
import logging
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from jobs.support.driver import asks_for_help, show_help
from jobs.support.inputs import whole_path
from jobs.support.progress import JobProgress
from jobs.support.ray_token import ClusterError, is_this_machine, require_token
from pipeline.config import names_file
from pipeline.errors import ConfigError
from pipeline.rules import check_data_given
from pipeline.run.config import TrainingConfig, load_training_config
from pipeline.run.rules import check_config
from pipeline.storage import LineFile, append

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

TRAIN = ("python", "-m", "jobs.train")
# Ray kills a stopped job after three seconds unless told otherwise; saving a checkpoint takes longer. The job's
# supervisor reads this from the job's own runtime environment, so it holds on any cluster.
STOP_WAIT_S = 120
LOST_S = 120.0  # a cluster that has not reported on its job for so long counts as lost
PATH_KEYS = ("model.path", "data.path", "validation.data.path")
FOLDER_KEYS = ("data.passage_folders", "validation.data.passage_folders")


class SubmissionError(RuntimeError):
    """The cluster did not accept the job. The message has Ray's reason."""


def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        return show_help(__doc__, TrainingConfig)
    if "--dry-run" in arguments:
        from jobs.train import main as train

        return train(arguments)
    logging.disable(logging.INFO)  # the client logs the end of every stream
    try:
        config = load_training_config(arguments)
        check_config(config)
        check_data_given(config)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    try:
        require_token()
        return submit(arguments)
    except (ClusterError, SubmissionError, ConnectionError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def submit(
    arguments: list[str],
    entrypoint: Sequence[str] = TRAIN,
    working_dir: Path = Path("."),
    dashboard_port: int | None = None,
    progress: JobProgress | None = None,
) -> int:
    """Run `entrypoint arguments…` as a Ray job, from its submission to its summary.

    Args:
        arguments: the run's `key=value` arguments.
        entrypoint: the job's command.
        working_dir: the source, uploaded with the job; `runs/` is made in it unless run.folder is set.
        dashboard_port: dashboard port of a cluster to find or start on this machine; None: Ray's usual one.
        progress: shows the job's lines; None: in the terminal.

    Returns:
        The exit status.

    Raises:
        ClusterError: there is no cluster and none could be started, or the cluster was lost.
        SubmissionError: the cluster did not accept the job.
        KeyboardInterrupt: interrupted before the job was submitted, or a second time while it was ending.
    """
    # All Ray imports here are late: they take a second, and faults of the arguments are reported before.
    from ray.job_submission import JobStatus

    from jobs.support.local_head import DASHBOARD_PORT, find_cluster, local_head

    dashboard_port = dashboard_port or DASHBOARD_PORT
    config = load_training_config(arguments)
    name, now = config.run.name, time.strftime("%Y%m%d-%H%M%S")
    job = name if name.endswith(now) else f"{name}-{now}"  # Ray accepts each id once; a default name has the time
    run = (working_dir / config.run.folder / name).resolve()
    log = run.parent / f"{job}.log"  # beside the run folder, which the job makes
    progress = progress or JobProgress()
    with progress, contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts(progress))
        client = find_cluster(dashboard_port)
        own = client is None
        if client is None:
            progress.say("starting a local Ray head")
            client = stack.enter_context(local_head(dashboard_port))
            stack.callback(progress.say, "stopping the local Ray head")
        address = client.get_address()
        here = is_this_machine(urlsplit(address).hostname)
        progress.say(f"submitting {job} to the Ray cluster at {address}")
        arguments = [*arguments, f"run.name={name}"]
        if here:
            arguments = [whole_preset(argument, working_dir) for argument in arguments]
            arguments += [f"run.folder={run.parent}", *whole_paths(config, working_dir)]
        interrupts.raising = False
        before = versions(run)
        submit_job(client, job, [*entrypoint, *arguments], working_dir)

        def end_job() -> None:
            try:
                client.stop_job(job)
            except (OSError, RuntimeError) as error:
                again = f"`ray job stop --address {address} {job}` asks again"
                progress.say(f"the job was not asked to stop: {error}; {again}")

        interrupts.to_end_job(end_job)
        file = LineFile(log)  # lines that cannot be written wait; the job is shown nevertheless

        def show(line: str) -> None:
            file.put(line)
            progress.line(line)

        try:
            info = asyncio.run(follow(client, job, show))
        except ClusterError as error:
            advice = f"if it still runs, so does the job: `ray job logs --address {address} --follow {job}` shows it"
            if own:
                advice = f"it is stopped now, and the job with it; run.name={name} resume=auto resumes the run"
            raise ClusterError(f"{error}; {advice}") from error
        if problem := file.write():
            progress.say(f"{log} lacks {file.unwritten} lines of the job, which are in Ray's log of it: {problem}")
    changed = {name for name, version in versions(run).items() if version != before.get(name)}
    if changed:  # else the job was refused or ended too early, and the folder is an earlier run's
        log = keep_log(log, run / "job.log")
    if info.status == JobStatus.FAILED and info.driver_exit_code is None:  # it never ran, so its log is empty
        print(info.message)
    summary = report(run) if here and "summary.json" in changed else None
    status = exit_status(info, summary)
    ended = {0: "completed", 130: "interrupted"}.get(status, "failed")
    if summary is None:
        print(f"{ended}, without a summary")
    elif summary == "completed" != ended:  # in its evaluation
        print(f"  {'job':<11} {ended} after its training")
    print(f"  {'log':<11} {log}")
    return status


def versions(run: Path) -> dict[str, tuple[int, int]]:
    """Inode and time in ns of the files that each job writes in its run folder once it has begun."""
    found = {}
    for name in ("config.yaml", "summary.json"):
        with contextlib.suppress(OSError):
            state = (run / name).stat()
            found[name] = (state.st_ino, state.st_mtime_ns)
    return found


def keep_log(log: Path, kept: Path) -> Path:
    """Move a job's log to `kept`, after the logs of the run's earlier jobs; return the path where it is now."""
    try:
        if kept.exists():
            append(log.read_bytes().decode(errors="replace"), kept)
            log.unlink()
        else:
            log.replace(kept)
    except OSError:
        return log  # it stays where it is
    return kept


def exit_status(info: "JobDetails", summary: str | None) -> int:
    """The exit status for a job that has ended.

    Args:
        info: what Ray knows of the job.
        summary: the status in the job's summary; None if it left none.
    """
    from ray.job_submission import JobStatus

    if info.status == JobStatus.STOPPED:  # Ray keeps no exit code of a job that it was asked to stop
        return 1 if summary == "failed" else 130
    status = 0 if info.status == JobStatus.SUCCEEDED else info.driver_exit_code
    return status if status in (0, 2, 130) else 1


class Interrupts:
    """Context manager that handles Ctrl-C and SIGTERM.

    Before the job is submitted, a signal raises KeyboardInterrupt. Afterwards the first signal lets the job save and
    end, and the second one raises.
    """

    def __init__(self, progress: JobProgress):
        self.raising = True
        self._progress = progress
        self._end_job: Callable[[], object] | None = None

    def __enter__(self) -> "Interrupts":
        self._before = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def to_end_job(self, end_job: Callable[[], object]) -> None:
        """Set the function that ends the job. It is called at once if a signal came during the submission."""
        self._end_job = end_job
        if self.raising:
            end_job()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.raising:
            raise KeyboardInterrupt
        self.raising = True
        self._progress.say("stopping: saving the trained state; press Ctrl-C again to stop waiting")
        if self._end_job:
            self._end_job()


def submit_job(client: "JobSubmissionClient", job: str, command: list[str], working_dir: Path) -> None:
    """Upload the source and start the job. Raises `SubmissionError`."""
    # Ray warns that .git and .venv are not uploaded, as intended.
    logging.getLogger("ray._private.runtime_env.working_dir").setLevel(logging.ERROR)
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    try:
        client.submit_job(
            entrypoint=shlex.join(command),
            submission_id=job,
            runtime_env={"working_dir": str(working_dir), "env_vars": environment},
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise SubmissionError(f"the Ray cluster did not accept the job: {error}") from error


async def follow(client: "JobSubmissionClient", job: str, on_line: Callable[[str], object]) -> "JobDetails":
    """Pass each line of the job's log to `on_line` until the job has ended; return what Ray knows of the job.

    A broken stream resumes where it broke.

    Raises:
        ClusterError: the cluster has not reported on the job for `LOST_S` seconds.
    """
    import aiohttp

    taken, rest = 0, ""
    lost_at: float | None = None  # when the cluster stopped reporting
    while True:
        position = 0  # in characters; each stream begins at the start of the log
        with contextlib.suppress(RuntimeError, OSError, aiohttp.ClientError):
            async for text in client.tail_job_logs(job):
                rest += text[max(0, taken - position) :]
                position += len(text)
                taken = max(taken, position)
                *lines, rest = rest.split("\n")
                for line in lines:
                    on_line(line)
        try:
            info = client.get_job_info(job)
        except (OSError, RuntimeError) as error:
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at >= LOST_S:
                where = f"the Ray cluster at {client.get_address()}"
                raise ClusterError(f"{where} has not reported on the job for {LOST_S:.0f} s: {error}") from error
        else:
            if info.status.is_terminal():
                break
            lost_at = None
        await asyncio.sleep(1)
    if rest:
        on_line(rest)
    return info


def whole_preset(argument: str, working_dir: Path) -> str:
    """The argument, with an absolute path if it names a preset by its file."""
    key, _, value = argument.partition("=")
    return f"preset={whole_path(str(working_dir / value))}" if key == "preset" and names_file(value) else argument


def whole_evaluation(evaluation: str, working_dir: Path) -> str:
    """`train.evaluation` with absolute paths for preset files. Raises `SubmissionError` if one holds a blank."""
    arguments = [whole_preset(argument, working_dir) for argument in evaluation.split()]
    if blank := [argument for argument in arguments if len(argument.split()) > 1]:
        raise SubmissionError(
            f"train.evaluation: its arguments are separated by blanks, and {blank[0]!r} holds one; "
            "move the preset's file to a folder without blanks in its path"
        )
    return " ".join(arguments)


def whole_paths(config: TrainingConfig, working_dir: Path) -> list[str]:
    """Arguments with absolute paths for local files and folders: the job runs in a copy of the source elsewhere."""
    paths = {key: working_dir / attrgetter(key)(config) for key in PATH_KEYS if attrgetter(key)(config)}
    if names_file(config.agent.prompt_template):
        paths["agent.prompt_template"] = working_dir / config.agent.prompt_template
    given = [f"{key}={whole_path(str(path))}" for key, path in paths.items() if path.exists()]
    evaluation = whole_evaluation(config.train.evaluation, working_dir)
    given += [f"train.evaluation={json.dumps(evaluation)}"] * (evaluation.split() != config.train.evaluation.split())
    for key in FOLDER_KEYS:
        if folders := [f if "://" in f else str((working_dir / f).resolve()) for f in attrgetter(key)(config)]:
            given.append(f"{key}={json.dumps(folders)}")
    return given


def report(run: Path) -> str | None:
    """Print the content of summary.json; return its status, or None if there is no summary."""
    try:
        summary = json.loads((run / "summary.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(summary, dict) or not isinstance(summary.get("status"), str):
        return None
    print(f"{summary['status']}: {summary.get('steps')} steps in {summary.get('seconds')} s")
    first, last = summary.get("reward_first"), summary.get("reward_last")
    if isinstance(first, int | float) and isinstance(last, int | float):
        print(f"  reward      {first:.3f} at the start, {last:.3f} at the end")
    places = {"checkpoint": summary.get("checkpoint"), "metrics": run / "metrics.jsonl"}
    figures = {"curves": run / "training.png", "accuracy": run / "evaluation" / "accuracy.png"}
    places |= {what: where for what, where in figures.items() if where.exists()}
    for what, where in (places | {"wandb run": summary.get("wandb_run")}).items():
        if where:
            print(f"  {what:<11} {where}")
    return summary["status"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
