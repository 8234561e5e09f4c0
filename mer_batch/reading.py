"""The next tracks, read while one is decoded, within a bound of bytes."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from mer_batch.errors import AudioError, MerBatchError
from mer_batch.storage import AudioObject

# What is read ahead may hold this together with the two tracks that the child has; a track larger
# than that is read when its turn has come.
READ_AHEAD_BYTES = 64 * 1024 * 1024
# Tracks that are being read or wait to be decoded: at first, and where the child had to wait. The
# most is what a worker decodes in 2 s, for which a store may keep a request waiting now and then.
_FIRST_AHEAD = 8
_MOST_AHEAD = 128
# Large ones share the way, and come late together: at first no more than this many bytes, but two
# tracks.
_FIRST_AHEAD_BYTES = 4 * 1024 * 1024
_MOST_READERS = 16
# What is read faster than this is there before the child is done with its track: then threads
# would cost time only. A page cache takes 0.1 ms.
_QUICK_SECONDS = 0.004
_ENOUGH_QUICK = 8

ReadAudio = Callable[..., AudioObject]


class Reader:
    """Reads a worker's tracks ahead; keeps its threads, and what it has learned, between blocks.

    Parameters
    ----------
    read_audio : callable
        As ``Storage.read_audio``: of a URI and of `admit`.
    """

    def __init__(self, read_audio: ReadAudio) -> None:
        self._read_audio = read_audio
        self._threads = ThreadPoolExecutor(_MOST_READERS, thread_name_prefix="read")
        self._pace = _Pace()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def read(
        self, uris: Sequence[str], room: Room
    ) -> Generator[tuple[int, AudioObject | AudioError], None, None]:
        """Each track's number and what was read, or why nothing was: as they come, in any order.

        One that is late keeps none of the others. `room` is given back by the caller.

        Raises
        ------
        MerBatchError, MemoryError
            What is no fault of the track.
        """
        row = _Row(uris, self._read_audio, room, self._threads, self._pace)
        try:
            while (read := row.take()) is not None:
                self._pace.heed(read)
                yield read.number, _of_the_track(read.found)
        finally:
            row.close()


@dataclass(frozen=True)
class _Read:
    """What came of reading a track, and how long it took [s]."""

    number: int
    found: AudioObject | Exception
    seconds: float


def _of_the_track(found: AudioObject | Exception) -> AudioObject | AudioError:
    """What was read, or why not: of one track, whatever a stranger's file may bring about."""
    if isinstance(found, AudioObject | AudioError):
        return found
    if isinstance(found, MerBatchError | MemoryError):
        raise found
    return AudioError("storage_error", f"{type(found).__name__}: {found}")


class _Pace:
    """How many tracks to read ahead, and whether threads are of any use.

    Attributes
    ----------
    typical_bytes : float
        Of a track, as far as is known.
    """

    def __init__(self) -> None:
        self.typical_bytes = 0.0
        self._n_ahead = _FIRST_AHEAD
        self._ahead_bytes = _FIRST_AHEAD_BYTES
        self._n_quick = 0

    @property
    def n_ahead(self) -> int:
        """Tracks that should be on their way, or wait to be decoded."""
        return max(2, min(self._n_ahead, int(self._ahead_bytes / max(1.0, self.typical_bytes))))

    @property
    def is_quick(self) -> bool:
        """Whether reading takes no time to speak of."""
        return self._n_quick >= _ENOUGH_QUICK

    def heed(self, read: _Read) -> None:
        """Learn from a track that was read."""
        self._n_quick = self._n_quick + 1 if read.seconds < _QUICK_SECONDS else 0
        if isinstance(read.found, AudioObject):
            self.typical_bytes += (len(read.found.content) - self.typical_bytes) / 8

    def quicken(self) -> None:
        """The child has to wait: read more ahead."""
        self._n_ahead = min(2 * self._n_ahead, _MOST_AHEAD)
        self._ahead_bytes = min(2 * self._ahead_bytes, READ_AHEAD_BYTES)


class _Row:
    """The tracks of one block, on their way in."""

    def __init__(
        self,
        uris: Sequence[str],
        read_audio: ReadAudio,
        room: Room,
        threads: ThreadPoolExecutor,
        pace: _Pace,
    ) -> None:
        self._uris = uris
        self._read_audio = read_audio
        self._room = room
        self._threads = threads
        self._pace = pace
        self._to_come = deque(range(len(uris)))
        self._ahead: dict[int, Future[None]] = {}
        self._ready: queue.SimpleQueue[_Read] = queue.SimpleQueue()

    def take(self) -> _Read | None:
        """Whichever track is there first; None where there are no more."""
        if not self._ahead and self._to_come and self._pace.is_quick:
            return self._read_here()
        is_first = len(self._to_come) == len(self._uris)
        self._begin()
        if not self._ahead:
            return None
        if self._ready.empty():
            if not is_first:
                self._pace.quicken()
                self._begin()
            self._room.want(min(self._ahead))
        read = self._ready.get()
        del self._ahead[read.number]
        return read

    def close(self) -> None:
        """Let nobody read on."""
        self._room.close()
        for reading in self._ahead.values():
            reading.cancel()
        wait(self._ahead.values())

    def _begin(self) -> None:
        """Begin to read as many as should be ahead, and for which there seems to be room."""
        n_ahead = self._pace.n_ahead
        if self._pace.is_quick:  # no thread is needed but to get past one that is late
            n_ahead = min(n_ahead, len(self._ahead) + self._ready.empty())
        while self._to_come and len(self._ahead) < n_ahead:
            number = self._to_come[0]
            if not self._ahead:
                self._room.want(number)  # nothing else would come
            if not self._room.reserve(number, round(self._pace.typical_bytes)):
                return
            self._to_come.popleft()
            self._ahead[number] = self._threads.submit(self._read, number)

    def _read_here(self) -> _Read:
        number = self._to_come.popleft()
        self._room.want(number)
        self._read(number)
        return self._ready.get()

    def _read(self, number: int) -> None:
        began = time.monotonic()
        found: AudioObject | Exception
        try:
            read = functools.partial(self._read_audio, self._uris[number])
            found = self._room.fill(number, read)
        except Exception as error:  # told where it is taken
            found = error
        self._ready.put(_Read(number, found, time.monotonic() - began))


class NoRoomError(Exception):
    """There is no room for a track yet; how many bytes it needs."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__(n_bytes)
        self.n_bytes = n_bytes


class Room:
    """Memory for tracks that are read before their turn; whose turn has come is always let in.

    So nobody waits for ever, and what is held is `most_bytes` and the tracks in the child's hands.

    Parameters
    ----------
    most_bytes : int
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._changed = threading.Condition()
        self._held: dict[int, int] = {}
        self._wanted = -1
        self._n_waiting = 0
        self._is_closed = False

    def fill(self, number: int, read: Callable[..., AudioObject]) -> AudioObject:
        """Read a track, waiting for room if there is none.

        `read` is called with `admit`. While we wait nothing is open: a connection that nobody
        reads from is closed by the store, and its retries have run out when it is our turn.
        """
        while True:
            try:
                return read(admit=functools.partial(self.take_at_once, number))
            except NoRoomError as error:
                self.take(number, error.n_bytes)

    def take(self, number: int, n_bytes: int) -> None:
        """Wait until the track of this number, counted from 0, may be read."""
        with self._changed:
            self._held.pop(number, None)  # read once more after a fault
            self._n_waiting += 1
            self._changed.wait_for(lambda: self._has_room(number, n_bytes))
            self._n_waiting -= 1
            self._hold(number, n_bytes)

    def take_at_once(self, number: int, n_bytes: int) -> None:
        """Take room without waiting for it.

        Raises
        ------
        NoRoomError
        """
        with self._changed:
            self._held.pop(number, None)
            if not self._has_room(number, n_bytes):
                raise NoRoomError(n_bytes)
            self._hold(number, n_bytes)

    def reserve(self, number: int, n_bytes: int) -> bool:
        """Take room for what a track may need, unless others wait for it; whether it was taken."""
        with self._changed:
            fits = not self._n_waiting and self._has_room(number, n_bytes)
            if fits:
                self._held[number] = n_bytes
            return fits

    def want(self, number: int) -> None:
        """Let a track in, and those before it, whatever they need."""
        with self._changed:
            self._wanted = number
            self._changed.notify_all()

    def give_back(self, number: int) -> None:
        """Take note that a track is done with."""
        with self._changed:
            self._held.pop(number, None)
            self._changed.notify_all()

    def close(self) -> None:
        """Turn away whoever still waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _hold(self, number: int, n_bytes: int) -> None:
        if self._is_closed:
            raise AudioError("storage_error", "no longer wanted")
        self._held[number] = n_bytes

    def _has_room(self, number: int, n_bytes: int) -> bool:
        fits = sum(self._held.values()) + n_bytes <= self._most_bytes
        return self._is_closed or number <= self._wanted or fits
