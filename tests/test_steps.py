"""Breakpoints: nothing without a listener, and with one a process waits exactly there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import mer_batch
from mer_batch.steps import STEPS, VARIABLE, reach
from tests.chaos.breakpoints import Breakpoints

_WALK = """
from mer_batch.steps import reach
for step in ("lease_taken", "run_open", "run_open", "lease_released"):
    reach(step)
    print(step, flush=True)
"""


def test_every_step_that_is_named_is_reached_and_no_other() -> None:
    package = Path(mer_batch.__file__).parent
    found = Counter(
        step
        for file in package.rglob("*.py")
        for step in re.findall(r"\breach\(\"?([^)\"]*)\"?\)", file.read_text())
        if file.name != "steps.py"
    )
    assert set(found) == set(STEPS)


def test_where_nobody_listens_a_step_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    reach("a step of no name")


def test_a_step_of_no_name_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with Breakpoints() as breakpoints:
        monkeypatch.setenv(VARIABLE, breakpoints.environment[VARIABLE])
        with pytest.raises(KeyError):
            reach("a step of no name")


def test_a_process_is_held_at_its_step_and_goes_on_when_let_go() -> None:
    with Breakpoints() as breakpoints:
        breakpoints.hold("run_open", nth=2)
        walker = subprocess.Popen(
            [sys.executable, "-c", _WALK],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **breakpoints.environment},
        )
        try:
            assert walker.stdout is not None
            held = breakpoints.wait(60)
            assert held is not None
            assert (held.step, held.pid) == ("run_open", walker.pid)
            assert [walker.stdout.readline() for _ in range(2)] == ["lease_taken\n", "run_open\n"]
            assert breakpoints.wait(0.2) is None
            assert walker.poll() is None
            held.let_go()
            assert walker.stdout.read() == "run_open\nlease_released\n"
            assert walker.wait(60) == 0
        finally:
            walker.kill()
            walker.wait()
    assert breakpoints.seen == {"lease_taken": 1, "run_open": 2, "lease_released": 1}
