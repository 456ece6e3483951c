"""A Ray cluster for jobs.submit that runs each job at once, in this process."""

import shlex
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import requests
from ray.job_submission import JobDetails, JobStatus, JobType


class JobClient:
    """Stands in for Ray's `JobSubmissionClient` of a cluster on this machine.

    Args:
        job: called with the run folder when a job is submitted; returns Ray's status of the job and its exit code,
            which is None for a stopped job, as in Ray.
        lines: the job's log.

    `lost` is the number of next requests about the job that find no cluster.
    """

    def __init__(self, job: Callable[[Path], tuple[JobStatus, int | None]], lines: str = "a line\n"):
        self.job, self.lines = job, lines
        self.lost = 0.0
        self.ids: list[str] = []

    def get_address(self) -> str:
        return "http://127.0.0.1:8265"

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict) -> None:
        if submission_id in self.ids:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists")
        self.ids.append(submission_id)
        settings = dict(argument.split("=", 1) for argument in shlex.split(entrypoint) if "=" in argument)
        self.status, self.exit_code = self.job(Path(settings["run.folder"], settings["run.name"]))

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield self.lines

    def _ask(self) -> None:
        if self.lost > 0:
            self.lost -= 1
            raise requests.exceptions.ConnectionError("connection refused")

    def stop_job(self, job: str) -> None:
        self._ask()

    def get_job_info(self, job: str) -> JobDetails:
        self._ask()
        return JobDetails(
            type=JobType.SUBMISSION,
            submission_id=job,
            status=self.status,
            driver_exit_code=self.exit_code,
            entrypoint="",
            message="",
        )
