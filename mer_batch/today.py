"""The catalog's tracks at today's versions of their audio: what all tables are compared with.

Held are ids and versions as Arrow keeps them, and an index of the ids. Tables stream past: however
long they are, a batch at a time is in memory.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mer_batch.catalog import Catalog
from mer_batch.storage import Storage
from mer_batch.track_index import Bool, Int64, as_bools, digest_of, joined, whole

_S3 = r"^(?i:s3a?)://"


class Today:
    """Every track's place in the catalog, and its version.

    Parameters
    ----------
    catalog : Catalog
    versions : pa.Array, optional
        One string a track; None under ``catalog.changes: ignore``, when all versions are one.
    """

    def __init__(self, catalog: Catalog, versions: pa.Array | None) -> None:
        self.tracks = catalog.tracks
        self.index = catalog.index
        self.versions = versions

    @classmethod
    def of(cls, catalog: Catalog, storage: Storage, *, detect_changes: bool) -> Today:
        """With the versions that the catalog states, else those of the store.

        Raises
        ------
        StorageError
            Where they cannot be listed.
        """
        return cls(catalog, _versions(catalog, storage) if detect_changes else None)

    def __len__(self) -> int:
        return len(self.index)

    def find(self, rows: pa.Table) -> tuple[Int64, Bool]:
        """Where the tracks of some rows stand, and whether the rows are of today's audio.

        Parameters
        ----------
        rows : pa.Table
            With ``track_id`` and ``audio_version``.

        Returns
        -------
        places : int64, shape (n_rows,)
            -1 where the catalog has no such track.
        is_same : bool, shape (n_rows,)
        """
        places = self.index.find(whole(rows["track_id"]))
        is_same = places >= 0
        if self.versions is not None:
            there = np.flatnonzero(is_same)
            todays = self.versions.take(pa.array(places[there]))
            given = whole(rows["audio_version"]).take(pa.array(there)).cast(todays.type)
            is_same[there] = as_bools(pc.equal(todays, given))
        return places, is_same

    def at(self, rows: pa.Table) -> Int64:
        """Where the tracks of some rows stand, -1 also where the rows are of other audio."""
        places, is_same = self.find(rows)
        return np.where(is_same, places, -1)

    def fingerprint(self) -> str:
        """Changes with the tracks, their order and the versions of their audio."""
        return digest_of([self.index.ids, *([] if self.versions is None else [self.versions])])


def first_of_each(places: Int64) -> tuple[Int64, Int64]:
    """The places that rows have come to, each once, and the first row of each; -1 is no place."""
    found, rows = np.unique(places, return_index=True)
    is_place = found >= 0
    return found[is_place], rows[is_place]


def _versions(catalog: Catalog, storage: Storage) -> pa.Array:
    """Version of every track's audio today: the catalog's own word first, else the store's."""
    if catalog.n_unstated == 0:
        stated = catalog.tracks.batches(["stated_version"])
        return joined([batch.column(0) for batch in stated], pa.string())
    objects: list[str] = []
    for batch in catalog.tracks.batches(["stated_version", "audio_uri"]):
        uris = _unstated(batch)
        objects += uris.filter(pc.match_substring_regex(uris, _S3)).to_pylist()
    # Of objects all at once, by one listing; files are asked batch by batch.
    listed = iter(storage.audio_versions(objects) if objects else ())
    found = []
    for batch in catalog.tracks.batches(["stated_version", "audio_uri"]):
        uris, stated = _unstated(batch), batch["stated_version"]
        is_object = pc.match_substring_regex(uris, _S3)
        files = iter(storage.audio_versions(uris.filter(pc.invert(is_object)).to_pylist()))
        versions = [next(listed if of_store else files) for of_store in is_object.to_pylist()]
        filled = pc.replace_with_mask(stated, pc.is_null(stated), pa.array(versions, pa.string()))
        found.append(filled)
    return joined(found, pa.string())


def _unstated(batch: pa.RecordBatch) -> pa.Array:
    return batch["audio_uri"].filter(pc.is_null(batch["stated_version"]))
