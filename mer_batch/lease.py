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
from dataclasses import asdict, dataclass

import psutil

from mer_batch.errors import LeaseError, StorageError
from mer_batch.steps import reach
from mer_batch.storage import Location, Storage


@dataclass(frozen=True)
class _Holder:
    """What the lease file says."""

    run_id: str
    generation: int
    host: str
    machine: str
    pid: int
    process_started: float
    expires_at: float
    released: bool = False


def lease_location(output: Location) -> Location:
    """Where an output's lease lies."""
    return output.child("runs", "_lease.json")


def holder_of(storage: Storage, output: Location) -> str | None:
    """Id of the run that took an output last, None where none ever did.

    Raises
    ------
    StorageError
    """
    present = storage.read_with_token(lease_location(output))
    return None if present is None else str(json.loads(present[0])["run_id"])


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

    Raises
    ------
    LeaseError
        Where another run holds it.
    """

    def __init__(
        self, storage: Storage, location: Location, run_id: str, *, seconds: float
    ) -> None:
        self._storage = storage
        self._location = location
        self._seconds = seconds
        self._token, generation = self._vacant(run_id)
        me = os.getpid()
        self._holder = _Holder(
            run_id, generation, socket.gethostname(), _machine(), me, _started(me), 0.0
        )
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

    def release(self) -> None:
        """Give the lease back; harmless where it is lost already."""
        self._stop.set()
        self._thread.join()
        if self._lost is None:
            with contextlib.suppress(StorageError):  # it expires by itself
                self._put(released=True)
        reach("lease_released")

    def _vacant(self, run_id: str) -> tuple[str | None, int]:
        """Token and generation to take the lease with."""
        present = self._storage.read_with_token(self._location)
        if present is None:
            # The time, not 1: the tables remember the generations before a lease file that is gone.
            return None, int(time.time())
        content, token = present
        try:
            holder = _Holder(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise LeaseError(
                f"the lease {self._location.uri} cannot be read: {error}; make sure that no run is "
                "at work on this output, then delete it"
            ) from error
        if not holder.released and _is_alive(holder):
            left = holder.expires_at - time.time()
            raise LeaseError(
                f"run {holder.run_id} on {holder.host} (process {holder.pid}) holds the lease "
                f"{self._location.uri} for another {left:.0f} s; wait for it, or stop it"
            )
        return token, holder.generation + 1

    def _put(self, *, released: bool) -> bool:
        started = time.monotonic()
        holder = asdict(self._holder)
        holder.update(expires_at=time.time() + self._seconds, released=released)
        token = self._storage.write_if(
            self._location, json.dumps(holder).encode(), token=self._token
        )
        if token is None:
            return False
        self._token, self._renewed = token, started
        return True

    def _renew(self) -> None:
        while not self._stop.wait(self._seconds / 4):
            try:
                if not self._put(released=False):
                    self._lost = "another run took it over"
                    return
                reach("lease_renewed")
            except StorageError:
                continue  # check() notices when this lasts too long


def _machine() -> str:
    """Names this boot of this machine and its process ids: where a pid can be looked up."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot_id:
            return f"{boot_id.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _is_alive(holder: _Holder) -> bool:
    if holder.expires_at <= time.time():
        return False
    if holder.machine != _machine():
        return True
    # On this machine a killed holder need not be waited for.
    try:
        if psutil.Process(holder.pid).status() == psutil.STATUS_ZOMBIE:
            return False  # killed, and its parent has not taken note yet
        return abs(_started(holder.pid) - holder.process_started) < 1
    except psutil.NoSuchProcess:
        return False


def _started(pid: int) -> float:
    """When a process began, since the machine's start [s]: no change of the clock moves it."""
    return psutil.Process(pid).create_time() - psutil.boot_time()
