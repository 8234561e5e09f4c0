"""What a run shows while it works: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

_LINE_SECONDS = 10.0


class TrackProgress:
    """Progress of work on `n_tracks` tracks, as a context.

    Parameters
    ----------
    console : Console
    n_tracks : int
    doing : str
        What is done to them, in one word.
    begins : str
        What comes before the first one is done.
    """

    def __init__(
        self,
        console: Console,
        n_tracks: int,
        *,
        doing: str = "tagging",
        begins: str = "starting Ray",
    ) -> None:
        self.n_succeeded = 0
        self._doing = doing
        self._begins = begins
        self.rejects: Counter[str] = Counter()
        self._console = console
        self._n_tracks = n_tracks
        self._started = time.monotonic()
        self._last_line = self._started
        self._live: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> TrackProgress:
        if self._console.is_terminal:
            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,}/{task.total:,} {task.fields[state]}"),
                console=self._console,
                transient=True,
            )
            self._task = self._live.add_task(self._doing, total=self._n_tracks, state=self._begins)
            self._live.start()
        else:
            self._console.print(f"{self._doing} {self._n_tracks:,} tracks: {self._begins}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def n_done(self) -> int:
        """Tracks with an outcome."""
        return self.n_succeeded + self.rejects.total()

    @property
    def seconds(self) -> float:
        """Since the beginning [s]."""
        return time.monotonic() - self._started

    def begin_work(self) -> None:
        """The cluster is up: the clock of the rate starts."""
        self._started = time.monotonic()

    def add(self, n_succeeded: int, reasons: list[str]) -> None:
        """Count a finished block."""
        self.n_succeeded += n_succeeded
        self.rejects.update(reasons)
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self.n_done, state=self._state())
        elif time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(f"{self._doing} {self.n_done:,}/{self._n_tracks:,} {self._state()}")

    def _state(self) -> str:
        rate = self.n_done / max(self.seconds, 1e-3)
        left = round((self._n_tracks - self.n_done) / rate) if rate else 0
        eta = f"{left // 3600}:{left % 3600 // 60:02}:{left % 60:02}"
        state = f"{rate:.1f} tracks/s  ETA {eta}"
        return state + (f"  rejects {describe_rejects(self.rejects)}" if self.rejects else "")


def describe_rejects(rejects: Counter[str] | dict[str, int]) -> str:
    """``3 (truncated 2, silent 1)``."""
    named = ", ".join(f"{reason} {count:,}" for reason, count in Counter(rejects).most_common())
    return f"{sum(rejects.values()):,} ({named})"
