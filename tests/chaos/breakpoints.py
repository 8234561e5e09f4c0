"""The listener's side of ``mer_batch.steps``: hold a process exactly at a step."""

from __future__ import annotations

import json
import os
import queue
import shutil
import socket
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass

from mer_batch.steps import STEPS, VARIABLE


@dataclass(frozen=True)
class Held:
    """A process that waits at a step for leave to go on."""

    step: str
    pid: int
    _connection: socket.socket

    def let_go(self) -> None:
        """Let the process go on, if it still is."""
        # Closing is leave as well: a step waits for a byte or for the end.
        self._connection.close()


class Breakpoints:
    """Listens to the steps of every process that has :attr:`environment`; as a context.

    Attributes
    ----------
    seen : Counter
        How often each step was reached.
    environment : dict of str to str
        To start a run with.
    """

    def __init__(self) -> None:
        # A socket's path has room for a hundred letters only.
        self._folder = tempfile.mkdtemp(prefix="steps-")
        address = os.path.join(self._folder, "socket")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen(128)
        self.environment = {VARIABLE: address}
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._wanted: dict[str, tuple[int, int]] = {}
        self._held: queue.Queue[Held] = queue.Queue()
        self._given: list[Held] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Breakpoints:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()
        # Not close(): the thread that accepts would not wake up.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def hold(self, step: str, *, nth: int = 1, times: int = 1) -> None:
        """Hold whoever comes to a step from its `nth` time from now on, `times` times."""
        assert step in STEPS, step
        with self._lock:
            self._wanted[step] = nth, times

    def clear(self) -> None:
        """Hold nobody any more, and let go who is held."""
        with self._lock:
            self._wanted.clear()
        while not self._held.empty():
            self._held.get().let_go()
        for held in self._given:
            held.let_go()

    def wait(self, seconds: float) -> Held | None:
        """The next process that is held; None where none came in time."""
        try:
            held = self._held.get(timeout=seconds)
        except queue.Empty:
            return None
        self._given.append(held)
        return held

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        text = connection.makefile("rb").readline()
        if not text:  # killed before it could say
            connection.close()
            return
        message = json.loads(text)
        with self._lock:
            self.seen[message["step"]] += 1
            is_wanted = self._is_wanted(message["step"])
        held = Held(message["step"], message["pid"], connection)
        if is_wanted:
            self._held.put(held)
        else:
            held.let_go()

    def _is_wanted(self, step: str) -> bool:
        if step not in self._wanted:
            return False
        nth, times = self._wanted[step]
        if nth > 1:
            self._wanted[step] = nth - 1, times
            return False
        if times > 1:
            self._wanted[step] = 1, times - 1
        else:
            del self._wanted[step]
        return True
