"""A cluster of processes, with token authentication: nodes die, sleep and join."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.pipelines.outputs import N_TRACKS, check_exactly_once, committed

pytest.importorskip("aiohttp", reason="needs ray[default]: the job server")

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


class Cluster:
    """A head without CPUs and worker nodes of one CPU, each a family of processes of its own.

    All of them lie in one temporary folder, as they do by default: the hard case.
    """

    def __init__(self, folder: Path) -> None:
        self.token = secrets.token_hex(32)
        self._folder = folder
        self._nodes: list[psutil.Process] = []
        port, dashboard_port = free_port(), free_port()
        self.gcs = f"127.0.0.1:{port}"
        self.address = f"http://127.0.0.1:{dashboard_port}"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON"))}
        self.environment = {
            **inherited,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            # A node that says nothing is given up after some ten seconds, not a minute.
            "RAY_health_check_period_ms": "2000",
            "RAY_health_check_timeout_ms": "4000",
            "RAY_health_check_failure_threshold": "2",
        }
        self._add(
            "--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={folder / 'ray'}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}",
            f"--ray-client-server-port={free_port()}",
        )  # fmt: skip
        wait_until(lambda: self.ask("/api/version")[0] == 200)

    def add_worker(self) -> psutil.Process:
        """A worker node of one CPU, up and ready."""
        return self._add(f"--address={self.gcs}", "--num-cpus=1")

    def _add(self, *arguments: str) -> psutil.Process:
        log = self._folder / f"node-{len(self._nodes)}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [
                    BIN / "ray", "start", "--block", "--object-store-memory=100000000",
                    # Its own: whichever Ray of this machine is first has the usual one.
                    f"--dashboard-agent-listen-port={free_port()}", *arguments,
                ],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        node = psutil.Process(process.pid)
        self._nodes.append(node)
        wait_until(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        return node

    def submit(self, *command: str) -> str:
        """Submit a job as README says; returns its name."""
        name = f"job-{secrets.token_hex(4)}"
        submit = [
            BIN / "ray", "job", "submit", f"--address={self.address}", f"--submission-id={name}",
            "--no-wait", "--working-dir=.", "--", *command,
        ]  # fmt: skip

        def is_submitted() -> bool:
            # A head that has just started says for some seconds that it has no agent yet.
            done = subprocess.run(
                submit, cwd=REPOSITORY, env=self.environment, capture_output=True, text=True
            )
            assert done.returncode == 0 or "No available agent" in done.stderr, done.stderr
            return done.returncode == 0

        wait_until(is_submitted)
        return name

    def state_of(self, job: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return str(json.loads(self.ask(f"/api/jobs/{job}")[1])["status"])

    def log_of(self, job: str) -> str:
        return str(json.loads(self.ask(f"/api/jobs/{job}/logs")[1])["logs"])

    def n_dead(self) -> int:
        """Nodes that the cluster has given up."""
        nodes = json.loads(self.ask("/nodes?view=summary")[1])["data"]["summary"]
        return sum(node["raylet"]["state"] == "DEAD" for node in nodes)

    def stop(self, job: str) -> int:
        """Stop a job; returns the job server's status."""
        return self.ask(f"/api/jobs/{job}/stop", method="POST")[0]

    def ask(self, path: str, *, token: str | None = None, method: str = "GET") -> tuple[int, bytes]:
        """What the job server answers to a request with a token, its own by default."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        request = urllib.request.Request(f"{self.address}{path}", headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, b""
        except OSError:
            return 0, b""

    def close(self) -> None:
        for node in reversed(self._nodes):
            kill(node)


def family(node: psutil.Process) -> list[psutil.Process]:
    try:
        return [node, *node.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(node: psutil.Process) -> None:
    """Power off: every process of a node at once."""
    send(family(node), signal.SIGKILL)


def send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def decoders(node: psutil.Process) -> list[psutil.Process]:
    found = []
    for process in family(node):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "mer_batch.child" in process.cmdline():
                found.append(process)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(what: Callable[[], object], *, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # Not pytest's: sockets lie below it, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="c-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def config(tmp_path: Path, long_mp3: bytes) -> Path:
    """A catalog that takes some seconds of work; a fifth of it is broken."""
    folder = tmp_path / "music"
    folder.mkdir()
    (tmp_path / "one.mp3").write_bytes(long_mp3)
    for number in range(N_TRACKS):
        name = folder / f"{number:03}.mp3"
        if number % 5:
            os.link(tmp_path / "one.mp3", name)
        else:
            name.write_bytes(b"broken" * number)
    content = {"catalog": {"uri": str(folder)}, "output": {"uri": str(tmp_path / "out")}}
    path = tmp_path / "tag.yaml"
    path.write_text(yaml.safe_dump({**content, "max_reject_rate": 0.5}))
    return path


def test_a_job_outlives_nodes_that_die_sleep_and_join(cluster: Cluster, config: Path) -> None:
    output = config.parent / "out"
    dying, sleeping = cluster.add_worker(), cluster.add_worker()
    assert cluster.ask("/api/jobs/", token="another")[0] in (401, 403)
    assert cluster.ask("/api/jobs/")[0] == 200

    job = cluster.submit("python", "jobs/tag_catalog.py", str(config))

    def wait_in_job(what: Callable[[], object]) -> None:
        wait_until(lambda: what() or has_ended())
        assert not has_ended(), cluster.log_of(job)

    def has_ended() -> bool:
        return cluster.state_of(job) not in ("PENDING", "RUNNING")

    wait_in_job(lambda: committed(output) and decoders(dying) and decoders(sleeping))
    for decoder in [*decoders(dying), *decoders(sleeping)]:
        assert cluster.token not in str(decoder.environ())
    kill(dying)
    # Past the time after which a cluster gives a node up, and back in the middle of its block.
    asleep = family(sleeping)
    send(asleep, signal.SIGSTOP)
    cluster.add_worker()
    wait_in_job(lambda: cluster.n_dead() == 2)
    send(asleep, signal.SIGCONT)
    wait_until(has_ended)

    shown = cluster.log_of(job)
    assert cluster.state_of(job) == "SUCCEEDED", shown
    assert "Traceback" not in shown
    check_exactly_once(output)
    for trace in output.glob("runs/2*/*"):
        assert cluster.token not in trace.read_text()
    assert cluster.token not in shown


def test_nodes_that_were_gone_before_a_run_are_no_matter(cluster: Cluster, config: Path) -> None:
    output = config.parent / "out"
    gone = cluster.add_worker()
    cluster.add_worker()
    kill(gone)
    wait_until(lambda: cluster.n_dead() == 1)
    tag = [BIN / "mer-batch", "tag", config, f"ray.address={cluster.gcs}"]
    done = subprocess.run(tag, env=cluster.environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    check_exactly_once(output)
    assert list(output.glob("runs/_open/*")) == [], "a complete run is not swept after"
