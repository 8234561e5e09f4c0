"""A night is submitted once, waited for by whoever comes, and ends with its driver's exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.pipelines.test_real_cluster import REPOSITORY, Cluster, cluster, wait_until

__all__ = ["cluster"]  # the fixture

SCRIPT = REPOSITORY / "configs" / "kubernetes" / "submit_night.py"


def submit(cluster: Cluster, night: str, shell: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SCRIPT, cluster.address, night, "bash", "-c", shell],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_night_is_taken_up_again_and_repeated_only_where_that_may_help(
    cluster: Cluster, tmp_path: Path
) -> None:
    runs, go = tmp_path / "runs", tmp_path / "go"
    # Its pod is deleted: the night goes on, and the next pod waits for the same one.
    waits = f"echo begun >> {runs}; until [ -e {go} ]; do sleep 0.2; done; echo the end; exit 3"
    evicted = submit(cluster, "evicted", waits)
    wait_until(runs.exists)
    evicted.send_signal(signal.SIGTERM)
    said, _ = evicted.communicate(timeout=60)
    assert evicted.returncode == 143, said
    next_pod = submit(cluster, "evicted", waits)
    go.touch()
    said, _ = next_pod.communicate(timeout=120)
    assert next_pod.returncode == 3, said
    assert "the end" in said
    # A pod that comes after the end says the same of it.
    late = submit(cluster, "evicted", waits)
    said, _ = late.communicate(timeout=120)
    assert late.returncode == 3, said
    assert runs.read_text() == "begun\n"

    # A fault on the way is worth another try; done is done.
    fails_once = f"echo try >> {runs}; [ $(grep -c try {runs}) = 2 ]"
    for code in (1, 0, 0):
        pod = submit(cluster, "fails", fails_once)
        said, _ = pod.communicate(timeout=120)
        assert pod.returncode == code, said
    assert runs.read_text() == "begun\ntry\ntry\n"

    # Stopped by hand: it stays stopped.
    stopped = submit(cluster, "stopped", f"touch {tmp_path}/up; sleep 300")
    wait_until((tmp_path / "up").exists)
    assert cluster.stop("stopped-1") == 200
    said, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, said
