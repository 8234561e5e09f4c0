"""A local Ray: what it starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mer_batch.pipelines import cluster
from tests.pipelines.conftest import table


@pytest.mark.parametrize("n_cpus", [1, 2, 4])
def test_a_night_ends_on_so_many_cpus(
    music: Path, tmp_path: Path, run_cli: Callable[..., Any], n_cpus: int
) -> None:
    config = {"catalog": {"uri": str(music)}, "output": {"uri": str(tmp_path / "out")}}
    path = tmp_path / "tag.yaml"
    path.write_text(yaml.safe_dump({**config, "ray": {"num_cpus": n_cpus}}))
    done = run_cli("tag", path)
    assert done.returncode == 0, done.stderr
    assert len(set(table(tmp_path / "out" / "scores")["track_id"].to_pylist())) == 8


def test_a_local_ray_comes_without_what_nothing_asks(local_ray: None) -> None:
    commands = [process.cmdline() for process in psutil.Process().children(recursive=True)]
    programs = {word.rpartition("/")[2] for command in commands for word in command[:4]}
    assert "raylet" in programs
    assert not programs & {"dashboard.py", "monitor.py", "log_monitor.py"}
    (agent,) = [w for words in commands for w in words if w.startswith("--dashboard_agent_command")]
    assert "--minimal" in agent


_STOPPED_AFTER_RAY = """
import os, signal, sys
from mer_batch.config import RayConfig
from mer_batch.pipelines.cluster import connected

def stop(number, frame):
    print("heard", number, flush=True)

signal.signal(signal.SIGHUP, signal.SIG_IGN)
with connected(RayConfig(num_cpus=1), meanwhile=lambda: None):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    os.kill(os.getpid(), number)
print("goes on", flush=True)
"""


def test_who_is_stopped_after_ray_has_gone_is_heard() -> None:
    """A night is published then, and its lease is to be given back."""
    done = subprocess.run(
        [sys.executable, "-c", _STOPPED_AFTER_RAY], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == ["heard 2", "heard 15", "goes on"], done.stderr
    assert done.returncode == 0


def test_ray_is_as_it_was_after_a_lean_start() -> None:
    private = cluster.ray._private
    replaced = [(private.node.Node, name) for name in cluster._SPARED]
    replaced += [(private.utils, "get_dashboard_dependency_error"), (private.services, "get_node")]
    before = [getattr(*place) for place in replaced]
    with pytest.raises(ZeroDivisionError), cluster._lean():
        assert all(getattr(*place) is not is_ for place, is_ in zip(replaced, before, strict=True))
        raise ZeroDivisionError
    assert [getattr(*place) for place in replaced] == before


def test_a_node_that_cannot_be_looked_for_is_rays_to_tell() -> None:
    asked = []
    cluster._without_sleeping(lambda *node: asked.append(node))("nowhere:1", "a node")
    assert asked == [("nowhere:1", "a node")]
