"""What is to be done: catalog minus ledger. Nothing else decides it.

A resume, a nightly increment, a new model and a changed file are all the same anti-join.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from mer_batch import schema
from mer_batch.audio.decode import TOLERANCE_SECONDS, AudioLimits
from mer_batch.catalog import Catalog
from mer_batch.feature_table import newest_whole
from mer_batch.ledger import Ledger, track_keys
from mer_batch.schema import Identity
from mer_batch.storage import Storage


@dataclass(frozen=True)
class Plan:
    """Today's work.

    Attributes
    ----------
    keys : pa.ChunkedArray
        One string per catalog row, in its order: the track at today's version of its audio.
    with_versions : bool
        False under ``catalog.changes: ignore``: then `keys` name tracks only.
    pending : pa.Table
        Tracks to do: ``track_id, audio_uri, audio_version, expected_seconds, attempts, n_doubts,
        first_run_id, first_seen`` (the last four of an earlier reject, or 0 and null). `n_doubts`
        are the attempts at this audio that ended for one of ``schema.DOUBTFUL_REASONS``.
    is_done, is_rejected : pa.ChunkedArray
        Whether a catalog row has its scores, or features; whether it is a reject that holds.
    n_replayed : int
        Rejects that are pending because they were asked for.
    """

    keys: pa.ChunkedArray
    with_versions: bool
    pending: pa.Table
    is_done: pa.ChunkedArray
    is_rejected: pa.ChunkedArray
    n_replayed: int

    @property
    def n_done(self) -> int:
        """Catalog rows that are done."""
        return pc.sum(self.is_done).as_py() or 0

    @property
    def n_rejected(self) -> int:
        """Catalog rows that are rejects already."""
        return pc.sum(self.is_rejected).as_py() or 0

    def fingerprint(self) -> str:
        """Changes with the tracks, their order and the versions of their audio."""
        digest = hashlib.sha256()
        for chunk in self.keys.chunks:
            for buffer in chunk.buffers():
                digest.update(buffer or b"")
        return digest.hexdigest()


def make_plan(
    catalog: Catalog,
    ledger: Ledger,
    storage: Storage,
    identity: Identity,
    *,
    detect_changes: bool,
    replayed: frozenset[str] = frozenset(),
) -> Plan:
    """Compare the catalog with the scores there are.

    Parameters
    ----------
    replayed : frozenset of str
        Reasons of rejects that are to be tried again, however often they were.

    Raises
    ------
    StorageError
        Where the audio's versions cannot be listed.
    """
    scores = ledger.scores(
        features_id=identity.features_id,
        model_id=identity.model_id,
        columns=["track_id", "audio_version"],
    )
    return _plan(catalog, scores, ledger.rejects(), storage, identity, detect_changes, replayed)


def make_extraction_plan(
    catalog: Catalog, ledger: Ledger, storage: Storage, identity: Identity, *, detect_changes: bool
) -> tuple[Plan, list[str]]:
    """Compare the catalog with the features there are, of which no segment must be missing.

    Returns
    -------
    plan : Plan
    problems : list of str
        Parts that cannot be read; their tracks are pending.

    Raises
    ------
    StorageError
        Where the audio's versions cannot be listed.
    """
    segments, problems = ledger.features(features_id=identity.features_id)
    tracks = newest_whole(segments)
    plan = _plan(catalog, tracks, ledger.rejects(), storage, identity, detect_changes)
    return plan, problems


def with_features(
    plan: Plan, ledger: Ledger, features_id: str, limits: AudioLimits
) -> tuple[pa.Table, pa.Table, list[str]]:
    """Split what is pending into tracks whose features are there, and tracks to decode.

    A track of another length than `limits` or the catalog allow is left to the decoder, which says
    why it is a reject: its features were extracted when they allowed it.

    Returns
    -------
    from_features : pa.Table
        Rows of ``plan.pending`` in the parts' order, with `part` and, in it, `rows`; `n_frames`,
        `features_duration_seconds` and `features_version` as they stand there.
    to_decode : pa.Table
        The other rows of ``plan.pending``.
    problems : list of str
        Parts of features that cannot be read.
    """
    pending = plan.pending
    segments, problems = ledger.features(features_id=features_id)
    tracks = _whole_tracks(segments)
    # Without versions the newest features count.
    tracks = tracks.sort_by([("extracted_at", "descending")])
    versions = [t["audio_version"] if plan.with_versions else None for t in (pending, tracks)]
    keys = track_keys(pending["track_id"], versions[0])
    there = track_keys(tracks["track_id"], versions[1])
    at = pc.index_in(keys, there.combine_chunks()).combine_chunks()
    fits = _fits(tracks["duration_seconds"].take(at), pending["expected_seconds"], limits)
    at = pc.if_else(fits.combine_chunks(), at, None)
    found = _found_features(pending, at, tracks)
    return _as_they_lie(found), pending.filter(pc.is_null(at)), problems


def _fits(
    seconds: pa.ChunkedArray, expected: pa.ChunkedArray, limits: AudioLimits
) -> pa.ChunkedArray:
    """Whether the decoder would take tracks of this length today."""
    within = pc.and_(
        pc.greater_equal(seconds, limits.min_seconds), pc.less_equal(seconds, limits.max_seconds)
    )
    is_short = pc.less(seconds, pc.subtract(expected, TOLERANCE_SECONDS))
    return pc.and_not(pc.fill_null(within, False), pc.fill_null(is_short, False))


def _as_they_lie(found: pa.Table) -> pa.Table:
    """Ordered by part, and within it by row: neighbours are read together."""
    places = pa.table({"part": found["part"], "row": pc.list_element(found["rows"], 0)})
    order = [("part", "ascending"), ("row", "ascending")]
    return found.take(pc.sort_indices(places, sort_keys=order))


_FEATURE_COLUMNS = {
    "part": "part",
    "rows": "rows",
    "n_frames": "n_frames",
    "duration_seconds": "features_duration_seconds",
    "audio_version": "features_version",
}


def _found_features(pending: pa.Table, at: pa.Array, tracks: pa.Table) -> pa.Table:
    """The pending tracks that have features, beside where those lie."""
    found = pending.filter(pc.is_valid(at))
    columns = tracks.take(at.drop_null())
    for name, ours in _FEATURE_COLUMNS.items():
        found = found.append_column(ours, columns[name])
    return found


def _whole_tracks(segments: pa.Table) -> pa.Table:
    """One row for each track of which every segment is there, in one part."""
    keys = ["track_id", "audio_version", "extracted_at", "part"]
    rest = ["n_frames", "duration_seconds", "n_segments"]
    tracks = (
        newest_whole(segments)
        .group_by(keys, use_threads=False)
        .aggregate([("row", "list"), *((name, "first") for name in rest)])
    )
    tracks = tracks.rename_columns([*keys, "rows", *rest])
    return tracks.filter(pc.equal(pc.list_value_length(tracks["rows"]), tracks["n_segments"]))


def _plan(
    catalog: Catalog,
    done: pa.Table,
    rejects: pa.Table,
    storage: Storage,
    identity: Identity,
    detect_changes: bool,
    replayed: frozenset[str] = frozenset(),
) -> Plan:
    tracks = catalog.keys
    versions = _versions(tracks, storage) if detect_changes else None
    keys = track_keys(tracks["track_id"], versions)
    is_done = _is_in(keys, done, versions is not None)
    is_rejected = _is_in(keys, permanent(rejects, identity, replayed), versions is not None)
    is_rejected = pc.and_not(is_rejected, is_done)
    is_pending = pc.invert(pc.or_(is_done, is_rejected))
    asked_for = rejects.filter(_has_reason(rejects, replayed))
    is_replayed = pc.and_(is_pending, _is_in(keys, asked_for, versions is not None))

    pending = pa.table(
        {
            "track_id": tracks["track_id"],
            "audio_uri": tracks["audio_uri"],
            "audio_version": versions if versions is not None else pa.nulls(len(keys), pa.string()),
            "expected_seconds": tracks["expected_seconds"],
        }
    ).filter(is_pending)
    return Plan(
        keys=keys,
        with_versions=versions is not None,
        pending=_with_history(pending, rejects, identity),
        is_done=is_done,
        is_rejected=is_rejected,
        n_replayed=pc.sum(is_replayed).as_py() or 0,
    )


def permanent(
    rejects: pa.Table, identity: Identity, replayed: frozenset[str] = frozenset()
) -> pa.Table:
    """Rejects that hold today.

    Not of a passing kind, tried under today's extraction, and not asked for by their reason.
    """
    passing = _has_reason(rejects, schema.TRANSIENT_REASONS | replayed)
    doubtful = _is_doubtful(rejects)
    passing = pc.or_(passing, pc.and_(doubtful, pc.less(rejects["attempts"], 2)))
    same = pc.equal(rejects["extraction_id"], identity.extraction_id)
    return rejects.filter(pc.and_(pc.invert(passing), same))


def _has_reason(rejects: pa.Table, reasons: frozenset[str]) -> pa.ChunkedArray:
    return pc.is_in(rejects["reason"], pa.array(sorted(reasons), pa.string()))


def _is_doubtful(rejects: pa.Table) -> pa.ChunkedArray:
    """Whether a reject may be the machine's fault; see ``schema.is_doubtful``."""
    vanished = pc.and_(
        pc.equal(rejects["reason"], schema.VANISHED_REASON),
        pc.not_equal(rejects["audio_version"], ""),
    )
    return pc.or_(_has_reason(rejects, schema.DOUBTFUL_REASONS), vanished)


def reject_counts(plan: Plan, rejects: pa.Table) -> dict[str, int]:
    """How many of the catalog's rows are rejects, of one extraction, by reason."""
    there = track_keys(
        rejects["track_id"], rejects["audio_version"] if plan.with_versions else None
    )
    # What is done all the same was done under other limits.
    keys = plan.keys.filter(pc.invert(plan.is_done))
    at = pc.index_in(keys, there.combine_chunks()).combine_chunks()
    reasons = rejects["reason"].take(at.drop_null())
    counts = {row["values"]: row["counts"] for row in pc.value_counts(reasons).to_pylist()}
    return dict(sorted(counts.items()))


def _is_in(keys: pa.ChunkedArray, rows: pa.Table, with_versions: bool) -> pa.ChunkedArray:
    there = track_keys(rows["track_id"], rows["audio_version"] if with_versions else None)
    return pc.is_in(keys, there.combine_chunks() if isinstance(there, pa.ChunkedArray) else there)


def _versions(tracks: pa.Table, storage: Storage) -> pa.ChunkedArray:
    """Version of every track's audio today: the catalog's own word first, else the store's."""
    stated = tracks["stated_version"]
    unstated = pc.is_null(stated)
    if not pc.any(unstated).as_py():
        return stated
    uris = tracks["audio_uri"].filter(unstated).to_pylist()
    found = pa.array(storage.audio_versions(uris), pa.string())
    if len(found) == len(stated):
        return pa.chunked_array([found])
    return pc.replace_with_mask(stated.combine_chunks(), unstated.combine_chunks(), found)


def _with_history(pending: pa.Table, rejects: pa.Table, identity: Identity) -> pa.Table:
    """Add how often a pending track was rejected before, how often in doubt, and since when.

    What this extraction has seen of a track counts, or else the latest that has seen it.
    """
    is_own = pc.equal(rejects["extraction_id"], identity.extraction_id).cast(pa.int8())
    order = [("is_own", "descending"), ("last_seen", "descending")]
    rejects = rejects.append_column("is_own", is_own).sort_by(order)  # the first counts
    at = pc.index_in(pending["track_id"], rejects["track_id"].combine_chunks())
    history = rejects.take(at)
    attempts = pc.fill_null(history["attempts"], 0)
    # A crash of the decoder is a track's first, however often it was rejected for other reasons.
    is_same = pc.fill_null(pc.equal(history["audio_version"], pending["audio_version"]), True)
    is_doubt = pc.and_(is_same, pc.fill_null(_is_doubtful(history), False))
    pending = pending.append_column("attempts", attempts)
    pending = pending.append_column("n_doubts", pc.if_else(is_doubt, attempts, 0))
    for name in ("first_run_id", "first_seen"):
        pending = pending.append_column(name, history[name])
    return pending
