"""Where in the catalog a track stands, by its id: some 28 bytes a track besides the ids themselves.

Ids are found by a 64-bit hash and then compared, so a hash that two ids share costs time, never a
track. The hash takes a key that nobody knows: ids cannot be made up to share one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

_WORD = 8
_DIGEST_ROWS = 1 << 20
_SECRET = tuple(np.uint64(secrets.randbits(64) | 1) for _ in range(3))
# Of a word that ends behind its string, the bytes that belong to it (the machine is little-endian).
_TAILS = np.array([(1 << 8 * n) - 1 for n in range(_WORD)] + [2**64 - 1], np.uint64)


class TrackIndex:
    """Ids by their place.

    Parameters
    ----------
    ids : sequence of pa.Array
        Strings or int64, none null, in the catalog's order.
    hash_bits : int
        Fewer make ids share hashes, for tests.
    """

    def __init__(self, ids: Sequence[pa.Array], id_type: pa.DataType, *, hash_bits: int = 64):
        self.id_type = id_type
        self.ids = joined(ids, id_type)
        self._mask = np.uint64((1 << hash_bits) - 1)
        hashes = self._hashed(self.ids)
        self._places = np.argsort(hashes, kind="stable")
        if len(hashes) < 2**31:
            self._places = self._places.astype(np.int32)
        self._hashes = hashes[self._places]
        is_shared = np.zeros(len(hashes), bool)
        same = self._hashes[1:] == self._hashes[:-1]
        is_shared[1:] |= same
        is_shared[:-1] |= same
        self._shared_hashes = np.unique(self._hashes[is_shared])
        self._shared: dict[object, int] = {}
        repeated: dict[object, int] = {}
        places = np.sort(self._places[is_shared])
        for place, track_id in zip(
            places.tolist(), self.ids.take(pa.array(places)).to_pylist(), strict=True
        ):
            first = self._shared.setdefault(track_id, place)
            if first != place:
                repeated[track_id] = first
        #: Ids that stand at several places, in the order of their first ones.
        self.repeated = sorted(repeated, key=repeated.__getitem__)

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: pa.Array) -> Int64:
        """The place of each id, -1 for those that are not there."""
        hashes = self._hashed(ids)
        if len(hashes) == 0 or len(self) == 0:
            return np.full(len(hashes), -1, np.int64)
        # In their order: neighbours are then looked up in the same pages.
        order = np.argsort(hashes)
        wanted = hashes[order]
        at = np.minimum(np.searchsorted(self._hashes, wanted), len(self) - 1)
        is_hit = self._hashes[at] == wanted
        places = np.full(len(hashes), -1, np.int64)
        places[order[is_hit]] = self._places[at[is_hit]]
        self._verify(ids, places)
        self._find_shared(ids, hashes, places)
        return places

    def _verify(self, ids: pa.Array, places: Int64) -> None:
        """Forget places whose id only has the same hash."""
        rows = np.flatnonzero(places >= 0)
        there = self.ids.take(pa.array(places[rows]))
        is_same = pc.equal(there, ids.take(pa.array(rows)).cast(there.type))
        places[rows[~as_bools(is_same)]] = -1

    def _find_shared(self, ids: pa.Array, hashes: UInt64, places: Int64) -> None:
        """Look up one by one what has a hash that several ids share."""
        if len(self._shared_hashes) == 0:
            return
        rows = np.flatnonzero(np.isin(hashes, self._shared_hashes))
        found = ids.take(pa.array(rows)).to_pylist()
        places[rows] = [self._shared.get(track_id, -1) for track_id in found]

    def _hashed(self, ids: pa.Array) -> UInt64:
        return hashes_of(ids) & self._mask


def joined(arrays: Sequence[pa.Array], kind: pa.DataType) -> pa.Array:
    """Arrays one behind another; strings as large ones where 32 bits do not address them."""
    if pa.types.is_string(kind) and sum(array.nbytes for array in arrays) > 2**31 - 2**20:
        kind = pa.large_string()
        arrays = [array.cast(kind) for array in arrays]
    return pa.concat_arrays(arrays) if arrays else pa.array([], kind)


def as_bools(values: pa.Array | pa.ChunkedArray) -> Bool:
    """A mask for numpy; null is False."""
    filled: Bool = pc.fill_null(whole(values), False).to_numpy(zero_copy_only=False).astype(bool)
    return filled


def hashes_of(ids: pa.Array) -> UInt64:
    """A hash of each id; numbers are their own.

    Parameters
    ----------
    ids : pa.Array
        Of strings, large or not, or int64; none null.
    """
    if pa.types.is_int64(ids.type):
        return np.asarray(ids.to_numpy()).view(np.uint64)
    starts, lengths, words = _layout(ids)
    hashes = (lengths.astype(np.uint64) + _SECRET[0]) * _SECRET[1]
    left = np.arange(len(ids))
    for begin in range(0, int(lengths.max(initial=0)), _WORD):
        left = left[lengths[left] > begin]
        word = words[starts[left] + begin]
        word &= _TAILS[np.minimum(lengths[left] - begin, _WORD)]
        mixed = (hashes[left] ^ word) * _SECRET[2]
        hashes[left] = mixed ^ (mixed >> np.uint64(29))
    hashes *= _SECRET[1]
    hashes ^= hashes >> np.uint64(32)
    return hashes


def _layout(text: pa.Array) -> tuple[Int64, Int64, UInt64]:
    """Where each string begins, how long it is, and the eight bytes that begin at every byte."""
    _, offsets, data = text.buffers()
    kind = np.int64 if pa.types.is_large_string(text.type) else np.int32
    ends = np.frombuffer(offsets, kind)[text.offset : text.offset + len(text) + 1].astype(np.int64)
    first, last = (int(ends[0]), int(ends[-1])) if len(ends) else (0, 0)
    size = last - first
    padded = np.zeros(size + _WORD, np.uint8)
    if size:
        padded[:size] = np.frombuffer(data, np.uint8, size, first)
    words = np.lib.stride_tricks.as_strided(
        padded[:_WORD].view(np.uint64), shape=(size + 1,), strides=(1,), writeable=False
    )
    starts = ends - first
    return starts[:-1], np.diff(starts), words


def digest_of(columns: Iterable[pa.Array | pa.ChunkedArray]) -> str:
    """A hash of columns of strings or int64, none null, however they are cut into chunks."""
    digest = hashlib.sha256()
    for column in columns:
        values = whole(column)
        for begin in range(0, len(values), _DIGEST_ROWS):
            _add_to(digest, values.slice(begin, _DIGEST_ROWS))
        digest.update(len(values).to_bytes(8, "little"))
    return digest.hexdigest()


def _add_to(digest: hashlib._Hash, values: pa.Array) -> None:
    if pa.types.is_int64(values.type):
        digest.update(np.ascontiguousarray(values.to_numpy()).data)
        return
    digest.update(np.ascontiguousarray(pc.binary_length(values).to_numpy(), np.int64).data)
    # Behind their lengths the strings need nothing between them.
    alone = pa.concat_arrays([values, values.slice(0, 0)]) if values.offset else values
    kind = np.int64 if pa.types.is_large_string(values.type) else np.int32
    _, offsets, data = alone.buffers()
    ends = np.frombuffer(offsets, kind)[alone.offset : alone.offset + len(alone) + 1]
    if len(ends) and ends[-1] > ends[0]:
        digest.update(memoryview(data)[int(ends[0]) : int(ends[-1])])


def whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
