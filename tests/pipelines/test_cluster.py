"""A local Ray: what it starts."""

from __future__ import annotations

import psutil
import pytest

from mer_batch.pipelines import cluster


def test_a_local_ray_comes_without_what_nothing_asks(local_ray: None) -> None:
    family = psutil.Process().children(recursive=True)
    programs = {word.rpartition("/")[2] for process in family for word in process.cmdline()[:4]}
    assert "raylet" in programs
    assert not programs & {"dashboard.py", "monitor.py", "log_monitor.py"}


def test_ray_is_as_it_was_after_a_lean_start() -> None:
    node = cluster.ray._private.node.Node
    before = {name: getattr(node, name) for name in cluster._SPARED}
    with pytest.raises(ZeroDivisionError), cluster._lean():
        assert all(getattr(node, name) is not before[name] for name in before)
        raise ZeroDivisionError
    assert {name: getattr(node, name) for name in before} == before
