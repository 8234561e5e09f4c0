"""Run a command to its end, watching it and all processes below it: seconds, CPU, memory."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]

# Looking costs CPU, and reading memory most of it: of one core, no more than these shares.
_LOOK_SECONDS = 0.25
_LOOK_SHARE = 0.02
_MEMORY_SHARE = 0.01
_END_SECONDS = 15.0
_INTERRUPTED = 130  # the exit code of a run that was asked to stop

_KINDS = (
    # (words in the command line, what such a process is)
    (("mer_batch.child", "fake_decoder"), "decoders"),
    (("ray::DashboardAgent", "ray::RuntimeEnvAgent"), "Ray's own processes"),
    (("ray::", "default_worker.py", "setup_worker.py"), "Ray's workers"),
    (
        ("raylet", "gcs_server", "dashboard", "log_monitor", "monitor.py", "runtime_env"),
        "Ray's own processes",
    ),
    (("java",), "Java"),
)


@dataclass
class Usage:
    """What a command took.

    Attributes
    ----------
    seconds : float
        From its start to its end.
    cpu_seconds : dict
        By kind of process: "driver" is the command's own process. What ended between two looks
        is known when its parent has waited for it, and stands under "ended between two looks".
    peak_bytes : int
        Largest sum over the family of their proportional shares of memory (PSS): what several
        hold together counts once.
    driver_peak_bytes : int
        Largest resident memory of the command's own process, by the kernel's high-water mark.
    driver_bytes : list of tuple
        How long the command had gone on [s], and its own process's memory then (PSS).
    stdout : str
    """

    seconds: float = 0.0
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    driver_peak_bytes: int = 0
    driver_bytes: list[tuple[float, int]] = field(default_factory=list)
    stdout: str = ""


def run_watched(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    stop_after: float | None = None,
) -> Usage:
    """Run a command in this repository; its stderr goes to `log`.

    Parameters
    ----------
    stop_after : float, optional
        Ask it to stop after so long [s]; it may then say that it was interrupted.

    Raises
    ------
    RuntimeError
        Where it fails: with the end of what it wrote.
    """
    # Files, not pipes: a process that outlives the command would keep a pipe open.
    output = log.with_suffix(".out")
    with log.open("wb") as stderr, output.open("wb") as stdout:
        cpu, began = _waited_cpu(), time.monotonic()
        process = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
        )  # fmt: skip
        watcher = _Watcher(process.pid)
        watcher.start()
        try:
            try:
                process.wait(stop_after)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
        except BaseException:  # stopped by hand: nothing goes on by itself
            watcher.kill()
            raise
        seconds = time.monotonic() - began
    usage = watcher.end(waited_cpu=_waited_cpu() - cpu)
    usage.seconds, usage.stdout = seconds, output.read_text(errors="replace")
    if process.returncode not in (0, *([] if stop_after is None else [_INTERRUPTED])):
        words = (log.read_text(errors="replace") + usage.stdout)[-2000:]
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {words}")
    return usage


def _waited_cpu() -> float:
    """CPU of all processes that this one, and those below it, have waited for."""
    times = resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.ru_utime + times.ru_stime


class _Watcher(threading.Thread):
    """Looks at a family of processes every quarter of a second."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root = root
        self._ended = threading.Event()
        self._family: dict[int, psutil.Process] = {}
        self._cpu: dict[tuple[int, float], tuple[str, float]] = {}
        self._peak_bytes = self._driver_peak_bytes = 0
        self._driver_bytes: list[tuple[float, int]] = []
        self._began = time.monotonic()
        self._next_memory = 0.0

    def run(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            began = time.thread_time()
            self._look()
            pause = max(_LOOK_SECONDS, (time.thread_time() - began) / _LOOK_SHARE)

    def end(self, *, waited_cpu: float) -> Usage:
        """Stop, and wait until no process of the family is left: the next job is to be alone."""
        self._ended.set()
        self.join()
        deadline = time.monotonic() + _END_SECONDS
        while left := [one for one in self._family.values() if _is_alive(one)]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"still there {_END_SECONDS:g} s after the end: {left}")
            time.sleep(0.1)
        by_kind: defaultdict[str, float] = defaultdict(float)
        for kind, seconds in self._cpu.values():
            by_kind[kind] += seconds
        by_kind["ended between two looks"] = max(0.0, waited_cpu - sum(by_kind.values()))
        return Usage(
            0.0, dict(by_kind), self._peak_bytes, self._driver_peak_bytes, self._driver_bytes
        )

    def kill(self) -> None:
        """End the whole family."""
        self._ended.set()
        self.join()
        self._look()
        for one in self._family.values():
            with contextlib.suppress(psutil.Error):
                one.kill()

    def _look(self) -> None:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._root)
            family = [root, *root.children(recursive=True)]
            # Those whose parent has gone are still of the family.
            self._family = {
                **{pid: one for pid, one in self._family.items() if _is_alive(one)},
                **{one.pid: one for one in family},
            }
        for one in self._family.values():
            with contextlib.suppress(psutil.Error):
                self._note_cpu(one)
        if time.monotonic() >= self._next_memory:
            began = time.thread_time()
            self._note_memory()
            cost = time.thread_time() - began
            self._next_memory = time.monotonic() + max(_LOOK_SECONDS, cost / _MEMORY_SHARE)

    def _note_cpu(self, process: psutil.Process) -> None:
        if not _is_alive(process):
            return
        times = process.cpu_times()
        # Asked anew each time: a process begins with the command line of the one it was forked by.
        # As it ends it has none: then it is what it was.
        key, command = (process.pid, process.create_time()), process.cmdline()
        kind = self._cpu[key][0] if not command and key in self._cpu else _kind(command)
        kind = "driver" if process.pid == self._root else kind
        self._cpu[key] = kind, times.user + times.system

    def _note_memory(self) -> None:
        found = {pid: _shared_out_bytes(pid) for pid in self._family}
        self._peak_bytes = max(self._peak_bytes, sum(found.values()))
        if own := found.get(self._root):
            self._driver_bytes.append((time.monotonic() - self._began, own))
        self._driver_peak_bytes = max(
            self._driver_peak_bytes, _kib_line(f"/proc/{self._root}/status", "VmHWM:")
        )


def _is_alive(process: psutil.Process) -> bool:
    """Whether it is there, and no mere entry that its parent has not asked for yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _kind(command: list[str]) -> str:
    line = " ".join(command)
    return next(
        (kind for words, kind in _KINDS if any(word in line for word in words)), "worker processes"
    )


def _shared_out_bytes(pid: int) -> int:
    """The process's memory, pages held together shared out among those who hold them."""
    return _kib_line(f"/proc/{pid}/smaps_rollup", "Pss:")


def _kib_line(path: str, name: str) -> int:
    """A line of a table of the kernel's [bytes]; 0 where the process has gone."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return 1024 * int(line.split()[1])
    return 0
