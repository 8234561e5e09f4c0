"""Reading ahead: the room that it may take, and the order in which tracks come."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from mer_batch.config import StorageConfig
from mer_batch.errors import AudioError, MerBatchError
from mer_batch.reading import NoRoomError, ReadAudio, Reader, Room
from mer_batch.storage import AudioObject, Location, Storage
from tests.faulty_store import FaultyStore

Place = tuple[Storage, Location]

TIMEOUT_SECONDS = 30.0


def test_room_is_given_to_what_fits() -> None:
    room = Room(100)
    room.take(1, 60)
    room.take(2, 40)
    with ThreadPoolExecutor() as pool:
        third = pool.submit(room.take, 3, 1)
        room.want(0)
        assert not third.done()
        room.give_back(1)
        third.result(TIMEOUT_SECONDS)


def test_whose_turn_has_come_is_let_in() -> None:
    room = Room(100)
    room.take(1, 100)
    with ThreadPoolExecutor() as pool:
        first, second = pool.submit(room.take, 0, 10**9), pool.submit(room.take, 2, 10**9)
        room.want(0)
        first.result(TIMEOUT_SECONDS)
        room.want(1)
        assert not second.done()
        room.want(2)
        second.result(TIMEOUT_SECONDS)


def test_a_track_that_is_read_once_more_counts_once() -> None:
    room = Room(100)
    for _ in range(3):
        room.take(1, 100)
    room.give_back(1)
    room.take(2, 100)


def test_whoever_waits_is_turned_away_at_the_end() -> None:
    room = Room(100)
    room.take(1, 100)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(room.take, 2, 1)
        room.close()
        with pytest.raises(AudioError, match="no longer wanted"):
            waiting.result(TIMEOUT_SECONDS)


def test_nothing_is_open_while_a_track_waits_for_room(place: Place) -> None:
    """What is read then is what lies there then: the file, or the answer, was let go of."""
    storage, folder = place
    audio = folder.child("a.mp3")
    storage.write(audio, b"before")
    room = Room(100)
    room.take(1, 100)
    asked = threading.Event()

    def read(admit: Callable[[int], None]) -> AudioObject:
        def admit_and_tell(n_bytes: int) -> None:
            asked.set()
            admit(n_bytes)

        return storage.read_audio(audio.uri, max_bytes=1_000, admit=admit_and_tell)

    with ThreadPoolExecutor() as pool:
        reading = pool.submit(room.fill, 2, read)
        assert asked.wait(TIMEOUT_SECONDS)
        storage.write(audio, b"afterwards")
        room.give_back(1)
        assert reading.result(TIMEOUT_SECONDS).content == b"afterwards"
    room.take(3, 90)
    with pytest.raises(NoRoomError):
        room.take_at_once(4, 1)


def test_what_fits_is_asked_for_once(s3: Any, faulty: FaultyStore) -> None:
    s3.put_object(Bucket=s3.bucket, Key="a.mp3", Body=b"x" * 100)
    storage = Storage(StorageConfig(endpoint_url=faulty.endpoint))
    uri, before = f"s3://{s3.bucket}/a.mp3", faulty.asked["GET"]
    read = functools.partial(storage.read_audio, uri, max_bytes=100)
    assert Room(100).fill(0, read).version
    assert faulty.asked["GET"] == before + 1


def test_many_readers_never_wait_for_one_another() -> None:
    """Any sizes, any order in which they come: every track has its turn, and the bound holds."""
    random = np.random.default_rng(0)
    sizes = random.integers(1, 150, 300).tolist()
    room, held, most = Room(100), 0, 0
    lock = threading.Lock()

    def read(number: int) -> None:
        nonlocal held, most
        room.take(number, sizes[number])
        with lock:
            held += sizes[number]
            most = max(most, held)

    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(read, number) for number in range(len(sizes))]
        for number, reading in enumerate(reads):
            room.want(number)
            reading.result(TIMEOUT_SECONDS)
            if number:  # two are in the child's hands
                with lock:
                    held -= sizes[number - 1]
                room.give_back(number - 1)
    assert most <= 100 + 2 * 150


def test_the_size_is_known_before_a_track_is_read(place: tuple[Storage, Location]) -> None:
    storage, folder = place
    audio = folder.child("a.mp3")
    storage.write(audio, b"x" * 1_000)
    asked: list[int] = []
    read = storage.read_audio(audio.uri, max_bytes=1_000, admit=asked.append)
    assert (asked, len(read.content)) == ([1_000], 1_000)
    room = Room(999)
    room.close()
    with pytest.raises(AudioError, match="no longer wanted"):
        storage.read_audio(audio.uri, max_bytes=1_000, admit=lambda n: room.take(1, n))


def test_room_that_was_kept_is_changed_for_what_is_needed() -> None:
    room = Room(100)
    assert room.reserve(0, 90)
    assert not room.reserve(1, 20)
    room.take_at_once(0, 80)
    assert room.reserve(1, 20)


def test_no_room_is_kept_while_others_wait_for_some() -> None:
    room = Room(100)
    room.take(1, 100)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(room.take, 2, 50)
        while not room._n_waiting:
            time.sleep(0.001)
        room.take(1, 60)  # less than before
        assert not room.reserve(3, 10)
        room.give_back(1)
        waiting.result(TIMEOUT_SECONDS)
    assert room.reserve(3, 10)


# ------------------------------------------------------------------ a worker's reader


@pytest.fixture
def reader_of() -> Iterator[Callable[[ReadAudio], Reader]]:
    """Makes readers, and closes them."""
    made: list[Reader] = []

    def make(read_audio: ReadAudio) -> Reader:
        made.append(Reader(read_audio))
        return made[-1]

    yield make
    for reader in made:
        reader.close()


def uris(n_tracks: int) -> list[str]:
    return [str(number) for number in range(n_tracks)]


def test_a_track_that_is_late_keeps_none_of_the_others(
    reader_of: Callable[[ReadAudio], Reader],
) -> None:
    is_over = threading.Event()

    def read(uri: str, admit: Callable[[int], None]) -> AudioObject:
        admit(1)
        assert uri not in "05" or is_over.wait(TIMEOUT_SECONDS)
        return AudioObject(b"x", uri)

    come = []
    for number, found in reader_of(read).read(uris(40), Room(100)):
        assert isinstance(found, AudioObject)
        assert found.version == str(number)
        come.append(number)
        if len(come) == 38:
            is_over.set()
    assert sorted(come[:38]) == sorted(set(range(40)) - {0, 5})
    assert sorted(come[38:]) == [0, 5]


def test_what_a_track_brings_about_is_its_own_and_all_else_is_raised(
    reader_of: Callable[[ReadAudio], Reader],
) -> None:
    faults = {"1": AudioError("not_found", "gone"), "2": KeyError("odd"), "9": MerBatchError("no")}

    def read(uri: str, admit: Callable[[int], None]) -> AudioObject:
        if uri in faults:
            raise faults[uri]
        return AudioObject(b"x", "1")

    reader = reader_of(read)
    reasons = {
        number: found.reason
        for number, found in reader.read(uris(8), Room(100))
        if isinstance(found, AudioError)
    }
    assert reasons == {1: "not_found", 2: "storage_error"}
    with pytest.raises(MerBatchError, match="no"):
        list(reader.read(uris(10), Room(100)))
    assert len(list(reader.read(uris(8), Room(100)))) == 8


def test_what_is_read_ahead_keeps_within_its_bound(
    reader_of: Callable[[ReadAudio], Reader],
) -> None:
    """Any sizes, some beyond all room: what is held is the bound, and what the child has."""
    random = np.random.default_rng(0)
    sizes = random.choice([1, 5, 40, 150], 400, p=[0.4, 0.3, 0.2, 0.1]).tolist()
    lock, held, most = threading.Lock(), 0, 0

    def read(uri: str, admit: Callable[[int], None]) -> AudioObject:
        nonlocal held, most
        n_bytes = sizes[int(uri)]
        admit(n_bytes)
        with lock:
            held += n_bytes
            most = max(most, held)
        return AudioObject(b"x" * n_bytes, "1")

    room, in_hand, come = Room(100), deque[int](), set()
    for number, _ in reader_of(read).read(uris(len(sizes)), room):
        come.add(number)
        in_hand.append(number)
        if len(in_hand) == 2:
            done = in_hand.popleft()
            with lock:
                held -= sizes[done]
            room.give_back(done)
    assert come == set(range(len(sizes)))
    assert most <= 100 + 2 * 150


def test_nobody_reads_on_for_a_block_that_was_left(
    reader_of: Callable[[ReadAudio], Reader],
) -> None:
    n_begun, n_reading, lock = 0, 0, threading.Lock()

    def read(uri: str, admit: Callable[[int], None]) -> AudioObject:
        nonlocal n_begun, n_reading
        with lock:
            n_begun += 1
            n_reading += 1
        try:
            admit(60)  # but for the first, there is no room
            return AudioObject(b"x", "1")
        finally:
            with lock:
                n_reading -= 1

    reads = reader_of(read).read(uris(100), Room(100))
    next(reads)
    reads.close()
    assert n_reading == 0
    assert n_begun < 50


def test_what_is_quick_needs_no_threads(reader_of: Callable[[ReadAudio], Reader]) -> None:
    threads = []

    def read(uri: str, admit: Callable[[int], None]) -> AudioObject:
        admit(1)
        threads.append(threading.current_thread())
        return AudioObject(b"x", "1")

    reader = reader_of(read)
    for _ in range(5):
        assert len(list(reader.read(uris(100), Room(1_000)))) == 100
    assert threads.count(threading.main_thread()) > 100


def test_no_track_is_asked_for_before_there_is_room_for_its_like(
    reader_of: Callable[[ReadAudio], Reader],
) -> None:
    """Who is turned away has cost a request, and a connection."""
    n_asked, lock = 0, threading.Lock()

    def read(uri: str, admit: Callable[[int], None]) -> AudioObject:
        nonlocal n_asked
        with lock:
            n_asked += 1
        admit(30)
        time.sleep(0.005)  # too slow to do without threads
        return AudioObject(b"x" * 30, "1")

    room, reader, before = Room(100), reader_of(read), None
    for _ in range(2):
        n_asked = 0
        for number, _ in reader.read(uris(100), room):
            if before is not None:
                room.give_back(before)
            before = number
    assert n_asked < 110
