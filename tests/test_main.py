"""Where every command begins: it can be stopped before it holds anything."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("terminal_signals")

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.py"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_work_ends_it_in_one_line(tmp_path: Path, number: signal.Signals) -> None:
    check_stopped(["-m", "mer_batch", "tag"], tmp_path / "tag.yaml", number)


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_every_job_can_be_stopped_before_work(tmp_path: Path, job: Path) -> None:
    check_stopped([str(job)], tmp_path / "job.yaml", signal.SIGTERM)


def check_stopped(arguments: list[str], config: Path, number: signal.Signals) -> None:
    os.mkfifo(config)  # read for as long as we like
    with subprocess.Popen(
        [sys.executable, *arguments, str(config)], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            writer = opened_by_a_reader(config)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
            os.close(writer)
        finally:
            process.kill()  # where it has not ended: to be waited for has no end
    assert process.returncode == 130
    assert said == f"mer-batch: stopped by {number.name}\n"


def opened_by_a_reader(fifo: Path) -> int:
    for _ in range(1200):
        with contextlib.suppress(OSError):
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.05)
    raise AssertionError("nobody has opened it for a minute")


def test_nohup_is_heeded() -> None:
    program = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from mer_batch.run import StopSignals\n"
        "with StopSignals() as signals:\n"
        "    signal.raise_signal(signal.SIGHUP)\n"
        "    assert not signals.was_asked\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
