"""The next tracks, read while one is decoded, within a bound of bytes."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mer_batch.errors import AudioError, MerBatchError
from mer_batch.storage import AudioObject

# Tracks fetched while one is being decoded: hides a store's latency, costs their bytes in memory.
_READ_AHEAD = 4
# What they may hold together with the two that the child has; a track larger than that is read
# when its turn has come.
READ_AHEAD_BYTES = 64 * 1024 * 1024


def read_ahead(
    tracks: list[dict[str, Any]], read_audio: Callable[..., AudioObject], room: Room
) -> Iterator[tuple[dict[str, Any], Future[AudioObject]]]:
    """The tracks in order, the next ones being fetched meanwhile."""
    with (
        ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="read") as readers,
        contextlib.closing(room),
    ):
        waiting: deque[tuple[dict[str, Any], Future[AudioObject]]] = deque()
        for number, track in enumerate(tracks):
            read = functools.partial(read_audio, track["audio_uri"])
            waiting.append((track, readers.submit(room.fill, number, read)))
            if len(waiting) > _READ_AHEAD:
                yield waiting.popleft()
        while waiting:  # not `yield from`: it would hold them all to the end
            yield waiting.popleft()


def fetched(fetch: Future[AudioObject]) -> AudioObject:
    """What was read, or why not: of one track, whatever a stranger's file may bring about."""
    try:
        return fetch.result()
    except (MerBatchError, MemoryError):
        raise
    except Exception as error:
        raise AudioError("storage_error", f"{type(error).__name__}: {error}") from error


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
            self._changed.wait_for(lambda: self._has_room(number, n_bytes))
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
