"""One writer per output: a lease that is taken, renewed, and expires.

The lease is one small JSON file, changed only by conditional writes. Its `generation` grows with
every holder; the ledger's commits carry it, so that a holder which was paused past its lease and
wakes up again cannot commit any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import psutil

from mer_batch.errors import LeaseError, StorageError
from mer_batch.steps import reach
from mer_batch.storage import Location, Storage

# How often a lease is looked at whose times cannot be believed [s].
_LOOK_SECONDS = 1.0
_TAKEN_OVER = "another run took it over"


@dataclass(frozen=True)
class _Holder:
    """What the lease file says; earlier versions did not write `seconds`."""

    run_id: str
    generation: int
    host: str
    machine: str
    pid: int
    process_started: float
    expires_at: float
    released: bool = False
    seconds: float | None = None


def lease_location(output: Location) -> Location:
    """Where an output's lease lies."""
    return output.child("runs", "_lease.json")


def holder_of(storage: Storage, output: Location) -> tuple[str, bool] | None:
    """Id of the run that took an output last, and whether it has let it go; None before the first.

    Raises
    ------
    LeaseError
        Where the lease file is damaged.
    StorageError
    """
    location = lease_location(output)
    present = storage.read_with_token(location)
    if present is None:
        return None
    holder = _parsed(location, present[0])
    return holder.run_id, holder.released


def _parsed(location: Location, content: bytes) -> _Holder:
    """What the lease file says; LeaseError where it is damaged."""
    try:
        return _Holder(**json.loads(content))
    except (ValueError, TypeError) as error:
        raise LeaseError(
            f"the lease {location.uri} cannot be read: {error}; make sure that no run is "
            "at work on this output, then delete it"
        ) from error


class Lease:
    """A lease on an output, renewed in the background until it is released.

    Parameters
    ----------
    storage : Storage
    location : Location
        Of the lease file.
    run_id : str
    seconds : float
        How long it lasts without being renewed [s].
    say : callable
        Told what is waited for.

    Raises
    ------
    LeaseError
        Where another run holds it.
    """

    def __init__(
        self,
        storage: Storage,
        location: Location,
        run_id: str,
        *,
        seconds: float,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._storage = storage
        self._location = location
        self._seconds = seconds
        self._say = say
        self._token, generation = self._vacant(run_id)
        me = os.getpid()
        self._holder = _Holder(
            run_id, generation, socket.gethostname(), _machine(), me, _started(me), 0.0,
            seconds=seconds,
        )  # fmt: skip
        self._putting = threading.Lock()
        reach("lease_to_take")
        if not self._put(released=False):
            raise LeaseError(f"{location.uri}: another run took the lease at the same moment")
        reach("lease_taken")
        self._lost: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    @property
    def generation(self) -> int:
        """Grows with every holder of this output."""
        return self._holder.generation

    @property
    def is_lost(self) -> bool:
        """Whether it was found to be another run's, or overdue."""
        return self._lost is not None

    def check(self) -> None:
        """Make sure that the lease is still ours.

        Raises
        ------
        LeaseError
        """
        overdue = time.monotonic() - self._renewed
        if self._lost is None and overdue > self._seconds:
            self._lost = f"it was not renewed for {overdue:.0f} s"
        if self._lost is not None:
            reach("lease_lost")
            raise LeaseError(
                f"the lease {self._location.uri} is lost: {self._lost}; nothing more is committed"
            )

    def confirm(self) -> None:
        """Make sure by the lease's file, not by our own watch only, that it is still ours.

        Nothing that was to be seen before this call is a later holder's: whoever looks, confirms
        and then removes what was seen cannot take away what others have written since.

        Raises
        ------
        LeaseError
        StorageError
            Where the file cannot be read.
        """
        self.check()
        if self._own_token() is None:
            self._lost = _TAKEN_OVER
        self.check()

    def rise_above(self, generation: int) -> None:
        """Number this holder after one that a table remembers, of a lease file that is gone.

        Raises
        ------
        LeaseError
        """
        if generation < self.generation:
            return
        with self._putting:
            self._holder = replace(self._holder, generation=generation + 1)
            if not self._put(released=False):
                self._lost = _TAKEN_OVER
        self.check()

    def release(self) -> None:
        """Give the lease back; harmless where it is lost already."""
        self._stop.set()
        self._thread.join()
        if self._lost is None:
            with contextlib.suppress(StorageError, LeaseError):  # it expires by itself
                self._put(released=True)
        reach("lease_released")

    def _vacant(self, run_id: str) -> tuple[str | None, int]:
        """Token and generation to take the lease with."""
        present = self._storage.read_with_token(self._location)
        if present is None:
            # The time, not 1: the tables remember the generations before a lease file that is gone.
            return None, int(time.time())
        content, token = present
        holder = _parsed(self._location, content)
        if not holder.released and self._is_alive(holder, token):
            left = max(0.0, holder.expires_at - time.time())
            raise LeaseError(
                f"run {holder.run_id} on {holder.host} (process {holder.pid}) holds the lease "
                f"{self._location.uri} for another {left:.0f} s; wait for it, or stop it"
            )
        return token, holder.generation + 1

    def _is_alive(self, holder: _Holder, token: str) -> bool:
        if holder.machine == _machine() and not _runs_here(holder):
            return False  # a killed holder need not be waited for
        left = holder.expires_at - time.time()
        if holder.seconds is None or 0 < left <= 2 * holder.seconds:
            return left > 0
        return self._is_renewed(holder, holder.seconds, token)

    def _is_renewed(self, holder: _Holder, seconds: float, token: str) -> bool:
        """Watch a lease for its length by our own watch: its clock, or ours, may be wrong."""
        self._say(
            f"run {holder.run_id} on {holder.host} has left a lease that is overdue, or was "
            f"written by another clock: looking for {seconds:.0f} s whether it is renewed"
        )
        began = time.monotonic()
        while time.monotonic() - began <= seconds:
            time.sleep(min(_LOOK_SECONDS, seconds / 4))
            present = self._storage.read_with_token(self._location)
            if present is None or present[1] != token:
                return True
        return False

    def _put(self, *, released: bool) -> bool:
        started = time.monotonic()
        holder = asdict(self._holder)
        holder.update(expires_at=time.time() + self._seconds, released=released)
        content = json.dumps(holder).encode()
        token = self._storage.write_if(self._location, content, token=self._token)
        if token is None and (ours := self._own_token()) is not None:
            # An earlier renewal was done, and its answer lost for good.
            token = self._storage.write_if(self._location, content, token=ours)
        if token is None:
            return False
        self._token, self._renewed = token, started
        return True

    def _own_token(self) -> str | None:
        """The token of the lease's file, None where it is not ours."""
        present = self._storage.read_with_token(self._location)
        if present is None:
            return None
        content, token = present
        return token if _parsed(self._location, content).run_id == self._holder.run_id else None

    def _renew(self) -> None:
        while not self._stop.wait(self._seconds / 4):
            try:
                with self._putting:
                    if not self._put(released=False):
                        self._lost = _TAKEN_OVER
                        return
                reach("lease_renewed")
            except LeaseError as error:
                self._lost = str(error)
                return
            except StorageError:
                continue  # check() notices when this lasts too long


def _machine() -> str:
    """Names this boot of this machine and its process ids: where a pid can be looked up."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot_id:
            return f"{boot_id.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _runs_here(holder: _Holder) -> bool:
    """Whether the holder's process is alive on this machine."""
    try:
        if psutil.Process(holder.pid).status() == psutil.STATUS_ZOMBIE:
            return False  # killed, and its parent has not taken note yet
        return abs(_started(holder.pid) - holder.process_started) < 1
    except psutil.NoSuchProcess:
        return False


def _started(pid: int) -> float:
    """When a process began, since the machine's start [s]: no change of the clock moves it."""
    return psutil.Process(pid).create_time() - psutil.boot_time()
