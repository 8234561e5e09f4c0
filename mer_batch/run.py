"""One run of a job on one output: its lease, its folder, its traces, its end.

A run announces itself under ``runs/_open/`` before it writes anything and takes the mark away
when it ends in order. So the next run knows which earlier ones were cut short and sweeps what
they left.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

import yaml
from pydantic import BaseModel

from mer_batch.errors import Interrupted, LeaseError, MerBatchError, RefusedError
from mer_batch.lease import Lease, lease_location
from mer_batch.schema import utc_now
from mer_batch.steps import reach
from mer_batch.storage import Location, Storage


class Run:
    """A run, as a context: holds the lease, and writes ``runs/<run_id>/`` however it ends.

    Parameters
    ----------
    storage : Storage
    output : Location
    config : BaseModel
        Kept as resolved in ``config.yaml``.
    lease_seconds : float
    tell : callable
        Told, besides the log, what the lease is waiting for.

    Attributes
    ----------
    run_id : str
        Begins with the time, so that ids sort by it.
    started_at : datetime
    lease : Lease
    manifest : dict
        Filled by the job; written as ``manifest.json``.
    log : list of str
        Written as ``log``.
    may_leave_parts : bool
        Set where a worker that was given up may still write: the next run looks for what it left.
    """

    def __init__(
        self,
        storage: Storage,
        output: Location,
        config: BaseModel,
        *,
        lease_seconds: float,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.started_at = utc_now()
        self.run_id = f"{self.started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self.manifest: dict[str, Any] = {}
        self.log: list[str] = []
        self.may_leave_parts = False
        self._storage = storage
        self._output = output
        self._config = config
        self._lease_seconds = lease_seconds
        self._tell = tell
        self._folder = output.child("runs", self.run_id)
        self._mark = output.child("runs", "_open", self.run_id)

    def __enter__(self) -> Run:
        self.lease = Lease(
            self._storage,
            lease_location(self._output),
            self.run_id,
            seconds=self._lease_seconds,
            say=self._say_at_once,
        )
        try:
            self._storage.write(self._mark, b"")
            reach("run_marked")
            text = yaml.safe_dump(self._config.model_dump(mode="json"), sort_keys=False)
            self._storage.write(self._folder.child("config.yaml"), text.encode())
            reach("run_open")
        except BaseException:
            self.lease.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with no_refusal("the run's work is done, its traces are not written: "):
                reach("traces_to_write")
                self._write_traces(error)
                reach("traces_written")
                if error is None and not self.may_leave_parts:
                    self._storage.delete(self._mark)
                    reach("mark_removed")
                elif self.lease.is_lost or isinstance(error, LeaseError):
                    # The next holder has swept after this run and taken its mark away; workers may
                    # have written since, and have been ended before they could take it back.
                    with contextlib.suppress(MerBatchError):
                        self._storage.write(self._mark, b"")
        finally:
            self.lease.release()

    def cut_short(self) -> list[str]:
        """Ids of earlier runs that did not end in order."""
        folder = self._output.child("runs", "_open")
        # Our own mark lies there: the folder exists.
        ids = [found.path.rpartition("/")[2] for found, _, _ in self._storage.list_files(folder)]
        return sorted(run_id for run_id in ids if run_id != self.run_id and run_id[0].isdigit())

    def forget(self, run_id: str) -> None:
        """Take the mark of an earlier run away: what it left is swept."""
        self._storage.delete(self._output.child("runs", "_open", run_id))

    def say(self, line: str) -> None:
        """Add a line to the run's log."""
        self.log.append(f"{utc_now():%Y-%m-%d %H:%M:%SZ} {line}")

    def _say_at_once(self, line: str) -> None:
        self.say(line)
        self._tell(line)

    def _write_traces(self, error: BaseException | None) -> None:
        finished_at = utc_now()
        exit_code, message = 0, None
        if error is not None:
            exit_code = error.exit_code if isinstance(error, MerBatchError) else 1
            message = f"{type(error).__name__}: {error}"
            if is_stop(error):
                # StopSignals, further out, makes the exception that users see of it.
                exit_code, message = Interrupted.exit_code, "Interrupted: stopped by a signal"
            self.say(message)
        manifest = {
            "run_id": self.run_id,
            "state": "complete" if error is None else "stopped",
            "exit_code": exit_code,
            "error": message,
            "started_at": _iso(self.started_at),
            "finished_at": _iso(finished_at),
            "seconds": round((finished_at - self.started_at).total_seconds(), 3),
            **self.manifest,
        }
        with contextlib.suppress(MerBatchError) if error is not None else contextlib.nullcontext():
            self._storage.write(self._folder.child("log"), ("\n".join(self.log) + "\n").encode())
            text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            self._storage.write(self._folder.child("manifest.json"), text.encode())


@contextlib.contextmanager
def no_refusal(preface: str = "") -> Iterator[None]:
    """Past this point work has begun: a fault of the store no longer means `refused`."""
    try:
        yield
    except RefusedError as error:
        raise MerBatchError(f"{preface}{error}") from error


class StopSignals:
    """Turns SIGINT, SIGTERM and SIGHUP into :class:`Interrupted`, but not amid a commit.

    A context for the main thread; elsewhere it does nothing.
    """

    def __init__(self) -> None:
        self._deferred = 0
        self._grace_seconds = 0.0
        self._requested: str | None = None
        self._is_due = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self.install()
        return self

    def install(self) -> None:
        """Put the handlers in place, again if another library has replaced them."""
        if threading.current_thread() is threading.main_thread():
            for number in (*stop_signals(), signal.SIGALRM):
                replaced = signal.signal(number, self._handle)
                self._previous.setdefault(number, replaced)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if is_stop(error):
            if isinstance(error, SystemExit):
                self._requested = signal.SIGTERM.name
            raise self._interrupted() from error

    @property
    def was_asked(self) -> bool:
        """Whether a signal has come."""
        return self._requested is not None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A stretch that a signal does not cut in two; it takes effect at the end."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
        self.check()

    @contextlib.contextmanager
    def graceful(self, seconds: float) -> Iterator[None]:
        """A stretch that has `seconds` to come to a good end after a first signal.

        It should look at `was_asked` and call :meth:`stop`. A second signal ends it at once.
        """
        self._grace_seconds = seconds
        try:
            yield
        finally:
            self._grace_seconds = 0.0
            if self._previous:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def stop(self) -> None:
        """End here, having been asked to.

        Raises
        ------
        Interrupted
        """
        self._is_due = True
        self.check()

    def check(self) -> None:
        """End here if that is due and was put off.

        Raises
        ------
        Interrupted
        """
        if self._is_due and not self._deferred:
            raise self._interrupted()

    def _interrupted(self) -> Interrupted:
        return Interrupted(
            f"stopped by {self._requested or 'a signal'}; finished work is committed"
        )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first = self._requested is None
        if number != signal.SIGALRM:
            self._requested = signal.Signals(number).name
        if is_first and self._grace_seconds:
            signal.setitimer(signal.ITIMER_REAL, self._grace_seconds)
            return
        raised_before, self._is_due = self._is_due, True
        if not self._deferred and not raised_before:
            # No subclass of Exception: library code must not catch it on the way.
            raise KeyboardInterrupt


def stop_signals() -> list[signal.Signals]:
    """Signals that ask a process to stop; not the terminal's end where `nohup` has said so."""
    asked = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asked.append(signal.SIGHUP)
    return asked


def is_stop(error: BaseException | None) -> bool:
    """Whether this is what a signal raises: ours, or Ray's own handler while it starts."""
    if isinstance(error, SystemExit):
        return error.code == signal.SIGTERM
    return isinstance(error, KeyboardInterrupt)


def iso_now() -> str:
    """Now (UTC) as it stands in manifests and markers."""
    return _iso(utc_now())


def _iso(moment: datetime.datetime) -> str:
    return moment.isoformat(timespec="microseconds")
