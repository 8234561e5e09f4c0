"""One writer per output, with real processes that die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from mer_batch.config import StorageConfig
from mer_batch.errors import LeaseError, StorageError
from mer_batch.lease import Lease
from mer_batch.storage import Location, Storage, parse_uri
from tests.faulty_store import FaultyStore

Place = tuple[Storage, Location]

_HOLDER = """
import sys
from mer_batch.config import StorageConfig
from mer_batch.lease import Lease
from mer_batch.storage import Storage, parse_uri
endpoint = sys.argv[2] or None
Lease(Storage(StorageConfig(endpoint_url=endpoint)), parse_uri(sys.argv[1]), "other",
      seconds=float(sys.argv[3]))
print("held", flush=True)
sys.stdin.read()
"""

# Another clock for a process: Debian's package `faketime`.
_FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


def lease_file(place: Place) -> Location:
    return place[1].child("runs", "_lease.json")


def take(place: Place, run_id: str = "ours", *, seconds: float = 60) -> Lease:
    return Lease(place[0], lease_file(place), run_id, seconds=seconds)


def content(place: Place) -> dict[str, Any]:
    return dict(json.loads(place[0].read(lease_file(place))))


def plant(place: Place, **changes: object) -> None:
    """Write the lease file as some holder has left it."""
    holder = {
        "run_id": "planted",
        "generation": 7,
        "host": "elsewhere",
        "machine": "another machine",
        "pid": 2**31 - 1,
        "process_started": 0.0,
        "expires_at": time.time() + 600,
        "released": False,
        **changes,
    }
    place[0].write(lease_file(place), json.dumps(holder).encode())


@pytest.fixture
def other_holder(place: Place, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that holds the lease."""
    endpoint = request.getfixturevalue("s3").endpoint if place[1].is_s3 else ""
    command = [sys.executable, "-c", _HOLDER, lease_file(place).uri, endpoint, "600"]
    with holding(command) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_holder_is_refused_and_told_who_holds_it(place: Place) -> None:
    lease = take(place, "first")
    with pytest.raises(LeaseError) as caught:
        take(place, "second")
    message = str(caught.value)
    for word in ("first", socket.gethostname(), str(os.getpid()), lease_file(place).uri):
        assert word in message
    lease.check()
    lease.release()


def test_a_released_lease_is_taken_by_the_next_generation(place: Place) -> None:
    generations = []
    for number in range(3):
        lease = take(place, f"run {number}")
        lease.check()
        generations.append(lease.generation)
        lease.release()
    assert generations == [generations[0] + step for step in range(3)]


def test_release_can_be_called_twice(place: Place) -> None:
    lease = take(place)
    lease.release()
    lease.release()
    take(place).release()


def test_of_many_takers_at_once_one_wins(place: Place) -> None:
    barrier = threading.Barrier(6)

    def attempt(number: int) -> Lease | None:
        barrier.wait()
        try:
            return take(place, f"run {number}")
        except LeaseError:
            return None

    with ThreadPoolExecutor(6) as takers:
        taken = [lease for lease in takers.map(attempt, range(6)) if lease]
    assert len(taken) == 1
    taken[0].release()


def test_a_living_process_on_this_machine_is_not_robbed(
    place: Place, other_holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(LeaseError, match=f"process {other_holder.pid}"):
        take(place)


@pytest.mark.parametrize("is_reaped", [True, False])
def test_the_lease_of_a_killed_process_is_taken_at_once(
    place: Place, other_holder: subprocess.Popen[str], is_reaped: bool
) -> None:
    other_holder.send_signal(signal.SIGKILL)
    if is_reaped:
        other_holder.wait()
    else:
        # Dead, but its parent has not asked: still in the table of processes.
        os.waitid(os.P_PID, other_holder.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(other_holder.pid).status() == psutil.STATUS_ZOMBIE
    before = content(place)["generation"]
    lease = take(place)
    assert lease.generation == before + 1
    lease.release()


def test_another_process_with_the_same_number_is_not_the_holder(place: Place) -> None:
    lease = take(place)
    held = content(place)
    lease.release()
    plant(place, **{**held, "process_started": held["process_started"] - 100, "released": False})
    take(place).release()


def test_the_lease_of_another_machine_is_waited_for(place: Place) -> None:
    plant(place)
    with pytest.raises(LeaseError, match="run planted on elsewhere"):
        take(place)
    plant(place, expires_at=time.time() - 1)
    lease = take(place)
    assert lease.generation == 8
    lease.release()


@pytest.mark.parametrize("off_seconds", [-3600, 3600])
def test_a_lease_whose_times_make_no_sense_is_watched(place: Place, off_seconds: int) -> None:
    said: list[str] = []
    plant(place, expires_at=time.time() + off_seconds, seconds=1)
    lease = Lease(place[0], lease_file(place), "ours", seconds=60, say=said.append)
    assert lease.generation == 8
    assert len(said) == 1
    assert "run planted on elsewhere" in said[0]
    lease.release()


def test_what_the_clock_says_is_believed_where_it_makes_sense(place: Place) -> None:
    said: list[str] = []
    plant(place, expires_at=time.time() + 500, seconds=600)
    with pytest.raises(LeaseError, match="run planted on elsewhere"):
        Lease(place[0], lease_file(place), "ours", seconds=60, say=said.append)
    assert not said, "it was not waited for"


@pytest.mark.skipif(_FAKETIME is None, reason="needs faketime: another clock")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a machine of its own, by `unshare`")
@pytest.mark.parametrize("clock", ["-1h", "+1h"])
def test_a_holder_elsewhere_whose_clock_is_off_is_neither_robbed_nor_waited_for(
    tmp_path: Path, clock: str
) -> None:
    place = Storage(StorageConfig()), parse_uri(str(tmp_path))
    # In a namespace of processes of its own it is on another machine, for all that we can tell.
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command += [sys.executable, "-c", _HOLDER, lease_file(place).uri, "", "2"]
    other_clock = {"FAKETIME": clock, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with holding(command, LD_PRELOAD=str(_FAKETIME), **other_clock) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "held\n":
                pytest.skip("processes cannot be set apart here")
            assert abs(content(place)["expires_at"] - time.time()) > 3000
            with pytest.raises(LeaseError, match="run other on"):
                take(place, "robber")
        finally:
            process.kill()
    # Dead now, though its lease may say that it lasts for another hour.
    take(place, "heir").release()


def test_a_released_lease_of_another_machine_is_free(place: Place) -> None:
    plant(place, released=True)
    take(place).release()


def test_the_lease_is_renewed(place: Place) -> None:
    lease = take(place, seconds=2)
    before = content(place)["expires_at"]
    wait_until(lambda: content(place)["expires_at"] > before)
    lease.check()
    lease.release()
    assert content(place)["released"]


def test_a_holder_that_was_taken_over_learns_of_it(place: Place) -> None:
    lease = take(place, seconds=2)
    plant(place)
    wait_until(lambda: is_lost(lease))
    with pytest.raises(LeaseError, match="another run took it over; nothing more is committed"):
        lease.check()
    lease.release()
    # What is no longer ours is not given back.
    assert content(place)["run_id"] == "planted"
    assert not content(place)["released"]


def test_a_holder_that_cannot_renew_stops_in_time(place: Place, monkeypatch: Any) -> None:
    storage, _ = place
    lease = take(place, seconds=2)

    class Unreachable(Storage):
        def write_if(self, *_: object, **__: object) -> str | None:
            raise StorageError("the store cannot be reached")

    lease._storage = Unreachable(storage._config)
    wait_until(lambda: is_lost(lease))
    with pytest.raises(LeaseError, match="not renewed for"):
        lease.check()
    lease.release()


def test_a_holder_asks_the_file_and_not_its_watch_alone(place: Place) -> None:
    lease = take(place, seconds=600)
    lease.confirm()
    held = content(place)
    plant(place)
    lease.check()  # the watch says that all is well
    with pytest.raises(LeaseError, match="another run took it over"):
        lease.confirm()
    place[0].write(lease_file(place), json.dumps(held).encode())
    with pytest.raises(LeaseError, match="another run took it over"):
        lease.check()
    lease.release()


def test_a_lease_whose_file_is_gone_is_lost(place: Place) -> None:
    lease = take(place)
    place[0].delete(lease_file(place))
    with pytest.raises(LeaseError):
        lease.confirm()
    lease.release()


def test_a_renewal_whose_answer_was_lost_is_still_ours(s3: Any, faulty: FaultyStore) -> None:
    output = parse_uri(f"s3://{s3.bucket}/place")
    storage = Storage(StorageConfig(endpoint_url=faulty.endpoint, patience_seconds=1))
    lease = take((storage, output), seconds=600)
    before = content((storage, output))["expires_at"]
    with faulty.suffering("lose_answer", methods="PUT"), pytest.raises(StorageError):
        lease._put(released=False)
    assert content((storage, output))["expires_at"] > before, "done, and nobody was told"
    lease.confirm()
    lease.release()
    assert content((storage, output))["released"]


def test_a_holder_is_numbered_after_all_that_the_tables_remember(place: Place) -> None:
    lease = take(place)
    first = lease.generation
    lease.rise_above(first - 1)
    assert lease.generation == first
    lease.rise_above(first + 1000)
    assert lease.generation == content(place)["generation"] == first + 1001
    plant(place)
    with pytest.raises(LeaseError, match="another run took it over"):
        lease.rise_above(first + 2000)
    lease.release()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"run_id": 1}', b"\xff"])
def test_a_damaged_lease_is_refused_with_a_remedy(place: Place, text: bytes) -> None:
    place[0].write(lease_file(place), text)
    with pytest.raises(LeaseError, match="make sure that no run is at work"):
        take(place)


def holding(command: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start a holder: it holds until its standard input is closed, or it is killed."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def wait_until(condition: Any) -> None:
    """Wait for what a thread does in the background; a minute is for ever."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def is_lost(lease: Lease) -> bool:
    try:
        lease.check()
    except LeaseError:
        return True
    return False
