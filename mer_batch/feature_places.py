"""Where the features of the catalog's tracks lie: a record of some 40 bytes a track.

A track counts where all its segments are there; of two extractions of the same audio the newer one
counts. Parts stream past, and of each is kept what is in it of today's tracks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mer_batch.storage import Location
from mer_batch.today import Today
from mer_batch.track_index import Bool, Int64, hashes_of, whole

Float64 = npt.NDArray[np.float64]

#: What is read of every segment.
COLUMNS = (
    "track_id", "audio_version", "segment", "n_segments", "n_frames", "duration_seconds",
    "extracted_at",
)  # fmt: skip

_NEVER = np.iinfo(np.int64).min
# Features that are there, but not in one part: to be decoded again, should they be needed.
_IN_PIECES = -2
_NONE = -1


@dataclass(frozen=True)
class _Records:
    """Tracks of one part, in which all their segments lie.

    Attributes
    ----------
    places, extracted_at : int64
    rows : int32
        In the part, one track's behind another's, in the order of their segments.
    ends : int64
        Of each track among `rows`.
    """

    part: int
    places: Int64
    extracted_at: Int64
    rows: npt.NDArray[np.int32]
    ends: Int64
    n_frames: npt.NDArray[np.int32]
    seconds: Float64
    versions: pa.Array


class FeaturePlaces:
    """The features that there are of today's tracks.

    Parameters
    ----------
    today : Today
    parts : iterable
        As ``Ledger.features`` gives them, with ``COLUMNS``.

    Attributes
    ----------
    problems : list of str
        Parts that cannot be read.
    is_whole : bool, shape (n_tracks,)
        Tracks of which every segment is there.
    """

    def __init__(self, today: Today, parts: Iterable[tuple[Location, pa.Table | str]]) -> None:
        self.problems: list[str] = []
        self._parts: list[str] = []
        self._records: list[_Records] = []
        self._n_records = 0
        self._newest = np.full(len(today), _NEVER, np.int64)
        self._record = np.full(len(today), _NONE, np.int64)
        self._pieces: list[_Segments] = []
        for part, rows in parts:
            if isinstance(rows, str):
                self.problems.append(rows)
            else:
                self._add(part, _Segments.of(rows, today))
        self._add_pieces()
        self.is_whole: Bool = self._record != _NONE

    def _add(self, part: Location, segments: _Segments) -> None:
        starts = segments.starts()
        is_all, is_once = segments.wholeness(starts)
        self._pieces.append(segments.take_groups(starts, ~is_all))
        # Where a segment lies in a part twice, nobody knows which of the two to read.
        for whole_ones, record in ((is_all & is_once, True), (is_all & ~is_once, False)):
            found = segments.take_groups(starts, whole_ones)
            if len(found.places):
                self._keep(part, found, has_record=record)

    def _keep(self, part: Location, found: _Segments, *, has_record: bool) -> None:
        starts = found.starts()
        places, when = found.places[starts], found.extracted_at[starts]
        newer = self._newer(places, when)
        numbers = self._n_records + np.arange(len(starts)) if has_record else _IN_PIECES
        numbers = np.broadcast_to(numbers, len(starts))
        self._newest[places[newer]] = when[newer]
        self._record[places[newer]] = numbers[newer]
        if not has_record:
            return
        self._parts.append(part.uri)
        self._n_records += len(starts)
        self._records.append(
            _Records(
                len(self._parts) - 1,
                places,
                when,
                found.rows,
                np.append(starts[1:], len(found.places)),
                found.n_frames[starts],
                found.seconds[starts],
                found.versions.take(pa.array(starts)),
            )
        )

    def _newer(self, places: Int64, when: Int64) -> Int64:
        """Which of some extractions are newer than what is known; of a track the newest, last."""
        is_newer = when > self._newest[places]
        is_same = (when == self._newest[places]) & (self._record[places] == _IN_PIECES)
        rows = np.flatnonzero(is_newer | is_same)
        ordered: Int64 = rows[np.argsort(when[rows], kind="stable")]
        return ordered

    def _add_pieces(self) -> None:
        """Extractions whose segments lie in several parts: compacting a table may do that."""
        if not self._pieces:
            return
        pieces = _Segments.joined(self._pieces)
        self._pieces = []
        starts = pieces.starts()
        is_all, _ = pieces.wholeness(starts)
        places, when = pieces.places[starts[is_all]], pieces.extracted_at[starts[is_all]]
        newer = self._newer(places, when)
        self._newest[places[newer]] = when[newer]
        self._record[places[newer]] = _IN_PIECES

    def select(self, wanted: Bool) -> list[FoundTracks]:
        """The features of some tracks, part by part, each part's tracks as they lie in it.

        Parameters
        ----------
        wanted : bool, shape (n_tracks,)
        """
        found, begin = [], 0
        for records in self._records:
            numbers = begin + np.arange(len(records.places))
            begin += len(records.places)
            is_used = self._record[records.places] == numbers
            used = np.flatnonzero(is_used & wanted[records.places])
            if len(used):
                first = records.rows[np.append(0, records.ends[:-1])[used]]
                used = used[np.argsort(first, kind="stable")]
                found.append(FoundTracks(self._parts[records.part], records, used))
        # Parts by name, so that the order does not depend on how they were listed.
        return sorted(found, key=lambda tracks: tracks.part)


@dataclass(frozen=True)
class FoundTracks:
    """Tracks whose features lie in one part.

    Attributes
    ----------
    part : str
        Its URI.
    places : int64
        Of the tracks, in the order of their rows.
    """

    part: str
    _records: _Records
    _used: Int64

    @property
    def places(self) -> Int64:
        return self._records.places[self._used]

    @property
    def seconds(self) -> Float64:
        """Lengths of the tracks [s]."""
        return self._records.seconds[self._used]

    def only(self, kept: Bool) -> FoundTracks:
        """Some of the tracks."""
        return FoundTracks(self.part, self._records, self._used[kept])

    def columns(self, begin: int, end: int) -> dict[str, pa.Array]:
        """Of some of the tracks, where and what their features are."""
        records, used = self._records, self._used[begin:end]
        starts = np.append(0, records.ends[:-1])[used]
        lengths = records.ends[used] - starts
        rows = [records.rows[s : s + n].tolist() for s, n in zip(starts, lengths, strict=True)]
        return {
            "part": pa.repeat(self.part, len(used)),
            "rows": pa.array(rows, pa.list_(pa.int64())),
            "n_frames": pa.array(records.n_frames[used]),
            "features_duration_seconds": pa.array(records.seconds[used]),
            "features_version": records.versions.take(pa.array(used)),
        }


@dataclass(frozen=True)
class _Segments:
    """Segments of today's tracks, those of one extraction together, in their order.

    Attributes
    ----------
    version_hash : uint64
        Tells extractions of several versions apart, where all of them count.
    """

    places: Int64
    extracted_at: Int64
    version_hash: npt.NDArray[np.uint64]
    segment: Int64
    n_segments: Int64
    rows: npt.NDArray[np.int32]
    n_frames: npt.NDArray[np.int32]
    seconds: Float64
    versions: pa.Array

    @classmethod
    def of(cls, rows: pa.Table, today: Today) -> _Segments:
        """Those rows of a part that are of today's tracks."""
        places = today.at(rows)
        rows = rows.take(pa.array(np.flatnonzero(places >= 0)))
        versions = whole(rows["audio_version"])

        def numbers(name: str, kind: type[np.generic]) -> Any:
            return rows[name].to_numpy().astype(kind)

        when = rows["extracted_at"].cast(pa.int64()).to_numpy()
        found = cls(
            places[places >= 0], when, hashes_of(versions), numbers("segment", np.int64),
            numbers("n_segments", np.int64), numbers("row", np.int32),
            numbers("n_frames", np.int32), numbers("duration_seconds", np.float64), versions,
        )  # fmt: skip
        return found._sorted()

    @classmethod
    def joined(cls, several: list[_Segments]) -> _Segments:
        """All of some."""
        columns = zip(*(one._columns() for one in several), strict=True)
        versions = pa.concat_arrays([one.versions for one in several])
        arrays: list[Any] = [*map(np.concatenate, columns), versions]
        return cls(*arrays)._sorted()

    def _columns(self) -> list[Any]:
        return [
            self.places, self.extracted_at, self.version_hash, self.segment, self.n_segments,
            self.rows, self.n_frames, self.seconds,
        ]  # fmt: skip

    def _sorted(self) -> _Segments:
        keys = (self.rows, self.segment, self.version_hash, self.extracted_at, self.places)
        return self._take(np.lexsort(keys))

    def _take(self, at: Int64) -> _Segments:
        columns: list[Any] = [column[at] for column in self._columns()]
        columns.append(self.versions.take(pa.array(at)))
        return _Segments(*columns)

    def starts(self) -> Int64:
        """Where extractions begin."""
        if len(self.places) == 0:
            return np.zeros(0, np.int64)
        keys = (self.places, self.extracted_at, self.version_hash)
        is_new = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
        return np.flatnonzero(np.append(True, is_new))

    def wholeness(self, starts: Int64) -> tuple[Bool, Bool]:
        """Of each extraction whether all segments are there, and each of them only once."""
        if len(starts) == 0:
            return np.zeros(0, bool), np.zeros(0, bool)
        is_first = np.append(True, self.segment[1:] != self.segment[:-1])
        is_first[starts] = True
        n_distinct = np.add.reduceat(is_first.astype(np.int64), starts)
        n_rows = np.diff(np.append(starts, len(self.places)))
        n_segments = np.maximum.reduceat(self.n_segments, starts)
        return n_distinct == n_segments, n_rows == n_segments

    def take_groups(self, starts: Int64, chosen: Bool) -> _Segments:
        """The segments of some extractions."""
        lengths = np.diff(np.append(starts, len(self.places)))
        return self._take(np.flatnonzero(np.repeat(chosen, lengths)))
