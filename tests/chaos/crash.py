"""Kill one process of a run exactly at a step, and see how the run ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import psutil

from tests.chaos.breakpoints import Breakpoints, Held
from tests.chaos.world import Command, World

#: Who is killed with -9; the holder is paused past its lease instead, and wakes up again.
Victim = Literal["driver", "worker", "decoder", "raylet", "holder"]
VICTIMS = get_args(Victim)

_PATIENCE_SECONDS = 240.0
_DYING_SECONDS = 20.0
# A holder's that is to lose it: no longer than the shortest that a configuration may say.
_SHORT_LEASE_SECONDS = 2.0
_LONG_LEASE_SECONDS = 60.0


@dataclass(frozen=True)
class Point:
    """A crash: who dies when a run has come to a step for the `nth` time."""

    step: str
    victim: Victim
    nth: int = 1


def crash(
    world: World, command: Command, *points: Point, times: int = 1, renews: bool = False
) -> int | None:
    """Run into crash points, one after the other.

    Parameters
    ----------
    times : int
        How often in a row the victim of the last point dies.
    renews : bool
        Whether the lease is so short that it is renewed within any run.

    Returns
    -------
    int or None
        The run's exit code, -9 where the driver was killed; None where it ended in order before it
        had come to the last point.
    """
    seconds = _SHORT_LEASE_SECONDS if renews else _LONG_LEASE_SECONDS
    with Breakpoints() as breakpoints:
        driver = world.start(command, breakpoints.environment, lease_seconds=seconds)
        try:
            for point in points:
                breakpoints.hold(point.step, nth=point.nth, times=times)
                n_struck = 0
                while n_struck < times:
                    held = wait_for(breakpoints, driver)
                    if held is None:
                        code = driver.wait()
                        assert code == 0 or n_struck, world.last_log()
                        return code if n_struck else None
                    if strike(point.victim, held, driver):
                        n_struck += 1
                    else:
                        breakpoints.hold(point.step, times=times - n_struck)
                    held.let_go()
            return driver.wait(_PATIENCE_SECONDS)
        finally:
            breakpoints.clear()
            end(driver)


def pause(
    world: World, command: Command, step: str, *, until: str | None = None, dies: bool = False
) -> int | None:
    """Pause a run at a step past its lease, let another one take over, and wake it up.

    Parameters
    ----------
    until : str, optional
        The step that the other one has come to by then; by default it has come to its end.
    dies : bool
        Whether the one that slept is killed when it finds its lease lost.

    Returns
    -------
    int or None
        Its exit code; None where it never came to the step.
    """
    with Breakpoints() as breakpoints:
        holder = world.start(command, breakpoints.environment, lease_seconds=_SHORT_LEASE_SECONDS)
        try:
            breakpoints.hold(step)
            held = wait_for(breakpoints, holder)
            if held is None:
                return None
            os.kill(holder.pid, signal.SIGSTOP)
            held.let_go()
            time.sleep(_SHORT_LEASE_SECONDS + 0.5)
            with _taken_over(world, command, until):
                before = world.snapshot()
                if dies:
                    breakpoints.hold("lease_lost")
                os.kill(holder.pid, signal.SIGCONT)
                if dies and wait_for(breakpoints, holder):
                    holder.kill()
                code = holder.wait(_PATIENCE_SECONDS)
                changed = before.items() ^ world.snapshot().items()
                assert not changed, f"a holder that woke up has changed {sorted(changed)}"
            return code
        finally:
            breakpoints.clear()
            end(holder)


@contextlib.contextmanager
def _taken_over(world: World, command: Command, until: str | None) -> Iterator[None]:
    """Another run that has come to a step, and goes on to its end afterwards."""
    with Breakpoints() as breakpoints:
        if until is not None:
            breakpoints.hold(until)
        other = world.start(command, breakpoints.environment)
        try:
            held = wait_for(breakpoints, other)
            if held is None:
                assert other.wait() == 0, world.last_log()
                world.check_complete(command)
            yield
            if held is not None:
                held.let_go()
            assert other.wait(_PATIENCE_SECONDS) == 0, world.last_log()
        finally:
            breakpoints.clear()
            end(other)
        # The one that slept may have marked itself open before it learnt of all this.
        world.check_results(command)


def finish(world: World, command: Command) -> None:
    """Run to the end, and see that everything is as it must be."""
    driver = world.start(command, {})
    try:
        assert driver.wait(_PATIENCE_SECONDS) == 0, world.last_log()
    finally:
        end(driver)
    world.check_complete(command)


def wait_for(breakpoints: Breakpoints, driver: subprocess.Popen[bytes]) -> Held | None:
    """The next process that is held; None where the run has ended without."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        is_over = driver.poll() is not None
        held = breakpoints.wait(0.05)
        if held is not None or is_over:
            return held
    raise AssertionError(f"nothing happened for {_PATIENCE_SECONDS:.0f} s: {breakpoints.seen}")


def strike(victim: Victim, held: Held, driver: subprocess.Popen[bytes]) -> bool:
    """Kill the victim while a process is held; False where there is none of its kind."""
    family = psutil.Process(driver.pid).children(recursive=True)
    if victim == "driver":
        driver.kill()
        driver.wait()
        check_gone(family)
        return True
    pid = _pid(victim, held, family)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    return pid is not None


def _pid(victim: Victim, held: Held, family: list[psutil.Process]) -> int | None:
    if victim == "worker":
        return held.pid
    if victim == "raylet":
        return next(process.pid for process in family if process.name() == "raylet")
    assert victim == "decoder", victim
    # A worker none of whose tracks could be read has no decoder yet; another one's will do.
    own = psutil.Process(held.pid).children()
    return next((process.pid for process in [*own, *family] if _is_decoder(process)), None)


def _is_decoder(process: psutil.Process) -> bool:
    try:
        return "mer_batch.child" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def check_gone(family: list[psutil.Process]) -> None:
    """Behind a dead driver its workers, their decoders and the raylet must go within seconds."""
    _, left = psutil.wait_procs(family, timeout=3)
    _, busy = psutil.wait_procs([p for p in left if not _is_idle(p)], timeout=_DYING_SECONDS)
    # Asked again: one that was just starting has its name only now.
    busy = [process for process in busy if not _is_idle(process)]
    assert not busy, f"{busy} outlived the driver"
    for idle in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            idle.kill()


def _is_idle(process: psutil.Process) -> bool:
    """Whether this does no work of ours, and ends by itself too, but takes a minute.

    Ray's agents; and a worker that has just been started looks for its raylet for so long. It still
    goes by its file: one that has found it is named for what it does.
    """
    try:
        is_starting = any("default_worker.py" in word for word in process.cmdline())
        return is_starting or "Agent" in process.name()
    except psutil.NoSuchProcess:
        return True


def end(driver: subprocess.Popen[bytes]) -> None:
    """Leave nothing behind of a run, however it went."""
    if driver.poll() is None:
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        driver.wait()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
