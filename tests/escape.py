"""A decoder that was taken over: a task that tries to get out of its child process.

``python -m tests.escape FD PARENT`` is the child with this task among the others.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from mer_batch import child, task
from mer_batch.audio.decode import AudioLimits
from mer_batch.child import Child
from mer_batch.task import GivenTrack, Reply


def attempts(folder: Path, port: int) -> dict[str, Callable[[], object]]:
    """Ways out, by name; `folder` holds the files ``secret`` and ``victim``, `port` a listener."""
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> None:
        if result < 0:
            raise OSError(ctypes.get_errno(), "refused")

    def fork() -> None:
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    def ask_a_name_server() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.sendto(b"secret", ("127.0.0.1", port))

    def listen() -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()

    return {
        "connect": lambda: socket.create_connection(("127.0.0.1", port), timeout=5).close(),
        "send a datagram": ask_a_name_server,
        "listen": listen,
        "start a program": lambda: subprocess.run(["true"], check=True),
        "fork": fork,
        "read a file": lambda: (folder / "secret").read_text(),
        "read the parent's environment": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "write a file": lambda: (folder / "new").write_text("x"),
        "rename a file": lambda: (folder / "victim").rename(folder / "moved"),
        "put it back": lambda: (folder / "moved").rename(folder / "victim"),
        "make a folder": lambda: (folder / "folder").mkdir(exist_ok=True),
        "list a folder": lambda: list(folder.iterdir()),
        "signal the parent": lambda: os.kill(os.getppid(), 0),
        "signal a thread of the parent": lambda: checked(
            libc.tgkill(os.getppid(), os.getppid(), 0)
        ),
        "live on without the parent": lambda: checked(libc.prctl(1, 0, 0, 0, 0)),
        "change limits": lambda: resource.setrlimit(
            resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)
        ),
        "open an asynchronous ring": lambda: checked(libc.syscall(425, 1, bytes(120))),
    }


def harmless() -> dict[str, Callable[[], object]]:
    """What decoding may need."""

    def run_a_thread() -> None:
        thread = threading.Thread(target=bytes)
        thread.start()
        thread.join()

    return {
        "take memory": lambda: bytearray(50_000_000),
        "run a thread": run_a_thread,
        "tell the time": time.monotonic,
        "sleep": lambda: time.sleep(0.001),
    }


class EscapeTask:
    """Tries everything twice: while the child is set up, and when it has its first track."""

    name: ClassVar[str] = "escape"

    def __init__(self, folder: str, port: int) -> None:
        self._told = {"folder": folder, "port": port}

    def setup(self) -> tuple[dict[str, Any], list[bytes]]:
        return self._told, []

    @classmethod
    def from_setup(cls, told: dict[str, Any], frames: list[bytes]) -> EscapeTask:
        return cls(told["folder"], told["port"])

    def n_bytes(self, header: dict[str, Any]) -> int:
        return 0

    def outcome(self, header: dict[str, Any], payload: bytes | bytearray) -> dict[str, Any]:
        return header

    def worker(self, limits: AudioLimits) -> Callable[[GivenTrack], Reply]:
        ways = attempts(Path(self._told["folder"]), self._told["port"])
        before = {name: _error_of(way) for name, way in ways.items()}

        def escape(given: GivenTrack) -> Reply:
            if given.audio_bytes != b"now":
                return {}, b""
            now = {name: _error_of(way) for name, way in ways.items()}
            needed = {name: _error_of(way) for name, way in harmless().items()}
            return {"before": before, "now": now, "needed": needed}, b""

        return escape


def _error_of(way: Callable[[], object]) -> str | None:
    try:
        way()
    except Exception as error:
        return type(error).__name__
    return None


class EscapingChild(Child):
    """A child in which the task may be ``EscapeTask``."""

    command = (Child.command[0], "-P", "-m", "tests.escape")


if __name__ == "__main__":
    task._TASKS["escape"] = EscapeTask  # type: ignore[assignment]
    child.main()
