"""Submit a night to a cluster once, wait for its end, and end with its exit code.

python submit_night.py ADDRESS NIGHT COMMAND [ARGUMENT ...]

``ray job submit`` says 1 for every fault and 0 for a night that was stopped, and knows nothing of
an earlier one. This takes a night up again that is still running, whoever has submitted it, and
starts it again only where that may help: after a fault on the way (1), or a driver that was killed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ray.job_submission import JobStatus, JobSubmissionClient

T = TypeVar("T")

_PATIENCE_SECONDS = 600
_WAIT_SECONDS = 2
#: Refused, too many rejects, the output is held by another run, stopped: the same would come again.
_FINAL = (2, 3, 4, 130)


def main(address: str, night: str, command: list[str]) -> int:
    """Returns the exit code of the night's driver; 1 where it is not known."""
    client = patiently(lambda: JobSubmissionClient(address))
    name = patiently(lambda: started(client, night, shlex.join(command)))
    print(f"following {name}", flush=True)
    n_shown = 0
    while True:
        job = patiently(lambda: submissions(client, name)).get(name)
        if job is None:
            print(f"the cluster no longer knows {name}: its head was started anew", flush=True)
            return 1
        # Only shown: one that has not begun, or whose node is gone, has no logs.
        with contextlib.suppress(RuntimeError, OSError):
            logs = client.get_job_logs(name)
            print(logs[n_shown:], end="", flush=True)
            n_shown = len(logs)
        if job.status.is_terminal():
            print(f"{name}: {job.status}, exit code {exit_code(job)}", flush=True)
            return exit_code(job)
        time.sleep(_WAIT_SECONDS)


def started(client: JobSubmissionClient, night: str, entrypoint: str) -> str:
    """The name of the night's latest submission, made now where there is none to wait for."""
    there = submissions(client, f"{night}-")
    numbers = [int(name.rpartition("-")[2]) for name in there]
    latest = f"{night}-{max(numbers, default=0)}"
    if latest in there:
        job = there[latest]
        if not job.status.is_terminal() or exit_code(job) in (0, *_FINAL):
            return latest
    # `ray job stop` kills after 3 s otherwise, before what is in hand can be committed.
    environment = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30"}}
    name = f"{night}-{max(numbers, default=0) + 1}"
    return client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env=environment)


def submissions(client: JobSubmissionClient, prefix: str) -> dict[str, Any]:
    """What the cluster knows of submissions, by name."""
    jobs = {str(job.submission_id): job for job in client.list_jobs()}
    return {name: job for name, job in jobs.items() if name.startswith(prefix)}


def exit_code(job: Any) -> int:
    """0, 130 for one that was stopped, or what its driver has said."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        return 130
    code = job.driver_exit_code or 1
    return code if code > 0 else 1


def patiently(ask: Callable[[], T]) -> T:
    """A head that starts, or is gone for a while, is waited for."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except (RuntimeError, OSError) as error:
            if time.monotonic() > deadline:
                raise
            print(f"waiting for the cluster: {' '.join(str(error).split())[:300]}", flush=True)
        time.sleep(_WAIT_SECONDS)


if __name__ == "__main__":
    # The first process of a container is sent no signal that it does not ask for. The night goes
    # on without this one.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
